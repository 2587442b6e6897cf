"""What Prometheus and the Ray dashboard are shown of a run, while it trains under Ray."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.util.metrics import Gauge

from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.training_log import TrainingRecord

# Ray passes a value on once and forgets it after two of its report intervals, of at least one second each: a run that
# reports more rarely would come and go.
_SECONDS_BETWEEN_SHOWINGS = 1.0


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """That a rank is at work.

    Attributes
    ----------
    own_steps
        Steps whose own part it has done, all stages together; ``None`` where it tells of no step.
    left_out_steps
        Of this attempt, those that were not finite.
    """

    own_steps: int | None = None
    left_out_steps: int | None = None


@dataclass(frozen=True, slots=True)
class StorageRoom:
    """What is left of the storage that a run directory is worked on in.

    Attributes
    ----------
    free_bytes
        For this user.
    """

    free_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "StorageRoom":
        """Of the file system of a folder.

        Raises
        ------
        OSError
            If it is away.
        """
        statistics = os.statvfs(folder)
        return cls(statistics.f_bavail * statistics.f_frsize)


@dataclass(frozen=True, slots=True)
class _Presence:
    """What is known of a rank without its saying anything.

    Attributes
    ----------
    start_seconds
        When it began, since 1970.
    silence_seconds
        Since its last news.
    """

    start_seconds: float
    silence_seconds: float


News = TrainingRecord | StageProgress | SignOfLife | StorageRoom
Publish = Callable[[News], None]


@dataclass(frozen=True, slots=True)
class RunMetric:
    """One number of a run that is watched.

    Attributes
    ----------
    name
        Without Ray's prefix.
    unit
        For people.
    meaning
        One sentence, without a full stop.
    key
        Of the news that holds it; news that says ``None`` of it, or nothing, leaves the last value.
    per_rank
        Whether every rank shows its own, with a tag ``rank``; the others are shown by rank 0 for all.
    per_stage
        Whether it is of a stage before or after training, with a tag ``stage``; of the last one told of only.
    scale
        From the news's unit to this one.
    """

    name: str
    unit: str
    meaning: str
    key: str
    per_rank: bool = False
    per_stage: bool = False
    scale: float = 1.0

    @property
    def prometheus_name(self) -> str:
        """As Prometheus and Grafana know it."""
        return f"ray_{self.name}"

    def value(self, news: News | _Presence) -> float | None:
        """Taken from news, if these have it."""
        value = getattr(news, self.key, None)
        return None if value is None else self.scale * value


METRICS = (
    RunMetric("cryoformer_step", "steps", "optimiser steps taken, all stages together", "step"),
    RunMetric("cryoformer_steps", "steps", "steps at the end of the present stage", "steps"),
    RunMetric("cryoformer_loss", "", "training loss, mean over the particles since the last report", "loss"),
    RunMetric(
        "cryoformer_learning_rate_share",
        "0 to 1",
        "share of the configured learning rates in force",
        "learning_rate_factor",
    ),
    RunMetric(
        "cryoformer_images_per_second", "images/s", "particles trained on, all ranks together", "particles_per_second"
    ),
    RunMetric(
        "cryoformer_data_wait_share", "0 to 1", "share of the time spent waiting for images", "data_wait_share", True
    ),
    RunMetric(
        "cryoformer_memory_bytes",
        "bytes",
        "peak memory of a rank, on its GPU if it has one",
        "memory_gib",
        True,
        scale=2**30,
    ),
    RunMetric(
        "cryoformer_slowness", "1", "a rank's own part of a step, over the median of all ranks", "slowness", True
    ),
    RunMetric("cryoformer_active_points", "points", "grid points at which there may be density", "active_points"),
    RunMetric(
        "cryoformer_residual_outside_share",
        "0 to 1",
        "share of the residual's energy outside the mask, at its last refresh",
        "residual_outside",
    ),
    RunMetric(
        "cryoformer_latent_information_nats",
        "nats",
        "what an image says about its conformation, mean over the particles, at the last search of latents",
        "latent_information_nats",
    ),
    RunMetric(
        "cryoformer_pose_error_degrees",
        "degrees",
        "standard deviation of the given rotations' errors about each axis, at the last search",
        "pose_error_deg",
    ),
    RunMetric(
        "cryoformer_pose_error_angstrom",
        "angstrom",
        "standard deviation of the given shifts' errors along each axis, at the last search",
        "pose_error_angstrom",
    ),
    RunMetric(
        "cryoformer_amplitude_spread",
        "1",
        "standard deviation of the particles' amplitudes about 1, at the last search",
        "amplitude_spread",
    ),
    RunMetric(
        "cryoformer_junk_share",
        "0 to 1",
        "share of images that probably show no particle, at the last search",
        "junk_share",
    ),
    RunMetric(
        "cryoformer_noise_departure",
        "1",
        "relative difference between the residual's power and the noise's, where it is largest, at the last refresh",
        "noise_departure",
    ),
    RunMetric("cryoformer_checkpoint_seconds", "s", "time the last checkpoint took", "checkpoint_seconds"),
    RunMetric("cryoformer_workers", "processes", "training processes at work", "workers"),
    RunMetric(
        "cryoformer_stage_share",
        "0 to 1",
        "share done of the last stage before or after training",
        "share_done",
        per_stage=True,
    ),
    RunMetric(
        "cryoformer_stage_seconds_left",
        "s",
        "time that stage still takes at its mean pace",
        "seconds_left",
        per_stage=True,
    ),
    RunMetric(
        "cryoformer_silence_seconds",
        "s",
        "time since a rank did its own part of a step, or told of anything else",
        "silence_seconds",
        True,
    ),
    RunMetric(
        "cryoformer_own_steps", "steps", "steps whose own part a rank has done, all stages together", "own_steps", True
    ),
    RunMetric(
        "cryoformer_left_out_steps",
        "steps",
        "steps of this attempt that were left out, their loss or gradient not finite",
        "left_out_steps",
    ),
    RunMetric("cryoformer_start_seconds", "s since 1970", "when the present worker of rank 0 started", "start_seconds"),
    RunMetric("cryoformer_storage_free_bytes", "bytes", "room left where the run directory is worked on", "free_bytes"),
)


@contextmanager
def publishing(name: str, rank: int) -> Iterator[Publish]:
    """Show the newest numbers of a run for as long as this lasts.

    Parameters
    ----------
    name
        Of the run, the tag ``run`` of every metric.
    rank
        Of this process.

    Yields
    ------
    publish
        Takes a training record, how far a stage is, a sign of life, or what room there is.
    """
    shown = _ShownNumbers(name, rank)
    stop = threading.Event()

    def show_again() -> None:
        while not stop.wait(_SECONDS_BETWEEN_SHOWINGS):
            shown.show()

    thread = threading.Thread(target=show_again, name="show-metrics")
    thread.start()
    try:
        yield shown.publish
    finally:
        stop.set()
        thread.join()


class _ShownNumbers:
    """The newest numbers of one rank, in Ray's gauges."""

    def __init__(self, name: str, rank: int) -> None:
        self._gauges = {metric: _make_gauge(metric, name, rank) for metric in METRICS if metric.per_rank or rank == 0}
        self._newest: dict[RunMetric, tuple[float, dict[str, str]]] = {}
        self._started, self._heard = time.time(), time.monotonic()

    def publish(self, news: News) -> None:
        self._heard = time.monotonic()
        self._take(news)
        # Steps may be many in a second: these are shown by the thread.
        if not isinstance(news, SignOfLife):
            self.show()

    def show(self) -> None:
        self._take(_Presence(self._started, time.monotonic() - self._heard))
        for metric, (value, tags) in tuple(self._newest.items()):
            self._gauges[metric].set(value, tags)

    def _take(self, news: News | _Presence) -> None:
        tags = {"stage": news.stage} if isinstance(news, StageProgress) else {}
        for metric in self._gauges:
            if (value := metric.value(news)) is not None:
                self._newest[metric] = (value, tags)


def _make_gauge(metric: RunMetric, name: str, rank: int) -> Gauge:
    tags = {"run": name} | ({"rank": str(rank)} if metric.per_rank else {})
    unit = f" ({metric.unit})" if metric.unit else ""
    keys = (*tags, "stage") if metric.per_stage else tuple(tags)
    gauge = Gauge(metric.name, description=metric.meaning + unit, tag_keys=keys)
    return gauge.set_default_tags(tags)
