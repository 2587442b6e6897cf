import torch

from cryoformer_dist.initialization.occupancy import find_missed, sphere

BOX = 24


def _noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def test_noise_alone_activates_hardly_anything() -> None:
    mask = sphere(BOX) & (_noise(1) > 1.5)
    found = [find_missed(_noise(seed), mask) for seed in range(20)]
    assert sum(int(one.voxels.sum()) for one in found) < 0.01 * 20 * int((sphere(BOX) & ~mask).sum())
    assert max(one.share for one in found) < 0.01


def test_what_stands_out_outside_the_mask_is_found_and_widened_by_one_voxel() -> None:
    mask = torch.zeros(BOX, BOX, BOX, dtype=torch.bool)
    mask[4:8, 10:14, 10:14] = True
    residual = 0.01 * _noise()
    residual[14, 15, 9] = 100.0
    found = find_missed(residual, mask)
    expected = torch.zeros_like(mask)
    # One voxel from the smoothing, one from the widening.
    expected[12:17, 13:18, 7:12] = True
    assert torch.equal(found.voxels, expected)
    assert found.share > 0.99


def test_the_model_s_own_errors_inside_the_mask_are_nothing_missed() -> None:
    mask = torch.zeros(BOX, BOX, BOX, dtype=torch.bool)
    mask[9:14, 9:14, 9:14] = True
    residual = _noise()
    residual[mask] += 1000.0
    found = find_missed(residual, mask)
    assert not found.voxels.any()
    assert found.share == 0


def test_too_much_density_outside_is_nothing_missed() -> None:
    residual = _noise()
    residual[12, 12, 12] = -100.0
    assert not find_missed(residual, torch.zeros(BOX, BOX, BOX, dtype=torch.bool)).voxels.any()


def test_a_mask_that_fills_the_sphere_misses_nothing() -> None:
    found = find_missed(_noise(), sphere(BOX))
    assert not found.voxels.any()
    assert found.share == 0


def test_a_mask_is_found_on_a_grid_coarser_than_its_own() -> None:
    fine = 2 * BOX
    mask = torch.zeros(fine, fine, fine, dtype=torch.bool)
    mask[20:22, 20:22, 20:22] = True
    residual = 0.01 * _noise()
    residual[14, 15, 9] = 100.0
    found = find_missed(residual, mask).voxels
    assert found[28, 30, 18]
    assert 8 * 100 < int(found.sum()) < 8 * 150
    assert not (found & mask).any()
