"""The files that the benchmark hands to cryoDRGN."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.cryodrgn_inputs import write_inputs

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.io.cryodrgn import CTF_COLUMNS, read_ctf_pkl, read_poses_pkl
from cryoformer_dist.io.mrc import open_stack


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> ParticleStore:
    return ParticleStore.open(tiny_store)


@pytest.fixture(scope="module")
def folder(store: ParticleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cryodrgn")
    write_inputs(store, folder)
    return folder


def test_our_own_reader_finds_the_poses_of_the_store(store: ParticleStore, folder: Path) -> None:
    rotation, shift_fraction = read_poses_pkl(folder / "poses.pkl")
    particles = store.particles()
    np.testing.assert_array_equal(rotation, particles.rotation)
    length_angstrom = store.box_size * store.pixel_size_angstrom
    np.testing.assert_allclose(shift_fraction * length_angstrom, particles.shift_angstrom, rtol=1e-5, atol=1e-5)
    assert np.abs(particles.shift_angstrom).max() > 1


def test_our_own_reader_finds_the_ctf_of_the_store(store: ParticleStore, folder: Path) -> None:
    table, particles = read_ctf_pkl(folder / "ctf.pkl"), store.particles()
    assert (table[:, 0] == store.box_size).all()
    for position, name in list(enumerate(CTF_COLUMNS))[1:]:
        np.testing.assert_allclose(table[:, position], getattr(particles, name), rtol=1e-6, err_msg=name)
    assert np.ptp(particles.defocus_u_angstrom) > 1000


def test_images_are_those_of_the_store_in_its_order(store: ParticleStore, folder: Path) -> None:
    stack = open_stack(folder / "particles.mrcs")
    rows = np.arange(len(store))
    np.testing.assert_array_equal(stack.read(rows), store.read_images(rows).astype(np.float32))
    assert stack.pixel_size_angstrom == pytest.approx(store.pixel_size_angstrom)
