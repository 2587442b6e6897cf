"""What all particles make together on a device beside the CPU: as on the CPU, and never waited for in a loop."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.blobs import blobs, microscope
from support.other_device import DEVICE, bring_back, other_device
from support.stored_images import stored_images
from torch import Tensor

from cryoformer_dist.data import batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization import consensus
from cryoformer_dist.initialization.clustering import find_clusters
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.linear_model import fit_linear_latents
from cryoformer_dist.initialization.occupancy import find_occupied, sphere
from cryoformer_dist.physics.pose import Pose, random_rotations

BOX, PIXEL, COUNT = 24, 4.0, 200
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, made by the thread that wants them: another one would not know of the device."""
    monkeypatch.setattr(consensus, "_BLOCK", 20)
    monkeypatch.setattr(batch, "ahead", iter)


@pytest.fixture(scope="module")
def store() -> ParticleStore:
    generator = torch.Generator().manual_seed(0)
    pose = Pose(random_rotations(COUNT, generator), torch.randn(COUNT, 2, generator=generator))
    images = blobs(1.5).images(pose.rotation, -pose.shift_angstrom / PIXEL, BOX)
    noisy = images / images.std() + torch.randn(images.shape, generator=generator)
    return stored_images(noisy.half(), pose, microscope(COUNT), torch.full((COUNT,), PIXEL))


def _maps(store: ParticleStore, count: int, device: torch.device) -> Tensor:
    found = back_project(store, np.arange(count), device=device)
    return torch.stack([found.voxels, *found.halves])


def _mask(store: ParticleStore, count: int, device: torch.device) -> Tensor:
    return find_occupied(_maps(store, count, device)[0], PIXEL)


def _shell_weight(store: ParticleStore, count: int, device: torch.device) -> Tensor:
    return back_project(store, np.arange(count), device=device).shell_weight(sphere(BOX), PIXEL)


def _latents(store: ParticleStore, count: int, device: torch.device) -> Tensor:
    return fit_linear_latents(store, np.arange(count), sphere(BOX), 2, 0, device=device)


def _clusters(store: ParticleStore, count: int, device: torch.device) -> Tensor:
    points = store.particles().pose(np.arange(count)).shift_angstrom.to(device)
    return find_clusters(points, 7, 0, 5).centre


@pytest.mark.parametrize("make", [_maps, _mask, _shell_weight, _latents, _clusters])
def test_what_is_made_elsewhere_is_the_same(
    store: ParticleStore, make: Callable[[ParticleStore, int, torch.device], Tensor]
) -> None:
    expected, waits = make(store, COUNT, CPU), []
    for count in (COUNT // 2, COUNT):
        with other_device() as device:
            found = make(store, count, DEVICE)
        waits.append(device.waits)
    torch.testing.assert_close(bring_back(found), expected)
    # A spread is chosen now and then; nothing is asked of every block.
    assert waits[0] == waits[1] < 50
