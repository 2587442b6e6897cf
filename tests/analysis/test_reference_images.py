import numpy as np
import pytest
import torch
from rotating_blobs import BOX, blobs

from cryoformer_dist.analysis.reference_images import Slices
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight, lattice_points
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.projection import project_points


@pytest.mark.parametrize("shift", [0.0, 2.3])
def test_slices_are_the_projections_that_the_training_makes(shift: float) -> None:
    volumes = blobs(np.array([0.0, 90.0, 200.0]))
    rotation = random_rotations(4, torch.Generator().manual_seed(1))
    shifts = torch.tensor([[shift, -0.5 * shift]]).repeat(4, 1)
    found = Slices(volumes).project(rotation, shifts)
    assert found.shape == (4, 3, BOX, BOX // 2 + 1)
    inside = frequency_grid(BOX).norm(dim=-1) < 0.5
    weight = half_plane_weight(BOX) * inside
    points = lattice_points(BOX)
    for index, voxels in enumerate(volumes):
        density = torch.from_numpy(voxels).reshape(1, -1).repeat(4, 1)
        expected = project_points(density, points, rotation, shifts, BOX)
        error = ((found[:, index] - expected).abs().square() * weight).sum()
        assert (error / (expected.abs().square() * weight).sum()).sqrt() < 2e-3
    assert found[:, :, ~inside].abs().max() == 0
