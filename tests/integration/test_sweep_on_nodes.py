"""A sweep on a Ray of two nodes of their own, one of which is lost. Minutes: run with -m cluster, as root."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_in_a_box.box import Box
from cluster_in_a_box.node import Node
from support.boxed_runs import SECONDS
from support.tiny_runs import tiny_settings

from cryoformer_dist.runs.sweep import read_trials

pytestmark = pytest.mark.cluster
RAY = ("python", "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block", "--disable-usage-stats")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
RATES = [1e-3, 2e-3, 3e-3, 4e-3]


def _wait(what: str, holds: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {SECONDS} s: {what}\n{log.read_text()}"
        time.sleep(0.2)


def _start_ray(box: Box, log: Path) -> None:
    head, other = box.nodes
    words = ("--head", "--port=6379", "--dashboard-host=127.0.0.1", f"--node-ip-address={head.address}")
    head.begin(*RAY, *words, log=log, environment=TOKEN)
    _wait("a head", lambda: "will now block" in log.read_text(), log)
    other.begin(*RAY, f"--address={head.address}:6379", log=log, environment=TOKEN)
    _wait("another node", lambda: log.read_text().count("will now block") == 2, log)


def _write_sweep(box: Box, store: Path) -> Path:
    """The cluster file."""
    folder = box.shared / "sweep"
    folder.mkdir()
    changes = {"training.epochs": 60, "training.report_every_steps": 5, "training.checkpoint_every_steps": 20}
    sweep: dict[str, Any] = {"name": "rates", "run": "run.yaml", "seeds": [0], "metric": "loss"}
    sweep["parameters"] = {"training.learning_rates.network": {"grid": RATES}}
    cluster = {"provider": "existing", "address": "auto", "sweep": "sweep.yaml", "storage": "runs"}
    cluster |= {"workers": {"count": 1, "cpus": 0.9}}
    files = {"run": tiny_settings(store, changes), "sweep": sweep, "cluster": cluster}
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / "cluster.yaml"


def _trials_on(node: Node) -> int:
    """Trials that a node trains."""
    return len(re.findall(r"^ray::.*run_trial|^ray::ImplicitFunc", node.run("ps", "-eo", "args"), re.MULTILINE))


def test_trials_spread_over_nodes_and_those_of_a_lost_node_come_back(box: Box, boxed_store: Path) -> None:
    ray_log, log = box.shared / "ray.log", box.shared / "launch.log"
    _start_ray(box, ray_log)
    file = _write_sweep(box, boxed_store)
    head, other = box.nodes
    program = ("python", "-m", "cryoformer_dist.cli", "launch", str(file))
    launched = head.begin(*program, log=log, environment=TOKEN)
    trials = file.parent / "runs" / "rates" / "trials"
    _wait("a trial on each node", lambda: _trials_on(head) == _trials_on(other) == 1, log)
    _wait("two that train", lambda: len(list(trials.glob("*/metrics.jsonl"))) == 2, log)
    other.kill()
    assert launched.wait(timeout=SECONDS) == 0, log.read_text()
    results = read_trials(file.parent / "runs" / "rates")
    assert [result.state for result in results] == ["finished"] * len(RATES), log.read_text()
    # What they start from is the same, and was made once.
    prepared = [place for place in (file.parent / "runs" / "rates" / "prepared").iterdir() if place.is_dir()]
    assert len(prepared) == 1
    assert log.read_text().count("failed") == 0
