"""A sweep's folder as it lies on disk: its trials, what they came to, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cryoformer_dist.analysis.evaluation_files import read_evaluation
from cryoformer_dist.config.loading import load_config
from cryoformer_dist.config.sweep import Scalar, SweepConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.runs.trial import (
    epochs_done,
    read_epochs,
    read_outcome,
    read_trial,
    trial_folders,
)

SWEEP_FILE = "sweep.yaml"
State = Literal["finished", "stopped", "failed", "unfinished"]
_PLAIN = (
    "difference_map_correlation", "difference_map_amplitude", "map_correlation", "auc_gap", "fsc_area_own",
    "latent_rank_correlation",
)  # fmt: skip
_EPOCH_SCORES = (*_PLAIN, "resolution_angstrom")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What is known of a trial.

    Attributes
    ----------
    folder
        Its run directory.
    scores
        Of its metrics.json and its last loss; of its last epoch when it was not judged.
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

    @property
    def setting(self) -> tuple[Any, ...]:
        """Variant and values: what trials of other seeds have in common."""
        return (self.variant, *self.parameters.items())


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> SweepConfig:
    """The sweep of a folder.

    Raises
    ------
    ConfigError
        If it holds none.
    """
    if not is_sweep(folder):
        raise ConfigError(f"{folder}: not the folder of a sweep (no {SWEEP_FILE})")
    return load_config(folder / SWEEP_FILE, SweepConfig)


def read_trials(folder: Path) -> list[TrialResult]:
    """Every trial of a sweep's folder, by name, as its own files tell."""
    return [read_result(path) for path in trial_folders(folder)]


def read_result(folder: Path) -> TrialResult:
    """What a trial's own files tell of it."""
    trial, outcome = read_trial(folder), read_outcome(folder)
    records, lines = read_training_log(folder), read_epochs(folder)
    done = epochs_done(records)
    curve = [{"epoch": float(epoch.number), "loss": epoch.loss} for epoch in done]
    of_epoch = {float(line["epoch"]): line for line in lines}
    curve = [{**_numbers(of_epoch.get(point["epoch"], {})), **point} for point in curve]
    metrics = read_evaluation(folder)
    if metrics:
        scores = headline_scores(metrics)
    else:
        scores = {key: point[key] for point in curve for key in _EPOCH_SCORES if key in point}
    if curve:
        scores["loss"] = curve[-1]["loss"]
    return TrialResult(
        folder=folder,
        name=trial.name,
        variant=trial.variant,
        seed=trial.seed,
        parameters=trial.parameters,
        state=outcome.state if outcome else "unfinished",
        error=outcome.error if outcome else None,
        scores=scores,
        curve=tuple(curve),
        epochs=len(done),
        of=done[-1].of if done else trial.config.training.epochs,
        # A run that was trained elsewhere tells the time of its training alone.
        hours=_hours(lines, "seconds") if lines else sum(record.seconds for record in records[-1:]) / 3600,
        cpu_hours=_hours(lines, "cpu_seconds"),
        gpu_hours=_hours(lines, "gpu_seconds"),
    )


def headline_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's metrics.json that trials are compared by.

    Resolution (FSC 0.5) is the states' median. Pose errors are those of the poses at the end, or of the given ones when
    they were kept: rotations as the mean squared Frobenius norm and in degrees, shifts as a share of the box.
    """
    scores = {key: float(metrics[key]) for key in _PLAIN if key in metrics}
    if metrics.get("states"):
        for key in ("resolution_angstrom", "consensus_resolution_angstrom"):
            scores[key] = float(np.median([row[key] for row in metrics["states"]]))
    pose = metrics.get("pose", {})
    if pose:
        end = pose.get("after", pose["before"])
        scores["rotation_error"] = float(end["squared_frobenius_mean"])
        scores["rotation_error_deg"] = float(end["angle_deg_median"])
        scores["shift_error"] = float(end["shift_box_fraction_mean"])
    return scores


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in line.items() if isinstance(value, int | float)}


def _hours(lines: list[dict[str, Any]], key: str) -> float:
    return sum(float(line.get(key, 0.0)) for line in lines) / 3600
