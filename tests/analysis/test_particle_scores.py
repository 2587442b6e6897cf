import warnings

import numpy as np
import pytest
import torch
from support.rotating_blobs import circle_truth

from cryoformer_dist.analysis.particle_scores import (
    REMEDIES,
    Poses,
    calibrate,
    find_other_causes,
    measure_pose_errors,
    score_poses,
    score_weights,
    stands_out,
)
from cryoformer_dist.errors import LatentsOtherwiseExplainedWarning
from cryoformer_dist.inference.other_causes import Candidate, Cause
from cryoformer_dist.physics.pose import rotation_from_axis_angle

PARTICLES, BOX_ANGSTROM = 800, 64.0


@pytest.fixture(scope="module")
def true() -> Poses:
    truth = circle_truth(PARTICLES, 8)
    return truth.rotation, truth.shift_angstrom


def test_pose_errors_are_those_that_were_put_in(true):
    rotation, shift = true
    turn = rotation_from_axis_angle(torch.tensor([[0.0, 0.0, np.deg2rad(10.0)]])).float().numpy()
    moved = shift + np.array([3.0, 4.0], dtype=np.float32)
    errors = measure_pose_errors((turn @ rotation, moved), true, BOX_ANGSTROM)
    assert errors.angle_deg_median == pytest.approx(10, abs=1e-2)
    assert errors.squared_frobenius_mean == pytest.approx(8 * np.sin(np.deg2rad(5)) ** 2, rel=1e-3)
    assert errors.shift_angstrom_mean == pytest.approx(5, rel=1e-4)
    assert errors.shift_box_fraction_mean == pytest.approx(5 / 64, rel=1e-4)


def test_a_drift_that_all_poses_share_is_told_apart_from_their_errors(true):
    """Poses turned with the molecule's frame, and moved with its centre, project the turned map alike."""
    turn = rotation_from_axis_angle(torch.tensor([[0.02, -0.03, 0.01]])).float().numpy()
    rotation = true[0] @ turn
    shift = true[1] + rotation[:, :2] @ np.array([1.0, 2.0, -1.0], dtype=np.float32)
    pose = score_poses(true, (rotation, shift), true, BOX_ANGSTROM)
    assert pose.after is pose.final
    assert pose.after.angle_deg_median == pytest.approx(np.rad2deg(np.sqrt(0.0014)), rel=1e-2)
    assert pose.after.shift_angstrom_mean > 1
    assert pose.after_in_true_frame.angle_deg_median < 0.05
    assert pose.after_in_true_frame.shift_angstrom_mean < 0.01


def test_every_particle_is_counted_before_and_after(true):
    rotation, shift = true
    pose = score_poses(true, (rotation, shift + 1), true, BOX_ANGSTROM)
    for histogram in (pose.angle_deg_histogram, pose.shift_angstrom_histogram):
        assert len(histogram.edges) == len(histogram.before) + 1
        assert sum(histogram.before) == PARTICLES
    assert sum(pose.angle_deg_histogram.after) == PARTICLES


def test_poses_that_were_kept_have_no_errors_afterwards(true):
    pose = score_poses(true, None, true, BOX_ANGSTROM)
    assert (pose.after, pose.after_in_true_frame, pose.angle_deg_histogram.after) == (None, None, None)
    assert pose.final is pose.before


def latents_of(rng: np.random.Generator, contrast: np.ndarray, leak: float) -> np.ndarray:
    """A motion along a curve, and so much of the contrast beside it."""
    state = rng.uniform(-1, 1, len(contrast))
    return np.stack([2 * state, state**2, leak * np.log(contrast)], axis=1).astype(np.float32)


@pytest.mark.parametrize("leak", [0.0, 3.0])
def test_contrast_in_the_latents_is_told_of_and_its_absence_is_not(leak):
    rng = np.random.default_rng(0)
    contrast = np.exp(0.3 * rng.normal(size=2000))
    found_amplitude = np.log(contrast)[:, None] + 0.1 * rng.normal(size=(2000, 1))
    candidates = [Candidate(Cause.AMPLITUDE, found_amplitude), Candidate(Cause.DEFOCUS, rng.normal(size=(2000, 1)))]
    latents = latents_of(rng, contrast, leak)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = find_other_causes(latents, candidates, contrast)
    amplitude, defocus = found.causes
    assert not stands_out(defocus)
    assert [type(each.message) for each in told] == [LatentsOtherwiseExplainedWarning] * (leak > 0)
    if leak:
        assert amplitude.explained > 0.3
        assert found.true_contrast > 0.95
        assert "amplitude explains" in str(told[0].message)
        assert "model.amplitude: posterior" in str(told[0].message)
    else:
        assert amplitude.explained < 0.01
        assert found.true_contrast < 0.02


def test_latents_that_do_not_vary_have_no_cause():
    assert find_other_causes(np.ones((50, 3), dtype=np.float32), []) is None


def test_every_cause_has_its_remedy():
    assert set(REMEDIES) == set(Cause)


def test_widths_that_are_right_are_called_so_and_doubled_ones_not():
    rng = np.random.default_rng(4)
    state = rng.uniform(0, 1, 1500)
    latents = (state + 0.05 * rng.normal(size=1500))[:, None]
    # What the prior makes of a look that errs by .05 is next to nothing, but at the ends.
    deviation = np.full_like(latents, 0.05)
    right, wide = (calibrate(latents, factor * deviation, state, 0.0, 1.5) for factor in (1, 2))
    assert right.z == pytest.approx(1, abs=0.12)
    assert right.within_width == pytest.approx(0.68, abs=0.06)
    assert wide.z == pytest.approx(right.z / 2, rel=0.15)
    assert (right.particles, right.nats_claimed) == (1500, 1.5)


def test_weights_that_name_junk_have_an_area_of_one_and_blind_ones_of_a_half():
    junk = np.repeat([0, 1, 2], [60, 20, 20])
    weight = np.where(junk == 1, 0.1, 0.9)
    alone = np.where(junk == 2, 0.2, 0.8)
    found = score_weights(weight, alone, junk)
    assert found.roc_auc == {"empty": 1.0, "neighbours": 1.0}
    assert (found.true_share, found.share) == (0.4, pytest.approx(0.26))
    blind = score_weights(np.full(100, 0.5), np.full(100, 0.5), junk)
    assert blind.roc_auc == {"empty": 0.5, "neighbours": 0.5}
