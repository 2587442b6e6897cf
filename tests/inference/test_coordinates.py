"""What is uncertain of a particle beside its conformation does not become one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.blobs import blobs, microscope, relative_error
from support.stored_images import stored_images

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.inference.coordinates import find_slopes
from cryoformer_dist.initialization import linear_model
from cryoformer_dist.initialization.linear_model import fit_linear_latents
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid, lattice_points, radius_grid
from cryoformer_dist.physics.pose import Pose, random_rotations, rotation_from_axis_angle
from cryoformer_dist.physics.projection import project_points

BOX, COUNT, PIXEL = 16, 600, 14.0
SMALL = radius_grid(BOX, 3) <= 6


@pytest.fixture(scope="module")
def shaken() -> tuple[ParticleStore, torch.Tensor]:
    """Images of a rigid molecule, and the errors of their given poses: 4 degrees about each axis, 5 angstrom."""
    generator = torch.Generator().manual_seed(3)
    error = torch.randn(COUNT, 5, generator=generator) * torch.tensor([0.07] * 3 + [5.0] * 2)
    given = Pose(random_rotations(COUNT, generator), torch.zeros(COUNT, 2))
    rotation = rotation_from_axis_angle(error[:, :3]) @ given.rotation
    ctf = microscope(
        COUNT, defocus_u_angstrom=20_000.0, defocus_v_angstrom=19_000.0, phase_shift_deg=0.0, amplitude_contrast=0.1
    )
    pixel = torch.full((COUNT,), PIXEL)
    shown = blobs(0.75).scaled(0.5).projection(rotation, -error[:, 3:] / PIXEL, BOX)
    clean = fourier_to_image(shown * transfer_at(ctf, frequency_grid(BOX), pixel), BOX).float()
    images = clean * (0.5 / clean.var()).sqrt() + torch.randn(COUNT, BOX, BOX, generator=generator)
    return stored_images(images, given, ctf, pixel), error


def explained(values: torch.Tensor, by: torch.Tensor) -> float:
    """Share of the variance of values that a linear fit explains."""
    design = torch.nn.functional.pad(by, (1, 0), value=1.0)
    left = values - design @ torch.linalg.lstsq(design, values).solution
    return 1 - float(left.var() / values.var())


def moved(images: CroppedImages, offset: torch.Tensor) -> CroppedImages:
    """The same images at poses that are off by rotation vectors and shifts in angstrom."""
    return replace(
        images,
        rotation=rotation_from_axis_angle(offset[:, :3]) @ images.rotation,
        shift_pixels=images.shift_pixels - offset[:, 3:] / PIXEL,
    )


def test_errors_of_poses_are_not_taken_for_conformations(
    shaken: tuple[ParticleStore, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, error = shaken
    rotation = store.particles().pose(np.arange(COUNT)).rotation
    # In the molecule's frame, in which maps are shifted.
    shift = torch.einsum("bij,bi->bj", rotation, torch.nn.functional.pad(error[:, 3:], (0, 1)))
    uncertain = fit_linear_latents(store, np.arange(COUNT), SMALL, 3, 0)
    monkeypatch.setattr(linear_model.Spread, "to_begin", lambda *_, **__: Spread(amplitude=0.1))
    exact = fit_linear_latents(store, np.arange(COUNT), SMALL, 3, 0)
    told = [max(explained(axis[:, None], latent) for axis in shift.T) for latent in (exact, uncertain)]
    assert told[0] > 0.25
    assert told[1] < told[0] / 3


def test_slopes_are_what_images_change_by_as_poses_move(shaken: tuple[ParticleStore, torch.Tensor]) -> None:
    images = CroppedImages.of(shaken[0], np.arange(8), BOX)
    points = lattice_points(BOX)[SMALL.ravel()]
    density = blobs(0.75).scaled(0.5).density(points).float()

    def show(of: CroppedImages) -> torch.Tensor:
        placed = density.expand(len(of.rotation), -1)
        return project_points(placed, points, of.rotation, of.shift_pixels, BOX) * of.transfer

    slopes = find_slopes(images, density, show(images), points)
    inside = frequency_grid(BOX).norm(dim=-1) < 0.45
    for axis, step in enumerate([0.01, 0.01, 0.01, 0.2, 0.2]):
        offset = torch.zeros(8, 5)
        offset[:, axis] = step
        change = (show(moved(images, offset)) - show(moved(images, -offset))) / (2 * step)
        assert relative_error(slopes[:, axis] * inside, change * inside) < 0.02
