import pytest
import torch

from cryoformer_dist.physics.neighbours import smooth, widen


def _one_voxel(z: int, y: int, x: int) -> torch.Tensor:
    voxels = torch.zeros(6, 6, 6)
    voxels[z, y, x] = 27.0
    return voxels


def test_smoothing_spreads_a_voxel_evenly_over_itself_and_its_26_neighbours() -> None:
    expected = torch.zeros(6, 6, 6)
    expected[1:4, 2:5, 3:6] = 1.0
    torch.testing.assert_close(smooth(_one_voxel(2, 3, 4)), expected)


def test_what_lies_beyond_the_box_counts_as_zero() -> None:
    smoothed = smooth(torch.ones(6, 6, 6))
    assert float(smoothed[2, 3, 2]) == pytest.approx(1.0)
    # A corner has 8 of 27 voxels inside, an edge 12, a face 18.
    assert float(smoothed[0, 0, 0]) == pytest.approx(8 / 27)
    assert float(smoothed[0, 5, 3]) == pytest.approx(12 / 27)
    assert float(smoothed[3, 3, 5]) == pytest.approx(18 / 27)


def test_widening_adds_the_neighbours_and_nothing_else() -> None:
    mask = _one_voxel(0, 3, 4) > 0
    expected = torch.zeros(6, 6, 6, dtype=torch.bool)
    expected[0:2, 2:5, 3:6] = True
    assert torch.equal(widen(mask), expected)


def test_an_empty_mask_stays_empty() -> None:
    assert not widen(torch.zeros(4, 4, 4, dtype=torch.bool)).any()
