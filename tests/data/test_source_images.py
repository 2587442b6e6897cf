from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.blobs import correlation
from support.simulated_particles import PIXEL_SIZE_ANGSTROM, replace_image, source_images, write_particles

from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.source_images import as_recorded, describe_corrections
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.io.particles import Correction, Imaging, ParticleTable
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_images, fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid

BOX = 32
CORRECTIONS = ("phases flipped", "multiplied by CTF")


def _corrected(images: torch.Tensor, table: ParticleTable, correction: Correction) -> torch.Tensor:
    """What another program makes of images as recorded."""
    pixel = torch.full((len(images),), PIXEL_SIZE_ANGSTROM)
    transfer = transfer_at(table.ctf_params(), frequency_grid(BOX), pixel)
    factor = {"none": torch.ones_like(transfer), "phases flipped": transfer.sign(), "multiplied by CTF": transfer}
    return fourier_to_image(image_to_fourier(images) * factor[correction], BOX)


def _as_told(table: ParticleTable, correction: Correction) -> ParticleTable:
    return replace(table, optics=(replace(table.optics[0], imaging=Imaging(correction)),))


def _store(folder: Path, written: Correction, told: Correction) -> ParticleStore:
    """A store of the same particles, corrected by another program before they were written."""
    table = write_particles(folder, particles=400, noise_ratio=4.0)
    for row, image in enumerate(_corrected(torch.from_numpy(source_images(table)), table, written)):
        replace_image(table, row, image.numpy())
    options = ConversionOptions(contrast="light")
    return convert_serially(plan_conversion(_as_told(table, told), folder / "s.zarr", options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    return _store(tmp_path_factory.mktemp("plain"), "none", "none")


def _consensus(store: ParticleStore) -> torch.Tensor:
    return back_project(store, np.arange(len(store))).voxels


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_corrected_images_give_the_store_and_the_map_of_the_plain_ones(
    plain: ParticleStore, tmp_path: Path, correction: Correction
) -> None:
    store = _store(tmp_path, correction, correction)
    rows = np.arange(400)
    images, wanted = (torch.from_numpy(each.read_images(rows).astype(np.float32)) for each in (store, plain))
    # But for the Nyquist lines, which astigmatism makes ambiguous and nobody compares.
    images, wanted = crop_images(images, BOX - 2), crop_images(wanted, BOX - 2)
    assert correlation(images, wanted).min() > (0.999999 if correction == "phases flipped" else 0.98)
    assert store.attributes.optics[0].imaging == Imaging(correction)
    # Their noise is as white, and as strong.
    assert store.attributes.noise[0].white
    assert store.attributes.noise[0].deviation == pytest.approx(plain.attributes.noise[0].deviation, rel=0.03)
    one, other = _consensus(store), _consensus(plain)
    assert float((one * other).sum() / (one.norm() * other.norm())) > 0.999
    assert (one - other).norm() < 0.04 * other.norm()


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_taken_for_plain_ones_they_give_another_map(
    plain: ParticleStore, tmp_path: Path, correction: Correction
) -> None:
    one, other = _consensus(_store(tmp_path, correction, "none")), _consensus(plain)
    assert float((one * other).sum() / (one.norm() * other.norm())) < 0.98


def test_what_a_multiplication_has_lost_is_not_blown_up(tmp_path: Path) -> None:
    table = _as_told(write_particles(tmp_path, particles=20), "multiplied by CTF")
    noise = torch.randn(20, BOX, BOX, generator=torch.Generator().manual_seed(0))
    # Errors that no CTF has touched, as of cutting a box.
    assert as_recorded(noise, table).std() < 10 * noise.std()


def test_images_of_which_nothing_is_said_are_left_alone(tmp_path: Path) -> None:
    table = write_particles(tmp_path, particles=20)
    images = torch.from_numpy(source_images(table))
    assert as_recorded(images, table) is images
    assert describe_corrections(table.optics) == []
    optics = (*_as_told(table, "phases flipped").optics, *table.optics)
    assert describe_corrections(optics) == ["phases flipped in 1 of 2 optics groups"]
