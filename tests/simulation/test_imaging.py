from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.simulation import imaging
from cryoformer_dist.simulation.imaging import AtomImager, Views, VolumeImager, load_volumes
from cryoformer_dist.simulation.molecule import PathMolecule

BOX, LENGTH_ANGSTROM, COUNT = 24, 120.0, 10


def _views(coordinate: float | None = None) -> Views:
    generator = torch.Generator().manual_seed(1)
    states = np.linspace(0, 1, COUNT) if coordinate is None else np.full(COUNT, coordinate)
    shift = 8 * torch.randn(COUNT, 2, generator=generator)
    return Views(states, random_rotations(COUNT, generator), shift)


@pytest.fixture(scope="module")
def atoms() -> AtomImager:
    random = np.random.default_rng(0)
    first = random.normal(scale=12, size=(40, 3))
    path = PathMolecule(np.stack([first, first + np.array([15.0, -10.0, 5.0])]), random.uniform(5, 8, 40))
    return AtomImager(path, BOX, LENGTH_ANGSTROM, sigma_angstrom=6.0)


def test_the_pixels_of_an_image_add_up_to_the_weight_of_all_atoms(atoms: AtomImager) -> None:
    images = fourier_to_image(atoms.project(_views()), BOX)
    torch.testing.assert_close(images.sum((1, 2)), torch.full((COUNT,), float(atoms.molecule.weight.sum())))


def test_the_map_along_the_beam_is_the_image(atoms: AtomImager) -> None:
    view = Views(np.array([0.3]), torch.eye(3)[None], torch.zeros(1, 2))
    image = fourier_to_image(atoms.project(view), BOX)[0]
    # What is in the corners of Fourier space, a map on a lattice does not say.
    torch.testing.assert_close(atoms.volume(0.3, BOX).sum(0), image, atol=2e-3 * float(image.max()), rtol=0)


def test_a_shift_moves_the_content_against_it(atoms: AtomImager) -> None:
    still = Views(np.zeros(1), torch.eye(3)[None], torch.zeros(1, 2))
    moved = Views(np.zeros(1), torch.eye(3)[None], torch.tensor([[10.0, -5.0]]))
    images = (fourier_to_image(atoms.project(views), BOX)[0] for views in (still, moved))
    before, after = images
    # Pixels of 5 angstrom: two to the left, one down.
    torch.testing.assert_close(after, before.roll((1, -2), (0, 1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("elements", [1, 3 * 40 * 4 * 13])
def test_images_do_not_depend_on_how_many_are_made_at_a_time(
    atoms: AtomImager, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    whole = atoms.project(_views())
    monkeypatch.setattr(imaging, "_BLOCK_ELEMENTS", elements)
    assert len(list(_views().blocks(40 * 4 * 13))) == (COUNT if elements == 1 else 4)
    torch.testing.assert_close(atoms.project(_views()), whole, atol=1e-3, rtol=1e-5)


def test_maps_give_the_images_of_the_atoms_they_came_from_each_class_its_own(atoms: AtomImager) -> None:
    maps = VolumeImager(torch.stack([atoms.volume(state, BOX) for state in (0.0, 1.0)]), LENGTH_ANGSTROM)
    for number in (0, 1):
        found, expected = maps.project(_views(float(number))), atoms.project(_views(float(number)))
        other = atoms.project(_views(1.0 - number))
        error, wrong = (
            (found - image).abs().square().sum() / image.abs().square().sum() for image in (expected, other)
        )
        assert float(error) < 1e-3
        assert float(wrong) > 0.1


def test_a_coarser_map_keeps_the_pixels_of_its_images(atoms: AtomImager) -> None:
    maps = VolumeImager(atoms.volume(0.0, BOX)[None], LENGTH_ANGSTROM)
    for imager in (atoms, maps):
        fine, coarse = imager.volume(0.0, BOX), imager.volume(0.0, 16)
        low = image_to_fourier(fine.sum(0))[0, 0].real / BOX**2
        assert float(image_to_fourier(coarse.sum(0))[0, 0].real / 16**2) == pytest.approx(float(low), rel=1e-3)


def test_maps_that_do_not_fit_the_images_are_refused_by_number(tmp_path: Path) -> None:
    write_volume(tmp_path / "fits.mrc", Volume(torch.ones(24, 24, 24), 5.0))
    write_volume(tmp_path / "small.mrc", Volume(torch.ones(16, 16, 16), 7.5))
    write_volume(tmp_path / "long.mrc", Volume(torch.ones(24, 24, 24), 11.0))
    for name, message in (
        ("none", r"source\.paths\.1: .*none\.mrc: no such file"),
        ("small", r"source\.paths\.1: .*small\.mrc has 16 voxels a side"),
        ("long", r"source\.paths\.1: .*long\.mrc spans 264 A, the images 120 A: set box_length_angstrom to 264"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_volumes([tmp_path / "fits.mrc", tmp_path / f"{name}.mrc"], BOX, LENGTH_ANGSTROM)
    assert len(load_volumes([tmp_path / "fits.mrc"] * 3, 20, LENGTH_ANGSTROM).volumes) == 3
