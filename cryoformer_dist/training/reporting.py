"""How training tells the outside what it is doing."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.runs.training_log import TrainingRecord


class Reporter(Protocol):
    """Receives one record per report, and the folder of a checkpoint just written; keeps no step waiting."""

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        """Take a record."""

    def alive(self) -> None:
        """Hear that this rank is at work, in a pass over all particles that has nothing to report yet."""


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
    latent_information_nats
        What a search of latents found that an image says about its conformation, mean over the particles.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(3, device=device)
        self.checkpoint_seconds: float | None = None
        self.latent_information_nats: float | None = None

    def add(self, errors: Float[Tensor, " particles"], prior: Float[Tensor, " particles"]) -> None:
        """Count a step."""
        self.totals += torch.stack([errors.detach().sum(), prior.detach().sum(), errors.new_full((), len(errors))])

    @property
    def is_empty(self) -> bool:
        """Whether no step was taken; waits for the device."""
        return not float(self.totals[2])


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


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30
