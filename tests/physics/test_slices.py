import torch
from phantoms import blobs, relative_error, rotations

from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.physics.slices import VolumeSlices


def test_a_slice_is_the_transform_of_the_projected_map() -> None:
    voxels, rotation = torch.stack([blobs().voxels(32), blobs(2.0).voxels(32)]), rotations()
    slices = VolumeSlices(voxels, shell=13)
    found = slices.at(rotation)
    assert found.shape == (2, len(rotation), len(slices.place))
    for one, everywhere in zip(found, voxels.reshape(2, 1, -1), strict=True):
        density = everywhere.expand(len(rotation), -1)
        projected = project_points(density, lattice_points(32), rotation, torch.zeros(len(rotation), 2), 32)
        expected = projected.flatten(1)[:, slices.place]
        assert max(relative_error(seen, other) for seen, other in zip(one, expected, strict=True)) < 0.03
        assert relative_error(one.roll(1, 0), expected) > 0.3


def test_poses_may_come_in_any_arrangement() -> None:
    slices, rotation = VolumeSlices(blobs().voxels(16)[None], shell=7), rotations()[:6]
    assert torch.equal(slices.at(rotation.reshape(2, 3, 3, 3)).reshape(1, 6, -1), slices.at(rotation))


def test_frequencies_are_half_of_the_disc_about_zero_which_itself_says_nothing() -> None:
    slices = VolumeSlices(blobs().voxels(32)[None], shell=13)
    radius = slices.frequency.norm(dim=-1) * 32
    assert 0 < float(radius.min()) <= 1
    assert 12 < float(radius.max()) <= 13
    both = torch.cat([slices.frequency, -slices.frequency])
    assert len(torch.unique(both, dim=0)) == 2 * len(slices.frequency)
    assert len(both) == int((lattice_points(64)[:, :2].unique(dim=0).norm(dim=1) <= 13).sum()) - 1
