from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.occupancy import find_occupied, sphere
from cryoformer_dist.io.mrc import read_volume


def test_no_density_of_any_state_is_masked_away(swinging: Path) -> None:
    store = ParticleStore.open(swinging)
    calls: list[tuple[int, int]] = []
    consensus = back_project(store, np.arange(len(store)), progress=lambda *call: calls.append(call)).voxels
    mask = find_occupied(consensus, 230 / 32)
    assert calls[-1] == (1000, 1000)
    for path in sorted((swinging.parent / "particles" / "truth").glob("volume_*.mrc")):
        voxels = read_volume(path).voxels
        missed = (voxels > 0.04 * voxels.max()) & ~mask
        assert not missed.any(), f"{path.name}: {int(missed.sum())} voxels"
    # Worth having: most of the ball is empty.
    assert mask.sum() < 0.5 * sphere(32).sum()
    assert not (mask & ~sphere(32)).any()


def test_noise_alone_is_no_density() -> None:
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not find_occupied(noise, 7.0).any()


def test_a_single_blob_is_found_and_widened_by_one_voxel() -> None:
    volume = 0.01 * torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    volume[16, 18, 13] = 100.0
    mask = find_occupied(volume, 7.0)
    expected = torch.zeros_like(mask)
    # One voxel from the smoothing, one from the widening.
    expected[14:19, 16:21, 11:16] = True
    assert torch.equal(mask, expected)


def test_a_faint_edge_belongs_to_the_density_beside_it_and_is_noise_where_it_is_alone() -> None:
    volume = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    volume[12:20, 12:20, 12:16] += 10.0
    # As strong as three and a half deviations of means over 27 voxels.
    faint = 3.5 / 27**0.5
    edge, alone = volume.clone(), volume.clone()
    edge[11:21, 11:21, 16:20] = faint
    alone[11:21, 11:21, 23:27] = faint
    plain, beside, apart = (find_occupied(each, 7.0) for each in (volume, edge, alone))
    assert (beside & ~plain)[12:20, 12:20].sum() > 20
    assert torch.equal(apart, plain)


def test_the_sphere_stays_a_voxel_clear_of_the_faces() -> None:
    ball = sphere(16)
    assert ball[8, 8, 1]
    assert not ball[8, 8, 0]
    assert ball[8, 8, 15]
    assert torch.equal(ball, ball.transpose(0, 2))
