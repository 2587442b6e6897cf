"""What was found of single particles: poses, weights and widths against the truth, latents against other causes."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata

from cryoformer_dist.analysis.latent import PREDICTION_DIMENSIONS, find_principal_axes, standardise
from cryoformer_dist.analysis.truth import state_distance
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import LatentsOtherwiseExplainedWarning
from cryoformer_dist.inference.other_causes import Candidate, Cause, explain_by, predict_from
from cryoformer_dist.inference.width import find_width, predict_state
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, squared_frobenius
from cryoformer_dist.runs.image_scores import Calibration, JunkFound, OtherCause, OtherCauses
from cryoformer_dist.runs.pose_scores import Histogram, PoseErrors, PoseScores
from cryoformer_dist.simulation.nuisances import Junk

_BINS = 40
CALIBRATED = 2000
"""Particles whose widths are held against their errors."""
MUCH_EXPLAINED = 0.05
"""Of the latents' variance, beyond chance, by something that is no conformation."""
FEWEST_TO_WARN = 500
"""Particles."""
MUCH_TOLD = 0.5
"""Of the variance of something that is no conformation, by the latents. Less is no leak: of faint images less is known,
and what is not known well lies nearer the middle."""

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


def calibrate(
    latents: Float[np.ndarray, "particles latent"],
    deviation: Float[np.ndarray, "particles latent"],
    state: Float[np.ndarray, " particles"],
    period: float,
    nats_claimed: float | None,
) -> Calibration | None:
    """Errors of the states that latents predict, against the widths of the latents.

    Parameters
    ----------
    latents, deviation, state
        One row per particle; of many, `CALIBRATED` evenly spread are asked.
    period
        Of the state; 0 for a line.
    nats_claimed
        What the run says an image says.

    Returns
    -------
    Calibration | None
        None where the latents do not vary.
    """
    chosen = np.arange(len(latents))[:: stride_for(len(latents), CALIBRATED)]
    latents, deviation, state = latents[chosen].astype(np.float64), deviation[chosen], state[chosen]
    coordinates = standardise(latents)
    if not coordinates.shape[1]:
        return None
    predicted = predict_state(coordinates, state, period)
    width = find_width(latents, deviation, predicted, period)
    error = state_distance(predicted, state, period)
    return Calibration(
        particles=len(state),
        z=float(np.sqrt(np.square(error / width.clip(min=1e-12)).mean())),
        within_width=float((error <= width).mean()),
        width=float(np.median(width)),
        error=float(np.median(error)),
        nats_claimed=nats_claimed,
    )


def score_weights(
    weight: Float[np.ndarray, " particles"], alone: Float[np.ndarray, " particles"], junk: Int[np.ndarray, " particles"]
) -> JunkFound:
    """How well weights tell particles from junk.

    Parameters
    ----------
    weight, alone
        How probable it is that an image shows a particle, with or without something beside it; and without.
    junk
        Kind of what it shows, 0 for a particle.
    """
    told = {
        kind.name.lower(): roc_auc(*(each[junk == number] for number in (Junk.NONE, kind)))
        for kind, each in ((Junk.EMPTY, weight), (Junk.NEIGHBOURS, alone), (Junk.BLOBS, weight))
        if (junk == kind).any() and (junk == Junk.NONE).any()
    }
    return JunkFound(float((1 - weight).mean()), float((junk != Junk.NONE).mean()), told)


def roc_auc(good: Float[np.ndarray, " particles"], others: Float[np.ndarray, " others"]) -> float:
    """Chance that one of the good has the higher value; of equals, half."""
    rank = rankdata(np.concatenate([good, others]))[: len(good)]
    return float((rank.mean() - (len(good) + 1) / 2) / len(others))


def find_other_causes(
    latents: Float[np.ndarray, "particles latent"],
    candidates: Iterable[Candidate],
    true_contrast: Float[np.ndarray, " particles"] | None = None,
) -> OtherCauses | None:
    """What else than conformation explains latents.

    Parameters
    ----------
    latents
        Of particles; those whose images show something else left out.
    candidates
        What is known of the same particles.
    true_contrast
        Of each, where a truth says.

    Returns
    -------
    OtherCauses | None
        None where the latents do not vary.

    Warns
    -----
    LatentsOtherwiseExplainedWarning
        If something explains more of them than chance, and enough to be seen in a latent map.
    """
    axes = find_principal_axes(latents, PREDICTION_DIMENSIONS)
    if axes.explained_variance.sum() <= 0:
        return None
    coordinates = axes.project(latents)
    found = [OtherCause(**asdict(explain_by(candidate, coordinates))) for candidate in candidates]
    # Of few particles much is explained by chance.
    for cause in filter(stands_out, found if len(latents) >= FEWEST_TO_WARN else []):
        warnings.warn(put_cause_in_words(cause), LatentsOtherwiseExplainedWarning, stacklevel=2)
    told = None
    if true_contrast is not None and np.ptp(true_contrast) > 0:
        told = predict_from(coordinates, np.log(true_contrast.clip(min=1e-6))[:, None].astype(np.float64))
    return OtherCauses(len(latents), tuple(found), told)


def stands_out(cause: OtherCause) -> bool:
    """Whether a cause explains much of the latents, beyond chance, or can be read off them."""
    return cause.explained - cause.floor > MUCH_EXPLAINED or (cause.told or 0.0) > MUCH_TOLD


def put_cause_in_words(cause: OtherCause) -> str:
    """What was found of a cause, and what to do."""
    told = "" if cause.told is None else f"; the latents tell {cause.told:.0%} of it"
    return (
        f"{cause.name} explains {cause.explained:.0%} of how the latents vary (chance: {cause.floor:.1%}), most of all "
        f"their axis {cause.axis} ({cause.axis_explained:.0%}){told}: that part of the latents may be no conformation. "
        f"{REMEDIES[Cause(cause.name)]}"
    )


REMEDIES: Mapping[Cause, str] = {
    Cause.AMPLITUDE: "Set model.amplitude: posterior, if it is not; else compare maps along that axis: if they only "
    "grow fainter, leave the axis out, or train on particles of like contrast",
    Cause.IMAGE_POWER: "Look for junk, ice and carbon among the images of the highest power and leave them out; set "
    "model.amplitude: posterior, if it is not. A part that only some particles have makes their images stronger, too",
    Cause.DEFOCUS: "Refine the defocus of each particle, or leave out the micrographs at the ends of the range",
    Cause.VIEW: "Some views show the motion and others do not, or poses are off in some views: refine the poses again "
    "without the flexible part, or set model.pose.form: posterior",
    Cause.POSE_CHANGE: "A motion may have been taken for a turn of the whole molecule: compare with a run at the given "
    "poses (model.pose.form: given)",
    Cause.OPTICS_GROUP: "Sessions may hold different molecules, doses or pixel sizes: check the pixel size of each, "
    "and train the largest group alone",
    Cause.PLACE_IN_FILE: "A file sorted by class would show that; else micrographs or grids may differ: train on the "
    "first and the second half of the file apart, and believe what both show",
}
