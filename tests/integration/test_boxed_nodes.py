"""The cluster in a box itself: seconds; run with -m cluster."""

import os
import time
from pathlib import Path

import pytest
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.node import HOME, Node
from cluster_in_a_box.requirements import find_obstacle_to_accounting

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("box_possible")]
_TALK = """
import socket, sys, time
kind, host = sys.argv[1:]
if kind == "hear":
    heard, _ = socket.create_server(("", 99)).accept()
    while word := heard.recv(1 << 20):
        heard.sendall(word[:1])
else:
    there = socket.create_connection((host, 99), timeout=3)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(50):
        start = time.perf_counter(); there.sendall(b"x"); there.recv(1)
        times.append(time.perf_counter() - start)
    print(sorted(times)[25])
"""


def _namespaces(process: str) -> set[str]:
    """What a process is in; nothing of one that has ended meanwhile."""
    try:
        return {os.readlink(f"/proc/{process}/ns/{kind}") for kind in ("net", "mnt", "pid", "uts")}
    except OSError:
        return set()


def _ping(box: Box, speaker: Node, hearer: Node) -> float:
    """Seconds there and back, the median of fifty."""
    hearing = hearer.begin("python", "-c", _TALK, "hear", "-", log=box.shared / "heard")
    box.slurm.wait("a listener", lambda: ":99 " in hearer.run("ss", "--listening", "--tcp", "--numeric"))
    told = speaker.run("python", "-c", _TALK, "speak", hearer.name)
    hearing.wait(timeout=10)
    return float(told)


def test_nodes_have_names_addresses_and_jobs_of_their_own_and_nothing_is_left() -> None:
    mounts, here = Path("/proc/mounts").read_text(), _namespaces("self")
    with cluster_in_a_box() as box:
        made = {each for node in (box.control, *box.nodes) for each in _namespaces(str(node.first_process))}
        assert len(made) == 12
        assert made & here == set()
        folder = box.shared.parent
        said = box.control.run("srun", "--nodes=2", "sh", "-c", "echo $(hostname) $(cat /proc/sys/kernel/hostname)")
        assert sorted(said.splitlines()) == ["node1 node1", "node2 node2"]
        key = box.nodes[0].folder / "root" / "key"
        key.write_bytes(box.key.read_bytes())
        key.chmod(0o600)
        options = ["-i", f"{HOME}/key", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
        assert box.nodes[0].run("ssh", *options, "root@node2", "hostname") == "node2\n"
        assert box.nodes[0].attempt("touch", "/etc/of_a_node").returncode != 0
    assert [process for process in Path("/proc").glob("[0-9]*") if _namespaces(process.name) & made] == []
    assert not folder.exists()
    assert Path("/proc/mounts").read_text() == mounts


def test_a_node_that_is_cut_off_hears_nothing_until_it_is_mended() -> None:
    with cluster_in_a_box() as box:
        one, two = box.nodes
        assert _ping(box, one, two) < 0.1
        box.network.cut(two)
        hearing = two.begin("python", "-c", _TALK, "hear", "-", log=box.shared / "heard")
        start = time.monotonic()
        assert "timed out" in one.attempt("python", "-c", _TALK, "speak", "node2").stderr
        assert time.monotonic() - start > 2.5
        box.network.mend(two)
        assert float(one.run("python", "-c", _TALK, "speak", "node2")) < 0.1
        hearing.wait(timeout=10)


def test_a_link_takes_as_long_as_it_is_told() -> None:
    with cluster_in_a_box() as box:
        for node in box.nodes:
            box.network.slow_down(node, delay_ms=2, gbit_per_second=1)
        # A busy machine adds its own.
        assert 4e-3 < _ping(box, *box.nodes) < 0.1


def test_what_the_controller_forgot_accounting_knows() -> None:
    if obstacle := find_obstacle_to_accounting():
        pytest.skip(obstacle)
    with cluster_in_a_box(nodes=1, accounting=True) as box:
        job = box.control.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3").strip()
        asked = ("scontrol", "show", "job", job)
        box.slurm.wait("a job forgotten", lambda: box.control.attempt(*asked).returncode != 0, 120)
        columns = ["--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"]
        assert box.control.run("sacct", "--jobs", job, *columns) == "FAILED|3:0\n"
