"""Ray's cluster launcher over real ssh to nodes of their own. Minutes each: run with -m cluster, as root."""

import re
import sys
from pathlib import Path

import pytest
from cluster_in_a_box.box import Box
from support.boxed_runs import BoxedRun

pytestmark = pytest.mark.cluster


def _make_run(box: Box, name: str) -> BoxedRun:
    (box.control.folder / "root" / "key").write_bytes(box.key.read_bytes())
    (box.control.folder / "root" / "key").chmod(0o600)
    head, *others = box.nodes
    cluster = {"provider": "ray-up", "cloud": "on-premise", "ssh_user": "root", "ssh_private_key": "~/key"}
    cluster |= {"head_ip": head.address, "worker_ips": [node.address for node in others], "python": sys.executable}
    return BoxedRun(box, name, cluster | {"storage": str(box.shared / "runs"), "workers": {"count": 2, "cpus": 1.5}})


def _rays(box: Box) -> list[str]:
    """Processes of Ray on the nodes."""
    listed = [line for node in box.nodes for line in node.run("ps", "-eo", "args").splitlines()]
    return [line for line in listed if re.search(r"raylet|gcs_server|ray::|ray\.scripts", line)]


def test_machines_reached_by_ssh_are_brought_up_train_and_are_taken_down(box: Box, boxed_store: Path) -> None:
    run = _make_run(box, "by_ssh")
    said = run.launch(boxed_store, {"dataset.loader": "ray"})
    assert said.count("storage and store seen") == 2
    assert (run.folder / "report.html").is_file()
    assert "succeeded (exit code 0)" in run.command("status", run.name)
    (ray_file,) = (box.control.folder / "root").glob(".local/state/cryoformer-dist/clusters/*/ray.yaml")
    inside = f"/root/{ray_file.relative_to(box.control.folder / 'root')}"
    assert _rays(box) != []
    box.control.run("python", "-m", "ray.scripts.scripts", "down", "--yes", inside, seconds=120)
    run.wait("no Ray on the nodes", lambda: _rays(box) == [], 60)
