"""Poses against the true ones, or refined ones against the given."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, squared_frobenius
from cryoformer_dist.runs.pose_scores import Histogram, PoseErrors, PoseScores

_BINS = 40

Poses = tuple[Float[np.ndarray, "particles 3 3"], Float[np.ndarray, "particles 2"]]
"""Rotation matrices, and shifts in angstrom."""


def measure_pose_errors(poses: Poses, true: Poses, box_angstrom: float) -> PoseErrors:
    """Rotation and shift errors without any alignment of frames; ``box_angstrom`` is the side of an image."""
    squared, angle, shift = _measure_distances(poses, true)
    return PoseErrors(
        squared_frobenius_mean=float(squared.mean()),
        squared_frobenius_median=float(np.median(squared)),
        angle_deg_median=float(np.median(angle)),
        shift_angstrom_mean=float(shift.mean()),
        shift_angstrom_median=float(np.median(shift)),
        shift_box_fraction_mean=float(shift.mean() / box_angstrom),
    )


def score_poses(before: Poses, after: Poses | None, true: Poses, box_angstrom: float) -> PoseScores:
    """Errors and histograms of given poses and, where there are any, of refined ones.

    Parameters
    ----------
    before, after
        Given and refined poses.
    true
        Of the same particles.
    box_angstrom
        Side of an image.
    """
    in_true_frame = None
    if after is not None:
        aligned = align_frame(_as_pose(*true), _as_pose(*after))
        found = (aligned.rotation.numpy(), aligned.shift_angstrom.numpy())
        in_true_frame = measure_pose_errors(found, true, box_angstrom)
    both = {"before": before} | ({} if after is None else {"after": after})
    distances = {name: _measure_distances(poses, true) for name, poses in both.items()}
    return PoseScores(
        before=measure_pose_errors(before, true, box_angstrom),
        after=None if after is None else measure_pose_errors(after, true, box_angstrom),
        after_in_true_frame=in_true_frame,
        angle_deg_histogram=_count({name: angle for name, (_, angle, _) in distances.items()}),
        shift_angstrom_histogram=_count({name: shift for name, (_, _, shift) in distances.items()}),
    )


def _measure_distances(poses: Poses, others: Poses) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared Frobenius distance, angle in degrees and shift distance in angstrom per particle."""
    (rotation, shift), (other_rotation, other_shift) = poses, others
    first, second = (torch.from_numpy(each.astype(np.float64)) for each in (rotation, other_rotation))
    distance = np.linalg.norm(shift.astype(np.float64) - other_shift, axis=1)
    return squared_frobenius(first, second).numpy(), rotation_angle_deg(first, second).numpy(), distance


def _count(errors: Mapping[str, np.ndarray]) -> Histogram:
    """Histograms on common bins, which hold all but the largest hundredth."""
    top = max(float(np.percentile(values, 99)) for values in errors.values())
    edges = np.linspace(0, max(top, 1e-3), _BINS + 1)
    counts = {name: tuple(np.histogram(values, edges)[0].tolist()) for name, values in errors.items()}
    return Histogram(edges=tuple(edges.tolist()), before=counts["before"], after=counts.get("after"))


def _as_pose(rotation: np.ndarray, shift_angstrom: np.ndarray) -> Pose:
    return Pose(*(torch.from_numpy(np.asarray(each, dtype=np.float32)) for each in (rotation, shift_angstrom)))
