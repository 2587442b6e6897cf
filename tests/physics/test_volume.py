import torch

from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.volume import interpolate


def test_a_map_is_itself_at_its_voxels_linear_between_them_and_nothing_beyond() -> None:
    voxels = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(interpolate(voxels, lattice_points(6)).reshape(6, 6, 6), voxels)
    between = torch.tensor([[0.25, 0.0, 0.0], [0.0, -0.5, 0.0], [0.0, 0.0, 1.75]])
    expected = torch.stack(
        [
            torch.lerp(voxels[3, 3, 3], voxels[3, 3, 4], 0.25),
            (voxels[3, 2, 3] + voxels[3, 3, 3]) / 2,
            torch.lerp(voxels[4, 3, 3], voxels[5, 3, 3], 0.75),
        ]
    )
    torch.testing.assert_close(interpolate(voxels, between), expected)
    assert interpolate(voxels, torch.tensor([[-5.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).tolist() == [0, 0]
    # Points of each particle's own.
    assert interpolate(voxels, torch.zeros(2, 5, 3)).shape == (2, 5)
