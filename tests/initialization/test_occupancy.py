from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.occupancy import occupied, sphere
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.lattice import Lattice


def test_no_density_of_any_state_is_masked_away(swinging: Path) -> None:
    store = ParticleStore.open(swinging)
    calls: list[tuple[int, int]] = []
    consensus = back_project(store, np.arange(len(store)), progress=lambda *call: calls.append(call)).voxels
    mask = occupied(consensus, 230 / 32)
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
    assert not occupied(noise, 7.0).any()


def test_a_single_blob_is_found_and_widened_by_one_voxel() -> None:
    volume = 0.01 * torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    volume[16, 18, 13] = 100.0
    mask = occupied(volume, 7.0)
    expected = torch.zeros_like(mask)
    # One voxel from the smoothing, one from the widening.
    expected[14:19, 16:21, 11:16] = True
    assert torch.equal(mask, expected)


def test_the_sphere_stays_a_voxel_clear_of_the_faces() -> None:
    ball = sphere(16)
    assert ball[8, 8, 1]
    assert not ball[8, 8, 0]
    assert ball[8, 8, 15]
    assert torch.equal(ball, ball.transpose(0, 2))


def test_a_lattice_holds_the_points_of_its_mask_in_the_order_of_the_volume() -> None:
    mask = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    lattice = Lattice.of(mask, 3, 0)
    back = torch.zeros(8**3, dtype=torch.bool)
    back[lattice.flat_index] = True
    assert torch.equal(back.reshape(8, 8, 8), mask)
    assert torch.equal(lattice.points_pixels, lattice_points(8)[lattice.flat_index])


def test_shifted_copies_stay_within_a_voxel_and_come_from_the_seed() -> None:
    mask = sphere(8)
    one, same, other = Lattice.of(mask, 5, 0), Lattice.of(mask, 5, 0), Lattice.of(mask, 5, 1)
    assert one.offsets_pixels.shape == (5, 3)
    assert one.offsets_pixels.abs().max() <= 0.5
    assert torch.equal(one.offsets_pixels, same.offsets_pixels)
    assert not torch.equal(one.offsets_pixels, other.offsets_pixels)
    assert torch.equal(Lattice.of(mask, 1, 0).offsets_pixels, torch.zeros(1, 3))


def test_a_coarser_lattice_covers_the_same_places_with_fewer_points() -> None:
    fine = Lattice.of(sphere(16), 3, 0)
    coarse = fine.coarsened(16, 8)
    assert torch.equal(coarse.points_pixels, lattice_points(8)[coarse.flat_index] * 2)
    assert torch.equal(coarse.offsets_pixels, fine.offsets_pixels * 2)
    distance = torch.cdist(fine.points_pixels, coarse.points_pixels).min(1).values
    # Half a cell's diagonal, but for the last plane, whose nearest neighbour lies outside the box.
    assert (distance <= 3**0.5 + 1e-5).float().mean() > 0.9
    assert len(coarse.points_pixels) < len(fine.points_pixels) / 5
