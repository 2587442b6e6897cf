"""Searches on a device beside the CPU: they find what they find on the CPU, and wait for it once a round at most."""

import numpy as np
import pytest
import torch
from support.blobs import blobs, microscope
from support.other_device import DEVICE, other_device
from support.stored_images import stored_images

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.linear_model import fit_principal_maps
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.initialization.pose_search import LinearConformations, search_poses, search_poses_by_conformation
from cryoformer_dist.initialization.search_rounds import SearchRound
from cryoformer_dist.physics.pose import Pose, random_rotations, rotation_from_axis_angle

BOX, PIXEL, COUNT = 24, 4.0, 280
CPU = torch.device("cpu")
ROUND = SearchRound(8, 8.0, 20, 0.5, 0.5)


@pytest.fixture(scope="module")
def store() -> ParticleStore:
    """Images of a phantom at poses that are a few degrees off."""
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotations(COUNT, generator)
    images = blobs(1.5).images(rotation, torch.zeros(COUNT, 2), BOX)
    noisy = images / images.std() + torch.randn(images.shape, generator=generator)
    off = rotation_from_axis_angle(0.1 * torch.randn(COUNT, 3, generator=generator))
    given = Pose(rotation @ off, torch.randn(COUNT, 2, generator=generator))
    return stored_images(noisy.half(), given, microscope(COUNT), torch.full((COUNT,), PIXEL))


def _search(store: ParticleStore, count: int, device: torch.device) -> Pose:
    return search_poses(store, np.arange(count), 0, device=device).pose


def _search_by_conformation(store: ParticleStore, count: int, device: torch.device) -> Pose:
    rows = np.arange(count)
    latents = torch.randn(count, 2, generator=torch.Generator().manual_seed(1)).to(device)
    known = LinearConformations(latents, fit_principal_maps(store, rows, sphere(BOX), latents))
    return search_poses_by_conformation(store, rows, store.particles().pose(rows), known, [ROUND], 0, device=device)


@pytest.mark.parametrize("search", [_search, _search_by_conformation])
def test_a_search_elsewhere_finds_the_same_poses(store: ParticleStore, search) -> None:
    expected = search(store, 60, CPU)
    with other_device():
        found = search(store, 60, DEVICE)
    torch.testing.assert_close(found.rotation, expected.rotation)
    torch.testing.assert_close(found.shift_angstrom, expected.shift_angstrom)


def test_the_device_is_waited_for_no_oftener_for_more_particles(store: ParticleStore) -> None:
    waits = []
    for count in (60, COUNT):
        with other_device() as device:
            _search(store, count, DEVICE)
        waits.append(device.waits)
    assert waits[0] == waits[1] < 40
