import numpy as np
import pytest
import torch
from support.blobs import microscope
from support.stored_images import stored_images

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.searched_images import SearchedImages
from cryoformer_dist.physics.grids import largest_disc
from cryoformer_dist.physics.pose import Pose, random_rotations

COUNT, BOX, LARGEST = 40, 24, 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noise() -> ParticleStore:
    """Images of noise; every third has pixels a quarter larger than the others."""
    generator = torch.Generator().manual_seed(0)
    pose = Pose(random_rotations(COUNT, generator), 10 * torch.randn(COUNT, 2, generator=generator))
    pixel_size = torch.where(torch.arange(COUNT) % 3 == 2, 5.0, 4.0)
    images = torch.randn(COUNT, BOX, BOX, generator=generator)
    return stored_images(images, pose, microscope(COUNT), pixel_size)


@pytest.mark.parametrize("largest", [LARGEST, BOX])
@pytest.mark.parametrize("box", [8, 14, LARGEST])
def test_images_of_every_box_are_those_that_were_cropped_to_it(noise: ParticleStore, box: int, largest: int) -> None:
    rows = np.array([3, 8, 20])
    flat_index, _ = largest_disc(box)
    held = SearchedImages.read(noise, rows, largest, CPU)
    coefficients, transfer = held.at(box, flat_index)
    expected = CroppedImages.of(noise, rows, box)
    # Held in half precision, as images are stored.
    torch.testing.assert_close(coefficients, expected.coefficients.flatten(1)[:, flat_index], atol=0.02, rtol=2e-3)
    torch.testing.assert_close(transfer, expected.transfer.flatten(1)[:, flat_index], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(held.given.shift_angstrom / -held.pixel_size_at(box), expected.shift_pixels)
    torch.testing.assert_close(held.given.rotation * held.magnification[:, None, None], expected.rotation)


def test_some_of_the_images_are_the_same_images(noise: ParticleStore) -> None:
    flat_index, _ = largest_disc(8)
    held = SearchedImages.read(noise, np.arange(COUNT), LARGEST, CPU)
    part = held[torch.tensor([5, 2])]
    assert len(part) == 2
    for whole, some in zip(held.at(8, flat_index), part.at(8, flat_index), strict=True):
        assert torch.equal(whole[[5, 2]], some)
    assert torch.equal(part.given.rotation, noise.particles().pose(np.array([5, 2])).rotation)
    nothing = SearchedImages.read(noise, np.arange(0), LARGEST, CPU)
    assert nothing.at(8, flat_index)[0].shape == (0, len(flat_index))
