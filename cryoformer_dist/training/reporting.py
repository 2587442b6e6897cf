"""How training tells the outside what it is doing."""

import resource
import statistics
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.progress import StagedProgress
from cryoformer_dist.ranks import gather_rows, gather_shares, rank_and_world
from cryoformer_dist.runs.stage_progress import StageClock, StageProgress, StageProgressFile
from cryoformer_dist.runs.training_log import SearchFindings, TrainingRecord
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.stages import Moment


class Reporter(Protocol):
    """Receives one record per report, and the folder of a checkpoint just written; keeps no step waiting."""

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """Take a record."""

    def step(self, number: int, left_out: int) -> None:
        """Hear that this rank has done its own part of a step, from 1, and waits for the others.

        ``left_out`` steps of this attempt were not finite.
        """

    def stage(self, progress: StageProgress) -> None:
        """Hear how far this rank is in a stage before or after training: a sign of life."""

    def alive(self) -> None:
        """Hear that this rank is at work, in a pass over all particles that has nothing to report yet."""


def tell_stages(working: WorkingFolder, reporter: Reporter) -> StagedProgress:
    """How this rank tells of its stages: to its reporter, and, where it leads, to who follows the run directory."""
    clock, leads = StageClock(), rank_and_world()[0] == 0
    written = StageProgressFile(working)

    def tell(stage: str, done: int, total: int) -> None:
        progress = clock.look(stage, done, total)
        reporter.stage(progress)
        if leads:
            written.tell(progress)

    return tell


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast training goes; attributes as in `TrainingRecord`."""

    particles_per_second: float
    data_wait_share: float
    seconds_per_step: float
    seconds: float


class Interval:
    """What has happened since the last report.

    Parameters
    ----------
    device
        Where losses are added up: there, adding waits for nothing.

    Attributes
    ----------
    totals
        Sums of losses and priors, and number of particles, of this rank.
    checkpoint_seconds
        What a checkpoint took.
    found
        What a search of all particles found.
    noise_departure
        See `TrainingRecord`.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(3, device=device)
        self.checkpoint_seconds: float | None = None
        self.found = SearchFindings()
        self.noise_departure: float | None = None

    def add(
        self, errors: Float[Tensor, " particles"], prior: Float[Tensor, " particles"], stopped: Float[Tensor, ""]
    ) -> None:
        """Count a step, unless ``stopped`` is 1: then it was not taken."""
        step = torch.stack([errors.detach().sum(), prior.detach().sum(), errors.new_full((), len(errors))])
        self.totals += torch.where(stopped > 0, torch.zeros_like(step), step)

    @property
    def is_empty(self) -> bool:
        """Whether no step was taken; waits for the device."""
        return not float(self.totals[2])


@dataclass(frozen=True, slots=True)
class Fault:
    """A step that would have written numbers that are not finite; it was not taken, nor any after it.

    Attributes
    ----------
    moment, epoch
        Of the step.
    ranks
        On how many ranks.
    rows
        Store rows to blame, ascending: those whose own loss or gradient is not finite; where there is none, all rows of
        the step on those ranks.
    """

    moment: Moment
    epoch: int
    ranks: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _TakenStep:
    moment: Moment
    epoch: int
    rows: Tensor
    finite: Tensor
    bad_here: Tensor


class StepFaults:
    """Losses and gradients that are not finite: the first stops all that steps change; no step waits to know.

    Parameters
    ----------
    device
        Of the losses.

    Attributes
    ----------
    stopped
        1 once there was one on any rank since the last `find`, else 0; on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stopped = torch.zeros((), device=device)
        self._steps: list[_TakenStep] = []
        self._bad: list[Tensor] = []

    def look(
        self,
        moment: Moment,
        batch: ParticleBatch,
        losses: Float[Tensor, " particles"],
        leaves: Collection[Tensor],
        norm: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """1 if a step, its gradients known and nothing changed yet, is not finite on this rank, else 0.

        Parameters
        ----------
        losses
            Of each particle.
        leaves
            Rows of tables that this step would move.
        norm
            Of the network's gradients on this rank: one that overflows would make the optimiser's state infinite.
        """
        gradients = [leaf.grad.square().sum(-1) for leaf in leaves if leaf.grad is not None]
        each = torch.stack([losses.detach(), *gradients])
        bad_here = (~torch.isfinite(each.sum() + norm)).float()
        self._steps.append(_TakenStep(moment, batch.epoch, batch.row, torch.isfinite(each).all(0), bad_here))
        return bad_here

    def settle(self, bad: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Take on how many ranks the step looked at last is not finite; returns ``stopped``."""
        self._bad.append(bad)
        self.stopped = torch.maximum(self.stopped, bad.clamp(max=1))
        return self.stopped

    def find(self) -> Fault | None:
        """Wait for the device: the first fault since the last time, the same on all ranks; then steps go on."""
        (steps, self._steps), (bad, self._bad) = (self._steps, []), (self._bad, [])
        if not float(self.stopped):
            return None
        self.stopped = torch.zeros_like(self.stopped)
        step, ranks = next((step, int(count)) for step, count in zip(steps, bad, strict=True) if int(count))
        here = ~step.finite if not bool(step.finite.all()) else (step.bad_here > 0).expand_as(step.finite)
        rows, blamed = gather_rows(step.rows, here[:, None].float())
        return Fault(step.moment, step.epoch, ranks, tuple(sorted(set(rows[blamed[:, 0] > 0].tolist()))))


class Stopwatch:
    """Where the time between two reports went."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stretch: tuple[object, ...] = ()
        self._stretch_start, self._stretch_steps = self._start, 0
        self.restart()

    def enter(self, *stretch: object) -> None:
        """Name the stretch of training under way, all steps of which cost alike: a new name begins a new one."""
        if stretch != self._stretch:
            self._stretch = stretch
            self._stretch_start, self._stretch_steps = time.perf_counter(), 0

    def restart(self) -> None:
        """Begin a new interval."""
        self._interval = time.perf_counter()
        self._waited = 0.0
        self._particles = 0

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waited += seconds

    def trained(self, particles: int) -> None:
        """Add a step and its particles, over all ranks."""
        self._particles += particles
        self._stretch_steps += 1

    def measure(self) -> Pace:
        """Throughput and waiting of this interval, pace of this stretch, and seconds since the start."""
        now = time.perf_counter()
        elapsed = max(now - self._interval, 1e-9)
        return Pace(
            particles_per_second=self._particles / elapsed,
            data_wait_share=self._waited / elapsed,
            seconds_per_step=(now - self._stretch_start) / max(self._stretch_steps, 1),
            seconds=now - self._start,
        )


class OwnTime:
    """What this rank does of each step by itself, waiting for images among it, until it waits for other ranks.

    Parameters
    ----------
    device
        Where the network lives; a GPU keeps the time itself, so that no step waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """Begin a step, before its images are there."""
        self._start = self._mark()

    def end(self) -> None:
        """End this rank's own part of it."""
        self._spans.append((self._start, self._mark()))

    def take_median(self) -> float:
        """Seconds a step since the last call; waits for the device."""
        spans, self._spans = self._spans, []
        if not spans:
            return 0.0
        if self._on_gpu:
            spans[-1][1].synchronize()
            return float(statistics.median(start.elapsed_time(end) / 1000 for start, end in spans))
        return float(statistics.median(end - start for start, end in spans))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


STRAGGLING = 3.0
"""Times the median from which on all others plainly wait for a rank."""


class Stragglers:
    """Ranks for which all others wait, step after step.

    Parameters
    ----------
    hosts
        Of all ranks.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._slow: set[int] = set()
        self._told: set[int] = set()

    def look(self, slowness: Sequence[float]) -> list[str]:
        """Name ranks that straggle at two reports in a row, each once; own times over their median come in."""
        slow = {rank for rank, times in enumerate(slowness) if times > STRAGGLING}
        new = (slow & self._slow) - self._told
        self._slow, self._told = slow, self._told | new
        return [
            f"rank {rank} on {self._hosts[rank]} is a straggler: its part of a step takes {slowness[rank]:.1f} times "
            "the median, and all ranks wait for it; look at what else runs there, and at its storage"
            for rank in sorted(new)
        ]


def compare_ranks(own_seconds: float) -> list[float]:
    """Every rank's own time a step over the median of all; of two, over the shorter one."""
    everybody = gather_shares(torch.tensor([own_seconds], dtype=torch.float64), rank_and_world()[1]).tolist()
    median = statistics.median_low(everybody)
    return [seconds / median if median else 1.0 for seconds in everybody]


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30
