"""Tiny runs launched on the nodes of a cluster in a box, and what is left of them."""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from cluster_in_a_box.box import Box
from support.tiny_runs import final_state, tiny_settings

from cryoformer_dist.runs.training_log import read_records_so_far, read_training_log

SECONDS = 600
# Of a node's two CPUs: one worker on each.
FIXED, ELASTIC = {"count": 2, "cpus": 1.5}, {"count": "1..2", "cpus": 1.5}
# A run is disturbed once it has reported this step.
EARLY = 40
# Long enough to be disturbed in: a particle's pose is known to the rank that owns it, and to nobody else.
LONG = {
    "training.epochs": 100,
    # A part of the particles: a step across the end of an epoch may have a particle twice, and its row is moved once.
    "training.global_batch_size": 16,
    "model.pose.form": "table",
    "training.report_every_steps": 5,
    "training.checkpoint_every_steps": 20,
}

# For a run that is stopped in the end.
ENDLESS = LONG | {"training.epochs": 3000}


@dataclass
class BoxedRun:
    """A run launched from the box's login node.

    Attributes
    ----------
    box
        The cluster.
    name
        Of the run.
    cluster
        What its cluster file says.
    """

    box: Box
    name: str
    cluster: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.cluster["storage"]) / self.name

    def launch(self, store: Path, changes: dict[str, Any], *options: str) -> str:
        """What `launch` says."""
        return self.command("launch", self._write_files(store, changes), *options)

    def try_launch(self, store: Path, changes: dict[str, Any]) -> tuple[int, str]:
        """Its exit code and what it says."""
        return self.try_command("launch", self._write_files(store, changes))

    def time_first_step(self, store: Path) -> float:
        """Seconds from `launch` to the first report of a short run, which then goes to its end."""
        begin = time.monotonic()
        file = self._write_files(store, {"training.report_every_steps": 1})
        log = self.box.shared / f"{self.name}.log"
        launching = self.box.control.begin("python", "-m", "cryoformer_dist.cli", "launch", file, log=log)
        while self.step < 1:
            assert launching.poll() is None or self.step, log.read_text()
            assert time.monotonic() - begin < SECONDS, log.read_text()
            time.sleep(0.1)
        seconds = time.monotonic() - begin
        assert launching.wait(timeout=SECONDS) == 0, log.read_text()
        return round(seconds, 1)

    def _write_files(self, store: Path, changes: dict[str, Any]) -> str:
        """The cluster file's path."""
        place = self.box.shared / self.name
        place.mkdir()
        settings = tiny_settings(store, {"name": self.name, **changes})
        (place / "run.yaml").write_text(yaml.safe_dump(settings))
        (place / "cluster.yaml").write_text(yaml.safe_dump(self.cluster | {"run": "run.yaml"}))
        return str(place / "cluster.yaml")

    def launch_and_wait(self, store: Path, changes: dict[str, Any]) -> None:
        """Launch, and wait until it trains."""
        self.launch(store, changes, "--detach")
        self.wait_for_step(EARLY)

    def command(self, *words: str) -> str:
        """What a command of ours says at the login node; it must succeed."""
        return self.box.control.run("python", "-m", "cryoformer_dist.cli", *words, seconds=SECONDS)

    def try_command(self, *words: str) -> tuple[int, str]:
        """Its exit code and what it says."""
        done = self.box.control.attempt("python", "-m", "cryoformer_dist.cli", *words, seconds=SECONDS)
        return done.returncode, done.stdout + done.stderr

    @property
    def job(self) -> str:
        """Its number with Slurm, which the login node's record of the launch holds."""
        home = self.box.control.folder / "root" / ".local" / "state" / "cryoformer-dist" / "launches"
        return str(json.loads((home / f"{self.name}.json").read_text())["handle"]["job"])

    @property
    def step(self) -> int:
        """The last one that was reported."""
        records = read_records_so_far(self.folder)
        return records[-1].step if records else 0

    @property
    def log(self) -> str:
        """What the job has said."""
        path = self.folder / "launch" / f"job-{self.job}.log"
        return path.read_text() if path.is_file() else ""

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> float:
        """Seconds until something holds."""
        begin = time.monotonic()
        while not holds():
            assert time.monotonic() - begin < seconds, f"not within {seconds:.0f} s: {what}\n{self.log}"
            time.sleep(0.2)
        return time.monotonic() - begin

    def wait_for_step(self, step: int) -> float:
        """Seconds until a step was reported."""
        return self.wait(f"step {step}", lambda: self.step >= step)

    def restarts(self) -> int:
        """How often Slurm has put its job back in the queue."""
        return int(self.box.slurm.job(self.job)["Restarts"])

    def come_back(self) -> float:
        """Let a job that goes back to the queue start at once; seconds until it trains beyond where it was."""
        begin = time.monotonic()
        self.box.slurm.hasten(self.job)
        self.wait_for_step(self.step + 1)
        return time.monotonic() - begin

    def processes(self) -> list[str]:
        """What is left on the nodes of its job."""
        found = []
        for node in self.box.nodes:
            listed = node.run("ps", "-eo", "args").splitlines()
            ours = rf"cf_{self.job}\b|cryoformer_dist|ray::"
            found += [f"{node.name}: {line}" for line in listed if re.search(ours, line)]
            found += node.run("sh", "-c", f"ls -d /tmp/cf_{self.job} 2>/dev/null || true").splitlines()
        return found

    def end(self) -> str:
        """All that the run says, once it has ended well."""
        return self.command("logs", self.name)


def slurm_run(box: Box, name: str, **changes: Any) -> BoxedRun:
    """A run by two workers on two nodes, unless the cluster file's changes say otherwise."""
    cluster = {"provider": "slurm", "storage": str(box.shared / "runs"), "nodes": 2, "cpus_per_node": 2}
    cluster |= {"python": sys.executable, "time": "01:00:00", "workers": FIXED}
    return BoxedRun(box, name, cluster | changes)


def assert_same_end(run: Path, other: Path) -> None:
    """Two runs of as many workers report the same losses of the same steps and end with the same weights and tables."""
    told, others = _losses_by_steps(run), _losses_by_steps(other)
    # One that was stopped has reported between the steps that are reported as a rule.
    common = sorted(told.keys() & others.keys())
    assert len(common) > 0.8 * len(others), (told.keys(), others.keys())
    losses = [torch.tensor([each[steps] for steps in common]) for each in (told, others)]
    farthest = float((losses[0] - losses[1]).abs().max())
    state, other_state = final_state(run), final_state(other)
    assert state.keys() == other_state.keys()
    apart = {name: _farthest(value, other_state[name]) for name, value in state.items()}
    worst = max(apart, key=lambda name: apart[name])
    print(f"{run.name}: losses differ by {farthest:.1e} at most, weights and tables by {apart[worst]:.1e} ({worst})")
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    assert apart[worst] < 1e-2, apart


def assert_same_curve(run: Path, other: Path) -> None:
    """Two runs lose as much and have seen each particle as often; one had fewer workers at times, and other batches."""
    told, others = read_training_log(run), read_training_log(other)
    assert {record.workers for record in told} == {1, 2}
    ends = [sum(record.loss for record in each[-10:]) / 10 for each in (told, others)]
    fall = others[0].loss - ends[1]
    visits, other_visits = (final_state(each)["latent.visits"] for each in (run, other))
    apart = _farthest(visits, other_visits)
    changes = sum(one.workers != next_one.workers for one, next_one in pairwise(told))
    print(f"{run.name}: last losses differ by {abs(ends[0] - ends[1]) / fall:.1%} of their fall, visits by {apart:g}")
    assert abs(ends[0] - ends[1]) < 0.05 * fall
    # In an epoch in which the number of ranks changes a particle may be seen twice, and never not at all.
    assert apart <= changes
    assert (visits >= other_visits).all()


def _losses_by_steps(run: Path) -> dict[tuple[int, int], float]:
    """Each loss by the steps it is of: after the first, up to the second."""
    records = read_training_log(run)
    begins = [0, *(record.step for record in records)]
    assert begins == sorted(set(begins))
    return {(begin, record.step): record.loss for begin, record in zip(begins, records, strict=False)}


def _farthest(value: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference; of tables too, which have a row per particle: a lost one would have no or other numbers."""
    assert value.shape == other.shape
    return float((value.double() - other.double()).abs().max()) if value.numel() else 0.0
