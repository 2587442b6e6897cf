"""Ray's cluster launcher over real ssh to nodes of their own. Minutes: run with -m cluster, as root."""

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.node import HOME, Node
from support.boxed_runs import ENDLESS, BoxedRun
from support.tiny_runs import write_set

from cryoformer_dist.runs.training_log import read_records_so_far

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("box_possible")]
RAY = ("python", "-m", "ray.scripts.scripts")


@pytest.fixture
def box() -> Iterator[Box]:
    """Three nodes: the last is of no cluster at first."""
    with cluster_in_a_box(nodes=3) as up:
        key = up.control.folder / "root" / "key"
        key.write_bytes(up.key.read_bytes())
        key.chmod(0o600)
        yield up


def _make_run(box: Box, name: str, **changes: Any) -> BoxedRun:
    head, worker, _ = box.nodes
    cluster = {"provider": "ray-up", "cloud": "on-premise", "ssh_user": "root", "ssh_private_key": "~/key"}
    cluster |= {"head_ip": head.address, "worker_ips": [worker.address], "python": sys.executable}
    # Ray finds all of this machine's CPUs on each node: a node holds one worker.
    workers = {"count": "1..2", "cpus": 0.75 * (os.cpu_count() or 1)}
    return BoxedRun(box, name, cluster | {"storage": str(box.shared / "runs"), "workers": workers} | changes)


def _rays(node: Node) -> list[str]:
    """Processes of Ray on a node."""
    listed = node.run("ps", "-eo", "args").splitlines()
    return [line for line in listed if re.search(r"raylet|gcs_server|ray::|ray\.scripts", line)]


def _join(node: Node, head: Node) -> None:
    """Start Ray on a node as an administrator would, with the cluster's token."""
    (token,) = head.folder.glob("root/.cryoformer-dist/*.token")
    (node.folder / "root" / "token").write_text(token.read_text())
    (node.folder / "root" / "token").chmod(0o600)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{HOME}/token"}
    words = ("start", f"--address={head.address}:6379", "--block", "--disable-usage-stats")
    node.begin(*RAY, *words, log=node.folder / "ray.log", environment=environment)


def _wait_for_workers(run: BoxedRun, count: int) -> float:
    """Seconds until so many have reported."""
    return run.wait(f"{count} workers", lambda: read_records_so_far(run.folder)[-1].workers == count)


def test_machines_reached_by_ssh_are_brought_up_train_lose_and_gain_a_node_and_are_taken_down(box: Box) -> None:
    store = write_set(box.shared)
    head, worker, spare = box.nodes
    run = _make_run(box, "by_ssh")
    said = run.launch(store, {"dataset.loader": "ray"})
    assert said.count("storage and store seen") == 2
    assert (run.folder / "report.html").is_file()
    assert "succeeded (exit code 0)" in run.command("status", run.name)

    # The cluster is up, and is used again.
    run = _make_run(box, "disturbed", keep_up=False)
    run.launch_and_wait(store, ENDLESS)
    assert read_records_so_far(run.folder)[-1].workers == 2
    worker.kill()
    print(f"a node lost: {_wait_for_workers(run, 1):.0f} s until a report of the other")
    _join(spare, head)
    print(f"a node added: {_wait_for_workers(run, 2):.0f} s until a report of both")
    steps = [record.step for record in read_records_so_far(run.folder)]
    assert steps == sorted(set(steps))
    run.command("stop", run.name)
    assert "stopped" in run.command("status", run.name)

    # Who sees the end takes the cluster down.
    code, said = run.try_command("logs", run.name)
    assert code == 130, said
    run.wait("no Ray on the head", lambda: _rays(head) == [], 60)
    run.wait("no Ray where its head is gone", lambda: _rays(spare) == [], 240)
