"""The job script on a real Slurm of two nodes, with quick stand-ins for Ray and the driver: run with -m cluster.

What Slurm does to a job, and the job then does, takes seconds so; `test_real_slurm.py` has the same with whole runs.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_in_a_box.box import Box

from cryoformer_dist.config.cluster import SlurmCluster
from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.orchestration.providers.slurm import write_job_script
from cryoformer_dist.orchestration.request import RunRequest

pytestmark = pytest.mark.cluster
QUICK_PYTHON = Path(__file__).parents[1] / "cluster_in_a_box" / "quick_python.py"
RESUMED = "start number 2 of this job"


@dataclass
class Job:
    """A job that was submitted."""

    box: Box
    number: str
    folder: Path

    @property
    def state(self) -> str:
        return self.box.slurm.job(self.number)["JobState"]

    @property
    def log(self) -> str:
        path = self.folder / f"job-{self.number}.log"
        return path.read_text() if path.is_file() else ""

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = 60) -> None:
        try:
            self.box.slurm.wait(what, holds, seconds)
        except TimeoutError as error:
            raise AssertionError(self.log) from error

    def end(self) -> None:
        """Once it is back in the queue it goes on where it was, to its end."""
        self.wait("the queue", lambda: self.box.slurm.job(self.number)["Restarts"] == "1", 120)
        self.box.slurm.hasten(self.number)
        self.wait("the end", lambda: self.state == "COMPLETED")
        assert RESUMED in self.log
        assert re.search(r"driver drive .* --resume", self.log)


@pytest.fixture
def submit(box: Box) -> Iterator[Callable[..., Job]]:
    """Submits a job of two nodes, and waits until its driver is at work; all nodes are idle before and after."""
    jobs: list[Job] = []

    def start(name: str, **keys: Any) -> Job:
        python = box.shared / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{QUICK_PYTHON}" "$@"\n')
        python.chmod(0o755)
        values = {"provider": "slurm", "storage": str(box.shared), "nodes": 2, "cpus_per_node": 2}
        cluster = SlurmCluster.model_validate({**values, "python": str(python), "workers": {"count": 2}, **keys})
        folder = box.shared / name
        folder.mkdir()
        config = parse_config({"name": name, "dataset": {"store": "/s.zarr"}}, RunConfig, "test")
        script = write_job_script(cluster, RunRequest(name, config, cluster, resume=False), str(folder))
        (folder / "job.sbatch").write_text(script)
        number = box.control.run("sbatch", "--parsable", str(folder / "job.sbatch")).strip()
        jobs.append(Job(box, number, folder))
        jobs[-1].wait("a driver", lambda: "driver drive" in jobs[-1].log)
        return jobs[-1]

    yield start
    for job in jobs:
        box.control.attempt("scancel", job.number)
    box.slurm.wait("idle nodes", lambda: set(box.slurm.states().values()) == {"idle"}, 90)


def _processes(box: Box) -> list[str]:
    """Of jobs, on the nodes."""
    listed = [line for node in box.nodes for line in node.run("ps", "-eo", "args").splitlines()]
    return [line for line in listed if "quick_python" in line or "keep_ray" in line]


def test_a_job_that_is_requeued_by_hand_goes_on_where_it_was(submit: Callable[..., Job], box: Box) -> None:
    job = submit("requeued")
    assert "token 64" in job.log
    box.control.run("scontrol", "requeue", job.number)
    job.end()
    assert _processes(box) == []


def test_a_ray_that_does_not_start_on_a_busy_node_is_tried_once_more(submit: Callable[..., Job]) -> None:
    job = submit("busy", environment={"RAY_FAILS_ONCE": "1"})
    again = r"Ray did not start on {} \(load [\d.]+ on \d+ cores\); it is tried once more"
    # The stand-in driver does not wait for the second node.
    job.wait("both told", lambda: all(re.search(again.format(node), job.log) for node in ("node1", "node2")))


def test_a_job_that_is_cancelled_leaves_no_process_and_no_folder(submit: Callable[..., Job], box: Box) -> None:
    job = submit("cancelled")
    box.control.run("scancel", job.number)
    job.wait("the end", lambda: job.state == "CANCELLED" and not _processes(box))
    assert "driver: ended by a signal" in job.log
    for node in box.nodes:
        assert "cannot access" in node.run("sh", "-c", f"ls -d /tmp/cf_{job.number} 2>&1 || true")


def test_a_job_that_gives_way_is_warned_and_goes_on_later(submit: Callable[..., Job], box: Box) -> None:
    job = submit("preempted", partition="low")
    box.control.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    job.end()
    assert "Slurm wants the nodes back" in job.log


def test_a_job_whose_time_is_up_is_warned_and_goes_on_later(submit: Callable[..., Job]) -> None:
    job = submit("out_of_time", time="00:03:00")
    job.wait("a warning", lambda: "Slurm wants the nodes back" in job.log, 130)
    job.end()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_job_that_cannot_shrink_goes_back_whichever_node_is_lost(
    lost: int, submit: Callable[..., Job], box: Box
) -> None:
    job = submit(f"fixed_{lost}")
    box.lose(box.nodes[lost])
    box.bring_back(box.nodes[lost])
    job.end()


def test_a_job_that_can_shrink_goes_back_only_if_its_first_node_is_lost(submit: Callable[..., Job], box: Box) -> None:
    job = submit("elastic", workers={"count": "1..2"})
    box.lose(box.nodes[1])
    box.bring_back(box.nodes[1])
    job.wait("one node left", lambda: box.slurm.job(job.number)["NodeList"] == "node1")
    assert job.state == "RUNNING"
    box.control.run("scancel", job.number)
    job.wait("the end", lambda: job.state == "CANCELLED")

    job = submit("elastic_beheaded", workers={"count": "1..2"})
    box.lose(box.nodes[0])
    # What is left of it notices: Slurm does not tell.
    job.wait("what is left", lambda: "Slurm has lost node1" in job.log)
    box.bring_back(box.nodes[0])
    job.end()
