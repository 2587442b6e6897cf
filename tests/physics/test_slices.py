import pytest
import torch
from support.blobs import blobs, relative_error, rotations

from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight, lattice_points
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.physics.slices import SplineSlices, TrilinearSlices


def test_a_slice_is_the_transform_of_the_projected_map() -> None:
    voxels, rotation = torch.stack([blobs().voxels(32), blobs(2.0).voxels(32)]), rotations()
    slices = TrilinearSlices(voxels, shell=13)
    found = slices.at(rotation)
    assert found.shape == (2, len(rotation), len(slices.flat_index))
    for one, everywhere in zip(found, voxels.reshape(2, 1, -1), strict=True):
        density = everywhere.expand(len(rotation), -1)
        projected = project_points(density, lattice_points(32), rotation, torch.zeros(len(rotation), 2), 32)
        expected = projected.flatten(1)[:, slices.flat_index]
        assert max(relative_error(seen, other) for seen, other in zip(one, expected, strict=True)) < 0.03
        assert relative_error(one.roll(1, 0), expected) > 0.3


def test_a_map_is_cut_alike_whatever_others_are_there() -> None:
    maps, rotation = (
        torch.stack([(1 + index) * blobs(1.0 + 0.5 * index).voxels(16) for index in range(7)]),
        rotations()[:3],
    )
    together = TrilinearSlices(maps, shell=7)
    alone = torch.cat([TrilinearSlices(one[None], shell=7).at(rotation) for one in maps])
    # Batches of transforms round otherwise than single ones on some processors: alike to the precision of float32.
    assert relative_error(together.at(rotation), alone) < 1e-6
    for count in (1, 5, 9):
        leading = together.leading(count)
        assert leading.maps == min(count, 7)
        assert relative_error(leading.at(rotation), alone[:count]) < 1e-6


def test_poses_may_come_in_any_arrangement() -> None:
    slices, rotation = TrilinearSlices(blobs().voxels(16)[None], shell=7), rotations()[:6]
    assert torch.equal(slices.at(rotation.reshape(2, 3, 3, 3)).reshape(1, 6, -1), slices.at(rotation))


def test_frequencies_are_half_of_the_disc_about_zero_which_itself_says_nothing() -> None:
    slices = TrilinearSlices(blobs().voxels(32)[None], shell=13)
    radius = slices.frequency.norm(dim=-1) * 32
    assert 0 < float(radius.min()) <= 1
    assert 12 < float(radius.max()) <= 13
    both = torch.cat([slices.frequency, -slices.frequency])
    assert len(torch.unique(both, dim=0)) == 2 * len(slices.frequency)
    assert len(both) == int((lattice_points(64)[:, :2].unique(dim=0).norm(dim=1) <= 13).sum()) - 1


@pytest.mark.parametrize("shift", [0.0, 2.3])
def test_spline_slices_are_the_projections_that_the_training_makes(shift: float) -> None:
    voxels, rotation = torch.stack([blobs().voxels(32), blobs(2.0).voxels(32)]), rotations()
    particles = len(rotation)
    shifts = torch.tensor([[shift, -0.5 * shift]]).expand(particles, -1)
    found = SplineSlices(voxels).project(rotation, shifts)
    assert found.shape == (particles, 2, 32, 17)
    inside = frequency_grid(32).norm(dim=-1) < 0.5
    weight = (half_plane_weight(32) * inside).sqrt()
    for index, everywhere in enumerate(voxels.reshape(2, 1, -1)):
        density = everywhere.expand(particles, -1)
        expected = project_points(density, lattice_points(32), rotation, shifts, 32)
        assert relative_error(found[:, index] * weight, expected * weight) < 2e-3
    assert found[:, :, ~inside].abs().max() == 0
