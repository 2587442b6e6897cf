import numpy as np
import pytest
from support.rotating_blobs import blobs

from cryoformer_dist.analysis.map_scores import score_maps, score_region
from cryoformer_dist.analysis.masks import find_moving_voxels, soften

STATES = 8
TRUTH = blobs(np.arange(STATES) * 360.0 / STATES)
INSIDE = find_moving_voxels(TRUTH)
MASK = soften(INSIDE)


def region(maps: np.ndarray):
    return score_region(maps.astype(np.float32), TRUTH, INSIDE, MASK)


def test_inside_the_moving_region_the_mean_map_scores_nothing_and_the_truth_one():
    still = region(np.stack([TRUTH.mean(axis=0)] * STATES))
    assert still.difference_map_correlation == 0
    assert still.difference_map_amplitude == 0
    assert still.auc_gap == pytest.approx(0, abs=1e-6)
    best = region(TRUTH)
    assert best.difference_map_correlation == pytest.approx(1)
    assert best.difference_map_amplitude == pytest.approx(1)
    assert best.fsc_area_own == pytest.approx(1, abs=1e-5)
    assert best.auc_gap > 0.25


def test_maps_of_the_wrong_states_score_nothing_in_the_region():
    wrong = region(np.roll(TRUTH, STATES // 2, axis=0))
    assert wrong.difference_map_correlation <= 0
    assert wrong.auc_gap < 0


def test_noise_outside_the_region_is_not_seen_inside():
    noise = np.random.default_rng(0).normal(size=TRUTH.shape) * ~(MASK > 0)
    noise -= noise.mean(axis=(1, 2, 3), keepdims=True) * (~(MASK > 0)).size / (~(MASK > 0)).sum() * ~(MASK > 0)
    noisy = TRUTH + 0.3 * noise
    assert score_maps(noisy.astype(np.float32), TRUTH).difference_map_correlation < 0.5
    assert region(noisy).difference_map_correlation == pytest.approx(1, abs=1e-3)
    assert region(noisy).fsc_area_own > 0.98


def test_region_scores_ignore_scale_and_offset_even_one_per_map():
    noisy = TRUTH + 0.05 * np.random.default_rng(0).normal(size=TRUTH.shape)
    plain = region(noisy)
    moved = region(7 * noisy + np.linspace(-3, 3, STATES).reshape(-1, 1, 1, 1))
    for name in plain.__slots__:
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=1e-3), name
