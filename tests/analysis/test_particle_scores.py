import numpy as np
import pytest
import torch
from support.rotating_blobs import circle_truth

from cryoformer_dist.analysis.particle_scores import Poses, measure_pose_errors, score_poses
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
