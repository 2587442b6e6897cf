"""How training tells the outside what it is doing."""

import errno
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.run_folder import RunFolder

METRICS = "metrics.jsonl"
# An object store takes the whole file each time.
_SEND_SECONDS = 5.0


class Reporter(Protocol):
    """Receives one record per report, and the folder of a checkpoint just written; a barrier for all ranks."""

    def report(self, record: dict[str, Any], checkpoint: Path | None) -> None:
        """Take a record."""

    def alive(self) -> None:
        """Hear that this rank is at work, in a pass over all particles that has nothing to report yet."""


class MetricsFile:
    """``metrics.jsonl`` of a run, one JSON object per line.

    Parameters
    ----------
    run
        Run directory.
    step
        Where training goes on: records after it belong to work that was lost and are dropped.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        self._run, self._path = run, run.folder / METRICS
        kept = [record for record in read_metrics(run.folder) if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_whole(self._path, text)
        self._end = len(text.encode())
        self._sent = -math.inf
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0

    def append(self, record: dict[str, Any]) -> None:
        """Add a record and hand it to the operating system; can be repeated after it has failed."""
        line = (json.dumps(record) + "\n").encode()
        # Not made anew when absent, and written at the end of the last record: a failure may have left half a line.
        with self._path.open("r+b", buffering=0) as stream:
            stream.seek(self._end)
            stream.truncate()
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if time.monotonic() - self._sent > _SEND_SECONDS:
            self.send()
        self._end += len(line)

    def send(self) -> None:
        """Send the records home, if that is not here."""
        self._run.send(METRICS)
        self._sent = time.monotonic()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete records of a run; a last line cut by a crash is left out.

    Raises
    ------
    CryoFormerError
        If a record cannot be read, by its line number.
    """
    path = run / METRICS
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise CryoFormerError(f"{path}, line {number}: not a JSON record ({error.msg}); remove the line") from error
    return records


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

    def reading(self) -> dict[str, float]:
        """Throughput and waiting of this interval, pace of this stretch, and seconds since the start."""
        now = time.perf_counter()
        elapsed = max(now - self._interval, 1e-9)
        return {
            "particles_per_second": self._particles / elapsed,
            "data_wait_share": self._waited / elapsed,
            "seconds_per_step": (now - self._stretch_start) / max(self._stretch_steps, 1),
            "seconds": now - self._start,
        }


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process on its device, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def describe(record: dict[str, Any]) -> str:
    """One line per report for people.

    Examples
    --------
    ``reconstruction 3/20  step 1840/5120 36%  loss 0.9871  52431 points, 2% of residual outside  images say 1.9 nats
    412 particles/s  data-wait 3%  21.4 GiB  eta 2h14m``; what images say about their conformations is told once after
    every search of latents.
    """
    share = record["step"] / record["steps"]
    left = duration((record["steps"] - record["step"]) * record["seconds_per_step"])
    # How long a step at the whole box takes is not known before one has been taken.
    passes, eta = (" coarse", f"over {left}") if record["coarse"] else ("", left)
    return (
        f"{record['stage'].replace('_', ' ')} {record['epoch'] + 1}/{record['epochs']}{passes}  "
        f"step {record['step']}/{record['steps']} {share:.0%}  loss {record['loss']:.4f}  "
        f"{_described_mask(record)}  {_described_search(record)}"
        f"{record['particles_per_second']:.0f} particles/s  data-wait {record['data_wait_share']:.0%}  "
        f"{record['memory_gib']:.1f} GiB  eta {eta}"
    )


def _described_mask(record: dict[str, Any]) -> str:
    outside = record["residual_outside"]
    return f"{record['active_points']} points" + ("" if outside is None else f", {outside:.0%} of residual outside")


def _described_search(record: dict[str, Any]) -> str:
    nats = record["latent_information_nats"]
    return "" if nats is None else f"images say {nats:.2g} nats  "


def duration(seconds: float) -> str:
    """Seconds as 45s, 3m05s or 2h14m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
