"""A sweep's folder: its configuration, and what its trials came to and cost, as their own files tell."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cryoformer_dist.config.loading import load_config
from cryoformer_dist.config.sweep import Scalar, SweepConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.layout import SWEEP
from cryoformer_dist.runs.scores import Scores, ScoresAgainstTruth, read_scores
from cryoformer_dist.runs.training_log import read_records_so_far
from cryoformer_dist.runs.trial import epochs_done, read_epochs, read_outcome, read_trial, trial_folders

State = Literal["finished", "stopped", "failed", "unfinished"]
_OF_MAPS = (
    "difference_map_correlation", "difference_map_amplitude", "map_correlation", "auc_gap", "fsc_area_own",
    "latent_rank_correlation",
)  # fmt: skip
_OF_EPOCHS = (*_OF_MAPS, "resolution_angstrom")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What is known of a trial.

    Attributes
    ----------
    folder
        Its run directory.
    scores
        The headline scores of its metrics.json, and its last loss; of its last epoch when it was not judged.
    curve
        One entry per epoch: ``epoch``, ``loss`` and scores.
    epochs, of
        Epochs trained, and those planned.
    hours, cpu_hours, gpu_hours
        Time taken; CPU and GPU time used by its process (held by its workers when there are several).
    """

    folder: Path
    name: str
    variant: str | None
    seed: int
    parameters: Mapping[str, Scalar]
    state: State
    error: str | None
    scores: Mapping[str, float]
    curve: tuple[Mapping[str, float], ...]
    epochs: int
    of: int
    hours: float
    cpu_hours: float
    gpu_hours: float


@dataclass(frozen=True, slots=True)
class Setting:
    """One variant or set of values, over its seeds.

    Attributes
    ----------
    name
        Without the seed.
    trials
        All of its trials.
    mean, spread
        Of each score over the finished trials; the spread is the standard deviation, None with one trial only.
    """

    name: str
    variant: str | None
    parameters: Mapping[str, Scalar]
    trials: tuple[TrialResult, ...]
    mean: Mapping[str, float]
    spread: Mapping[str, float | None]

    @property
    def finished(self) -> list[TrialResult]:
        """Trials that were trained and judged."""
        return [trial for trial in self.trials if trial.state == "finished"]


@dataclass(frozen=True, slots=True)
class Importance:
    """How much a parameter mattered.

    Attributes
    ----------
    key
        Dotted key.
    explained
        Share of the metric's variance between trials that differ in it, corrected for the number of groups (epsilon
        squared, at least 0); numbers of many values are grouped by equal counts.
    rank_correlation
        Of a number with the metric (Spearman); None for words.
    """

    key: str
    explained: float
    rank_correlation: float | None


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / SWEEP).is_file()


def read_sweep(folder: Path) -> SweepConfig:
    """The sweep of a folder.

    Raises
    ------
    ConfigError
        If it holds none.
    """
    if not is_sweep(folder):
        raise ConfigError(f"{folder}: not the folder of a sweep (no {SWEEP})")
    return load_config(folder / SWEEP, SweepConfig)


def read_trials(folder: Path) -> list[TrialResult]:
    """Every trial of a sweep's folder, by name, as its own files tell."""
    return [read_result(path) for path in trial_folders(folder)]


def read_result(folder: Path) -> TrialResult:
    """What a trial's own files tell of it."""
    trial, outcome = read_trial(folder), read_outcome(folder)
    records, lines = read_records_so_far(folder), read_epochs(folder)
    done = epochs_done(records)
    curve = [{"epoch": float(epoch.number), "loss": epoch.loss} for epoch in done]
    of_epoch = {float(line["epoch"]): line for line in lines}
    curve = [{**of_epoch.get(point["epoch"], {}), **point} for point in curve]
    scores = read_scores(folder)
    if scores is not None:
        headline = pick_headline_scores(scores)
    else:
        headline = {key: point[key] for point in curve for key in _OF_EPOCHS if key in point}
    if curve:
        headline["loss"] = curve[-1]["loss"]
    return TrialResult(
        folder=folder,
        name=trial.name,
        variant=trial.variant,
        seed=trial.seed,
        parameters=trial.parameters,
        state=outcome.state if outcome else "unfinished",
        error=outcome.error if outcome else None,
        scores=headline,
        curve=tuple(curve),
        epochs=len(done),
        of=done[-1].of if done else trial.config.training.epochs,
        # A run that was trained elsewhere tells the time of its training alone.
        hours=_sum_hours(lines, "seconds") if lines else sum(record.seconds for record in records[-1:]) / 3600,
        cpu_hours=_sum_hours(lines, "cpu_seconds"),
        gpu_hours=_sum_hours(lines, "gpu_seconds"),
    )


def pick_headline_scores(scores: Scores) -> dict[str, float]:
    """The numbers of a run's scores that trials are compared by; none without a truth.

    Resolution (FSC 0.5) is the states' median. Pose errors are those of the poses at the end, or of the given ones when
    they were kept: rotations as the mean squared Frobenius norm and in degrees, shifts as a share of the box.
    """
    if not isinstance(scores, ScoresAgainstTruth):
        return {}
    of_maps, pose = asdict(scores.bounded), scores.pose.final
    return {
        **{key: of_maps[key] for key in _OF_MAPS},
        "resolution_angstrom": _take_median([state.resolution_angstrom for state in scores.states]),
        "consensus_resolution_angstrom": _take_median([state.consensus_resolution_angstrom for state in scores.states]),
        "rotation_error": pose.squared_frobenius_mean,
        "rotation_error_deg": pose.angle_deg_median,
        "shift_error": pose.shift_box_fraction_mean,
    }


def _take_median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _sum_hours(lines: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(line.get(key, 0.0) for line in lines) / 3600
