import numpy as np
import pytest
import torch
from support.stored_images import stored_images

from cryoformer_dist.data.cropped_images import CroppedImages, read_cropped
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import CTFParams, transfer_at
from cryoformer_dist.physics.fourier import crop_half_plane, fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.pose import Pose, random_rotations
from cryoformer_dist.physics.projection import magnification

COUNT, BOX, SMALL = 300, 24, 16


@pytest.fixture(scope="module")
def noise() -> ParticleStore:
    """Images of noise alone; every third has pixels a quarter larger than the others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, BOX, BOX, generator=generator)
    pose = Pose(random_rotations(COUNT, generator), 10 * torch.randn(COUNT, 2, generator=generator))
    fields = (10_000.0, 12_000.0, 30.0, 0.0, 300.0, 2.7, 0.1)
    ctf = CTFParams(*(torch.full((COUNT,), value) for value in fields))
    pixel_size = torch.where(torch.arange(COUNT) % 3 == 2, 5.0, 4.0)
    return stored_images(images, pose, ctf, pixel_size)


def test_noise_keeps_its_unit_variance_at_a_smaller_box(noise: ParticleStore) -> None:
    images = read_cropped(noise, np.arange(COUNT), SMALL)
    assert images.shape == (COUNT, SMALL, SMALL)
    # The Nyquist lines of a cropped image are empty: 15 of 16 frequencies remain along each axis.
    assert float(images.std()) == pytest.approx((SMALL - 1) / SMALL, rel=0.02)


def test_an_image_keeps_its_low_frequencies(noise: ParticleStore) -> None:
    rows = np.array([7, 0])
    whole = image_to_fourier(torch.from_numpy(noise.read_images(rows)).float())
    expected = crop_half_plane(whole, SMALL) * (SMALL / BOX)
    found = image_to_fourier(read_cropped(noise, rows, SMALL))
    inside = frequency_grid(SMALL).abs().amax(-1) < 0.5
    torch.testing.assert_close(found[:, inside], expected[:, inside], atol=1e-4, rtol=1e-4)


def test_what_makes_a_map_an_image_is_in_cropped_pixels_and_magnified(noise: ParticleStore) -> None:
    rows = np.array([1, 2])
    cropped, particles = CroppedImages.of(noise, rows, SMALL), noise.particles()
    stored = torch.tensor([4.0, 5.0])
    pixel, scale = stored * BOX / SMALL, magnification(4.0, stored)
    assert float(scale[0]) == 1
    assert float(scale[1]) == pytest.approx(0.8)
    pose = particles.pose(rows)
    torch.testing.assert_close(cropped.rotation, pose.rotation * scale[:, None, None])
    torch.testing.assert_close(cropped.shift_pixels, -pose.shift_angstrom / pixel[:, None])
    transfer = transfer_at(particles.ctf(rows), frequency_grid(SMALL), pixel)
    torch.testing.assert_close(cropped.transfer, transfer * scale[:, None, None])
    images = fourier_to_image(cropped.coefficients, SMALL)
    torch.testing.assert_close(images, read_cropped(noise, rows, SMALL), atol=1e-5, rtol=1e-5)


def test_other_poses_take_the_place_of_the_stored_ones(noise: ParticleStore) -> None:
    other = Pose(random_rotations(2, torch.Generator().manual_seed(9)), torch.tensor([[6.0, 0.0], [0.0, -12.0]]))
    cropped = CroppedImages.of(noise, np.array([0, 1]), SMALL, other)
    torch.testing.assert_close(cropped.rotation, other.rotation)
    torch.testing.assert_close(cropped.shift_pixels, torch.tensor([[-1.0, 0.0], [0.0, 2.0]]))


def test_blocks_hold_every_particle_once_in_order(noise: ParticleStore) -> None:
    cropped = CroppedImages.of(noise, np.arange(10), SMALL)
    blocks = list(cropped.blocks(4))
    assert [part for part, _ in blocks] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert torch.equal(torch.cat([block.coefficients for _, block in blocks]), cropped.coefficients)
    assert torch.equal(torch.cat([block.shift_pixels for _, block in blocks]), cropped.shift_pixels)
