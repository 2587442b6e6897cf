import math

import pytest
import torch

from cryoformer_dist.physics.grids import (
    centred_axis,
    frequency_grid,
    half_disc,
    half_plane_weight,
    lattice_points,
    radius_grid,
)


def test_centre_is_the_voxel_with_index_half_the_box():
    assert centred_axis(8).tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]
    radius = radius_grid(8, 3)
    assert radius.shape == (8, 8, 8)
    assert radius[4, 4, 4] == 0
    assert int((radius == 0).sum()) == 1
    assert float(radius_grid(8, 2)[4, 7]) == 3
    assert float(radius[0, 0, 0]) == pytest.approx(math.sqrt(48))


def test_lattice_points_run_in_the_order_of_a_ravelled_volume():
    points = lattice_points(6)
    # Voxel [z, y, x] = [5, 1, 2] of a box of 6.
    assert points[(5 * 6 + 1) * 6 + 2].tolist() == [2 - 3, 1 - 3, 5 - 3]
    assert torch.allclose(points.norm(dim=-1), radius_grid(6, 3).ravel())


def test_frequencies_are_those_of_a_wave_that_the_transform_finds():
    box = 16
    grid = frequency_grid(box)
    assert grid.shape == (box, box // 2 + 1, 2)
    assert grid[0, 0].tolist() == [0, 0]
    y, x = torch.meshgrid(centred_axis(box), centred_axis(box), indexing="ij")
    for row, column in ((3, 5), (13, 2)):
        kx, ky = grid[row, column]
        power = torch.fft.rfft2(torch.cos(2 * math.pi * (kx * x + ky * y))).abs()
        assert int(power.argmax()) == row * (box // 2 + 1) + column


def test_half_plane_counts_every_coefficient_of_the_full_plane():
    box = 12
    assert float(half_plane_weight(box).expand(box, -1).sum()) == box**2
    ones = torch.rand(box, box, generator=torch.Generator().manual_seed(0))
    full = torch.fft.fft2(ones).abs().square().sum()
    half = (torch.fft.rfft2(ones).abs().square() * half_plane_weight(box)).sum()
    assert float(half) == pytest.approx(float(full), rel=1e-5)


def test_the_frequencies_of_a_disc_are_half_of_it_and_the_same_in_every_box():
    index, frequency = half_disc(16, 5.0)
    assert torch.equal(frequency, frequency_grid(16).reshape(-1, 2)[index])
    assert index[0] == 0
    both = {(round(x), round(y)) for x, y in torch.cat([frequency, -frequency]).mul(16).tolist()}
    inside = radius_grid(16, 2) <= 5
    assert len(both) == 2 * len(frequency) - 1 == int(inside.sum())
    assert torch.equal((half_disc(24, 5.0)[1] * 24).round(), (frequency * 16).round())
