"""Launching on a cluster of raylets that was started by hand, as a Ray job. Minutes each: run with -m slow."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ray_nodes import RayNodes, ray_nodes
from support.tiny_runs import tiny_settings

from cryoformer_dist.runs.training_log import read_records_so_far

pytestmark = pytest.mark.slow
SECONDS = 600
# Long enough to be disturbed in.
LONG = {"training.epochs": 60, "training.report_every_steps": 5, "training.checkpoint_every_steps": 10}


@pytest.fixture
def cluster() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=1, head_cpus=1) as started:
        yield started


def _launch(cluster: RayNodes, folder: Path, settings: dict[str, Any], *options: str, **workers: Any) -> Path:
    """Launch as a job and return its run directory at once."""
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    values = {"provider": "existing", "address": cluster.job_server, "token_file": str(cluster.token_file)}
    values |= {"python": sys.executable, "storage": str(folder / "runs"), "run": "run.yaml", "workers": workers}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(values))
    _command(folder, "launch", str(folder / "cluster.yaml"), "--detach", *options)
    return folder / "runs" / "tiny"


def _command(folder: Path, *words: str) -> str:
    environment = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "cryoformer_dist.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _wait(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {SECONDS} s: {what}"
        time.sleep(0.5)


def _workers(run: Path) -> list[int]:
    """World sizes in the order they trained."""
    worlds = [record.workers for record in read_records_so_far(run)]
    return [world for world, before in zip(worlds, [0, *worlds], strict=False) if world != before]


def test_a_job_on_three_raylets_ends_in_a_report_and_tells_how_it_is_doing(
    cluster: RayNodes, tiny_store: Path, tmp_path: Path
) -> None:
    cluster.start_node(1)
    run = _launch(cluster, tmp_path, tiny_settings(tiny_store, {"dataset.loader": "ray"}), count=2, cpus=0.9)
    said = _command(tmp_path, "logs", "tiny")
    assert said.count("storage and store seen") == 3
    assert "report         " in said
    assert (run / "report.html").is_file()
    assert "succeeded (exit code 0)" in _command(tmp_path, "status", "tiny")


def test_training_grows_with_the_cluster_and_shrinks_with_it(
    cluster: RayNodes, tiny_store: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(tiny_store, LONG | {"training.epochs": 600})
    run = _launch(cluster, tmp_path, settings, count="1..3", cpus=0.9)
    _wait("a first report", lambda: bool(read_records_so_far(run)))
    first = _workers(run)[-1]
    assert first in (1, 2)
    joined = cluster.start_node(1)
    _wait("more workers", lambda: _workers(run)[-1] > first)
    grown = _workers(run)[-1]
    cluster.kill_node(joined)
    _wait("fewer workers", lambda: _workers(run)[-1] < grown)
    steps = [record.step for record in read_records_so_far(run)]
    assert steps == sorted(set(steps))
    _command(tmp_path, "stop", "tiny")
    assert "stopped" in _command(tmp_path, "status", "tiny")
