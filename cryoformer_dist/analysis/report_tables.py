"""The verdict in words and tables: the scores and the training log of a run judged against floor and ceiling.

Where a column stands in the page is said by `figures/report_template.html`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cryoformer_dist.analysis.flexibility_files import FlexibilitySummary
from cryoformer_dist.analysis.map_scores import STILL
from cryoformer_dist.runs.image_scores import OracleScores
from cryoformer_dist.runs.pose_scores import PoseScores
from cryoformer_dist.runs.scores import Scores, ScoresAgainstTruth, ScoresAlone
from cryoformer_dist.runs.training_log import TrainingRecord
from cryoformer_dist.storage.records import as_json

MEASURES = (
    (
        "difference_map_correlation",
        "Motion as in truth",
        "Difference-map correlation: do maps change where and as the truth changes? One that does not move scores 0.",
    ),
    (
        "difference_map_amplitude",
        "Size of the motion",
        "Difference-map amplitude: the change against the true one. 1 is right, below 1 is damped.",
    ),
    (
        "auc_gap",
        "States told apart",
        "FSC gap: how much better, in FSC area, each map fits its own state than one half the range away.",
    ),
    (
        "fsc_area_own",
        "Each map against its own state",
        "FSC area: the mean FSC over all shells. High even without motion: read it with the gap.",
    ),
    ("fsc_area_distant", "Each map against a distant state", "FSC area against the state half the range away."),
    (
        "map_correlation",
        "Likeness to the true maps",
        "Correlation of voxels with the true state. High even without motion.",
    ),
    (
        "latent_rank_correlation",
        "Particles in the right order",
        "Rank correlation of the true state with its linear prediction from the latents, cross-validated.",
    ),
)
"""Of `BoundedScores`: name, heading, meaning."""

# Variation of maps, relative to their mean, below which the truth is rigid.
_RIGID = 1e-6


Tone = Literal["good", "partial", "none", "unknown"]
"""Colours of a page."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run or a sweep came to, in words."""

    tone: Tone
    headline: str
    text: str


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of a page.

    Attributes
    ----------
    name, value, note
        What it is, the number, and what it is to be compared with.
    share
        Where it lies from floor (0) to ceiling (1); None without them.
    """

    name: str
    value: str
    note: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """A measure with what it means: ours, the consensus map's (or chance), and the truth's (or the oracle's)."""

    name: str
    meaning: str
    ours: str
    floor: str
    ceiling: str


@dataclass(frozen=True, slots=True)
class PoseRow:
    """An error of the poses, as given and as refined; None where they were not."""

    name: str
    before: str
    after: str | None


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of training: last loss, medians over its reports, and time spent."""

    stage: str
    reports: int
    loss: str
    rate: str
    wait: str
    memory: str
    seconds: str
    workers: str


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """How well a map finds what moves in truth."""

    name: str
    meaning: str
    value: str


def put_in_words(scores: Scores | None) -> Verdict:
    """Say what a run recovered; no scores: that it has not been judged."""
    if scores is None:
        text = "The run directory holds no metrics.json. Run `evaluate` on it, then `report` again."
        return Verdict("unknown", "Not evaluated yet", text)
    if isinstance(scores, ScoresAlone):
        return _judge_without_truth(scores)
    if scores.true_map_variation <= _RIGID:
        return _judge_rigid_molecule(scores)
    return _judge_motion(scores)


def _judge_motion(scores: ScoresAgainstTruth) -> Verdict:
    score, gap = scores.maps.difference_map_correlation, scores.maps.auc_gap
    best_gap = scores.ceiling.auc_gap
    size = f"its amplitude is {scores.maps.difference_map_amplitude:.0%} of the true one"
    text = (
        f"The maps change as the true states do with a correlation of {score:.2f}, where a consensus map "
        f"scores 0 and the truth 1; {size}. Each map fits its own state better than one half the range away "
        f"by {gap:.3f} in FSC area (consensus {scores.consensus.auc_gap:.3f}, truth {best_gap:.3f})."
    )
    text += _describe_resolution(scores) + _describe_poses(scores.pose) + _describe_junk(scores)
    if score >= 0.8 and gap >= 0.4 * best_gap:
        return Verdict("good", "The motion was recovered", text)
    if score >= 0.4 and gap > 0.1 * best_gap:
        return Verdict("partial", "The motion was recovered in part", text)
    return Verdict("none", "The motion was not recovered", text)


def _describe_resolution(scores: ScoresAgainstTruth) -> str:
    resolution = np.median([state.resolution_angstrom for state in scores.states])
    consensus = np.median([state.consensus_resolution_angstrom for state in scores.states])
    still = scores.still.resolution_angstrom
    text = f" FSC 0.5 against the truth is {resolution:.1f} Å (the mean of these maps {still:.1f} Å, consensus "
    text += f"{consensus:.1f} Å, Nyquist {scores.nyquist_angstrom:.1f} Å)."
    if still <= 1.05 * resolution:
        text += " Their mean reaches the same figure, so resolution alone says nothing here."
    return text


def _judge_rigid_molecule(scores: ScoresAgainstTruth) -> Verdict:
    invented = scores.map_variation
    text = (
        f"The true maps are all alike; those of the run differ by {invented:.1%} of their mean (root mean square) and "
        f"agree with the truth at {scores.maps.map_correlation:.3f}."
    ) + _describe_poses(scores.pose)
    if invented <= STILL:
        return Verdict("good", "A rigid molecule stayed still", text)
    return Verdict("none", "Motion was invented", text)


def _describe_poses(pose: PoseScores) -> str:
    if pose.after is None:
        return ""
    before, after = pose.before.angle_deg_median, pose.after.angle_deg_median
    return f" Pose refinement moved the median rotation error from {before:.1f}° to {after:.1f}°."


def _describe_junk(scores: ScoresAgainstTruth) -> str:
    return f" {scores.junk} images of no particle were not counted." if scores.junk else ""


def _judge_without_truth(scores: ScoresAlone) -> Verdict:
    text = (
        "No truth is known for these particles, so nothing here says the motion is right. The maps of the "
        f"clusters differ by {scores.map_variation:.0%} of the mean map (root mean square) and agree "
        f"with the consensus at {scores.consensus_map_correlation:.2f}; the first latent axis holds "
        f"{scores.explained_variance[0]:.0%} of the variance. Before believing a motion, train both half-sets apart "
        "and look for it in each."
    )
    if scores.pose_change is not None:
        text += f" Refinement turned the poses by {scores.pose_change.angle_deg_median:.1f}° (median)."
    return Verdict("unknown", "Look, compare, then believe", text)


def list_key_figures(scores: Scores | None) -> list[Tile]:
    """Tiles of the report."""
    tiles: list[Tile] = []
    if isinstance(scores, ScoresAgainstTruth):
        tiles = list(_compare_with_bounds(scores))
    elif scores is not None:
        tiles = [
            Tile("Change between groups", f"{scores.map_variation:.1%}", "of the mean map, root mean square"),
            Tile("Agreement with the consensus", f"{scores.consensus_map_correlation:.2f}", "voxel correlation"),
            Tile("First axis of the motion", f"{scores.explained_variance[0]:.0%}", "of how the latents vary"),
        ]
    return tiles


def _compare_with_bounds(scores: ScoresAgainstTruth) -> Iterator[Tile]:
    for key, name, _ in MEASURES:
        if key.startswith("fsc_area"):
            continue
        ours, floor, best = (float(getattr(each, key)) for each in (scores.bounded, scores.consensus, scores.ceiling))
        reached = (ours - floor) / (best - floor) if best > floor else 0.0
        # Too much motion is as wrong as too little.
        share = min(max(min(reached, 2 - reached), 0.0), 1.0)
        yield Tile(name, f"{ours:.2f}", f"floor {floor:.2f} · truth {best:.2f}", share)


def list_measures(scores: Scores | None) -> list[MeasureRow]:
    """Rows of the table ours | consensus | truth, only measures that were taken."""
    if not isinstance(scores, ScoresAgainstTruth):
        return []
    bounds = (scores.bounded, scores.consensus, scores.ceiling)
    rows = [
        MeasureRow(name, meaning, *(f"{getattr(each, key):.3f}" for each in bounds)) for key, name, meaning in MEASURES
    ]
    return [*rows, *_list_local_measures(scores), *_list_state_errors(scores)]


def _list_local_measures(scores: ScoresAgainstTruth) -> Iterator[MeasureRow]:
    """Single particles' maps, and the moving region."""
    per_image, region = scores.per_image_fsc_auc, scores.moving_region
    yield MeasureRow(
        name="Maps of single particles",
        meaning="CryoBench's per-image FSC area, masked. A perfect score is (box / 2 − 1) / box.",
        ours=f"{per_image.masked_mean:.3f} ± {per_image.masked_std:.3f}",
        floor=f"{per_image.consensus_masked_mean:.3f}",
        ceiling=f"{per_image.perfect:.3f}",
    )
    if region is not None:
        where = "in the given mask" if region.mask == "given" else "where the truth moves"
        bounds = (region.scores, region.consensus, region.ceiling)
        yield MeasureRow(
            "Motion as in truth, moving region",
            f"Difference-map correlation only {where}: {region.share_of_box:.1%} of the box.",
            *(f"{each.difference_map_correlation:.3f}" for each in bounds),
        )


def _list_state_errors(scores: ScoresAgainstTruth) -> Iterator[MeasureRow]:
    """Error of the state of single particles, beside the oracle's where it was asked."""
    latents = scores.latents
    if latents.angle_error_deg is not None:
        meaning = "Mean error of the state predicted from the latents; chance is 90°."
        yield MeasureRow("Angle error", meaning, f"{latents.angle_error_deg:.1f}°", "90°", "0°")
    chance = f"{1 / max(len(scores.states), 1):.2f}"
    named = (
        ("Class accuracy, linear", latents.class_accuracy),
        ("Class accuracy, k-means", latents.cluster_accuracy),
    )
    for name, accuracy in named:
        if accuracy is not None:
            yield MeasureRow(name, "Particles named rightly.", f"{accuracy:.3f}", chance, "1")
    if scores.oracle is not None:
        yield from _list_oracle_errors(scores.oracle, len(scores.states))


def _list_oracle_errors(oracle: OracleScores, states: int) -> Iterator[MeasureRow]:
    named = (
        ("angle_error_deg", "Angle error of single images", "{:.1f}°", "90.0°"),
        # A guess in the middle of a uniform range errs by a quarter of it.
        ("mean_absolute_error", "Error of single images, share of the range", "{:.3f}", "0.250"),
        ("class_accuracy", "Class accuracy of single images", "{:.3f}", f"{1 / max(states, 1):.3f}"),
    )
    linear = (
        f"State of {oracle.particles} images predicted linearly from their latents. Ceiling: an oracle that knows the "
        "true maps and poses; the noise hides the rest."
    )
    near = "The mean state of the nearest particles in latent space, which also follows a curved path."
    key, name, form, chance = next(row for row in named if getattr(oracle.oracle, row[0]) is not None)
    ceiling = form.format(getattr(oracle.oracle, key))
    for reading, meaning, errors in (("linear", linear, oracle.ours), ("by neighbours", near, oracle.neighbours)):
        yield MeasureRow(f"{name}, {reading}", meaning, form.format(getattr(errors, key)), chance, ceiling)


_SUMMARY = {
    "per_image_fsc_auc": (
        "masked_mean", "still_masked_mean", "consensus_masked_mean", "mean", "still_mean", "consensus_mean", "perfect",
    ),
    "moving_region": ("difference_map_correlation", "auc_gap"),
    "oracle": (
        "angle_error_deg", "mean_absolute_error", "class_accuracy", "rank_correlation",
        "ours_angle_error_deg", "ours_mean_absolute_error", "ours_class_accuracy", "ours_rank_correlation",
        "neighbours_angle_error_deg", "neighbours_mean_absolute_error", "neighbours_class_accuracy",
        "neighbours_rank_correlation", "error_ratio", "neighbours_error_ratio",
    ),
}  # fmt: skip


def summarise(scores: Scores) -> list[str]:
    """Lines for the terminal, named as in metrics.json: every plain number, and the key numbers of the larger parts."""
    content = as_json(scores)
    shown = {key: value for key, value in content.items() if isinstance(value, int | float)}
    for part, keys in _SUMMARY.items():
        measured = content.get(part, {})
        shown |= {f"{part}.{key}": measured[key] for key in keys if key in measured}
    return [f"{key:<44} {value:.4g}" for key, value in shown.items()]


def list_pose_errors(scores: Scores | None) -> list[PoseRow]:
    """Pose errors before and after, as text; none without a truth."""
    if not isinstance(scores, ScoresAgainstTruth):
        return []
    before, after = scores.pose.before, scores.pose.after
    named = (
        ("angle_deg_median", "Rotation, median", "{:.2f}°"),
        ("squared_frobenius_mean", "Squared Frobenius, mean", "{:.4f}"),
        ("squared_frobenius_median", "Squared Frobenius, median", "{:.4f}"),
        ("shift_angstrom_mean", "Shift, mean", "{:.2f} Å"),
        ("shift_box_fraction_mean", "Shift, share of the box", "{:.4f}"),
    )
    return [
        PoseRow(name, form.format(getattr(before, key)), None if after is None else form.format(getattr(after, key)))
        for key, name, form in named
    ]


def list_detectors(summary: FlexibilitySummary) -> list[DetectorRow]:
    """Rows of how well maps find what moves in truth; none where that is not known."""
    truth = summary.truth
    if truth is None or truth.roc_auc is None:
        return []
    named = (
        (truth.roc_auc, "Flexibility map", "Standard deviation of our maps over states."),
        (truth.attention_variation_roc_auc, "Change of attention", "Over states, all channels together."),
        (truth.attention_roc_auc, f"Attention to query {summary.best_query}", "Picked by our flexibility map."),
        (truth.weak_density_roc_auc, "Weak mean density", "What anyone would call flexible in a rigid map: the floor."),
    )
    return [DetectorRow(name, meaning, f"{value:.3f}") for value, name, meaning in named]


def list_stages(records: Sequence[TrainingRecord]) -> list[StageRow]:
    """Throughput per stage."""
    # The records' clock goes on over resumes.
    spent = np.diff([record.seconds for record in records], prepend=0.0)
    rows = []
    for stage in dict.fromkeys(record.stage for record in records):
        at = [index for index, record in enumerate(records) if record.stage == stage]
        reports = [records[index] for index in at]
        rows.append(
            StageRow(
                stage=stage.replace("_", " "),
                reports=len(reports),
                loss=f"{reports[-1].loss:.4f}",
                rate=_format_median((report.particles_per_second for report in reports), "{:,.0f}"),
                wait=_format_median((report.data_wait_share for report in reports), "{:.1%}"),
                memory=_format_median((report.memory_gib for report in reports), "{:.2f}"),
                seconds=f"{spent[at].sum():,.0f}",
                workers=str(reports[-1].workers),
            )
        )
    return rows


def _format_median(values: Iterable[float], form: str) -> str:
    return form.format(float(np.median(list(values))))
