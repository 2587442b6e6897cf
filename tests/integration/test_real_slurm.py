"""Runs on a real Slurm of two nodes, disturbed. Minutes each: run with -m cluster, as root."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.node import Node
from cluster_in_a_box.requirements import find_obstacle, find_obstacle_to_accounting
from support.boxed_runs import LONG, BoxedRun, assert_same_end
from support.tiny_runs import write_set

pytestmark = pytest.mark.cluster
MakeRun = Callable[..., BoxedRun]
# A run is disturbed once it has reported this step.
EARLY = 40
FIXED, ELASTIC = {"count": 2, "cpus": 1.5}, {"count": "1..2", "cpus": 1.5}


def _run_in(box: Box, name: str, **changes: Any) -> BoxedRun:
    cluster = {"provider": "slurm", "storage": str(box.shared / "runs"), "nodes": 2, "cpus_per_node": 2}
    cluster |= {"python": sys.executable, "time": "01:00:00", "workers": FIXED}
    return BoxedRun(box, name, cluster | changes)


@pytest.fixture(scope="module")
def make_run(box: Box) -> MakeRun:
    """A run by two workers, one per node unless the test says otherwise."""
    return partial(_run_in, box)


@pytest.fixture(scope="module")
def undisturbed(make_run: MakeRun, boxed_store: Path) -> tuple[BoxedRun, str]:
    """A run of two nodes from launch to report, and what was said."""
    run = make_run("undisturbed")
    return run, run.launch(boxed_store, LONG)


def _launch(run: BoxedRun, store: Path, changes: dict[str, Any] = LONG) -> None:
    """Launch, and wait until it trains."""
    run.launch(store, changes, "--detach")
    run.wait_for_step(EARLY)


def _assert_it_comes_back(run: BoxedRun, whole: BoxedRun) -> None:
    """The run returns to the queue once, and ends well, as if nothing had happened."""
    run.box.slurm.hasten(run.job)
    before = run.step
    print(f"{run.name}: a report from after the return came {run.wait_for_step(before + 5):.0f} s after it")
    run.end()
    assert run.command("status", run.name).count("succeeded (exit code 0)") == 1
    assert int(run.box.slurm.job(run.job)["Restarts"]) == 1
    assert_same_end(run.folder, whole.folder)


def _processes(box: Box, job: str) -> list[str]:
    """What is left on the nodes of a job of ours."""
    found = []
    for node in box.nodes:
        listed = node.run("ps", "-eo", "args").splitlines()
        found += [f"{node.name}: {line}" for line in listed if re.search(rf"cf_{job}\b|cryoformer_dist|ray::", line)]
        found += node.run("sh", "-c", f"ls -d /tmp/cf_{job} 2>/dev/null || true").splitlines()
    return found


def test_a_launch_on_two_nodes_ends_in_the_report(undisturbed: tuple[BoxedRun, str], box: Box) -> None:
    run, said = undisturbed
    assert "2 of 2 nodes are up" in said
    assert said.count("storage and store seen") == 2
    assert (run.folder / "report.html").is_file()
    assert "succeeded (exit code 0)" in run.command("status", run.name)
    assert _processes(box, run.job) == []


def test_a_run_that_is_requeued_by_hand_goes_on_where_it_was(
    make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str], box: Box
) -> None:
    run = make_run("requeued")
    _launch(run, boxed_store)
    box.control.run("scontrol", "requeue", run.job)
    _assert_it_comes_back(run, undisturbed[0])
    assert "start number 2 of this job" in run.log


def test_a_run_that_is_cancelled_ends_and_leaves_nothing_on_the_nodes(
    make_run: MakeRun, boxed_store: Path, box: Box
) -> None:
    run = make_run("cancelled")
    _launch(run, boxed_store)
    box.control.run("scancel", run.job)
    box.slurm.wait("a cancelled job", lambda: box.slurm.job(run.job)["JobState"] == "CANCELLED", 120)
    run.wait("empty nodes", lambda: _processes(box, run.job) == [], 60)
    assert "stopped" in run.command("status", run.name)
    run.wait("idle nodes", lambda: set(box.slurm.states().values()) == {"idle"}, 60)


def test_a_run_that_is_stopped_has_a_checkpoint_and_goes_on(
    make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str]
) -> None:
    run = make_run("stopped")
    _launch(run, boxed_store)
    run.command("stop", run.name)
    code, said = run.try_command("logs", run.name)
    assert code == 130, said
    run.command("resume", run.name)
    assert_same_end(run.folder, undisturbed[0].folder)


def _lose(box: Box, node: Node) -> None:
    """A node without power, as an administrator tells Slurm who does not want to wait until it notices."""
    node.kill()
    box.control.run("scontrol", "update", f"nodename={node.name}", "state=down", "reason=lost")


def _bring_back(box: Box, node: Node) -> None:
    box.bring_back(node)
    box.slurm.wait("the node is back", lambda: "down" not in box.slurm.states()[node.name], 90)


def test_a_run_that_can_shrink_loses_a_node_and_no_particle(
    make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str], box: Box
) -> None:
    run = make_run("shrunk", workers=ELASTIC)
    _launch(run, boxed_store)
    _lose(box, box.nodes[1])
    before = run.step
    print(f"shrunk: the next report came after {run.wait_for_step(before + 20):.0f} s")
    run.end()
    _bring_back(box, box.nodes[1])
    assert int(box.slurm.job(run.job)["Restarts"]) == 0
    assert_same_end(run.folder, undisturbed[0].folder)


@pytest.mark.parametrize("workers", [FIXED, ELASTIC], ids=["fixed", "elastic"])
def test_a_run_that_loses_its_first_node_comes_back_with_another(
    workers: dict[str, Any], make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str], box: Box
) -> None:
    run = make_run(f"beheaded_{workers['count']}".replace("..", "_"), workers=workers)
    _launch(run, boxed_store)
    _lose(box, box.nodes[0])
    # At once where Slurm ends the job; else the other node's Ray notices first.
    box.slurm.wait("a job that goes back", lambda: box.slurm.job(run.job)["Restarts"] == "1", 180)
    _bring_back(box, box.nodes[0])
    _assert_it_comes_back(run, undisturbed[0])


def test_a_run_that_gives_way_to_a_higher_partition_goes_on_after_it(
    make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str], box: Box
) -> None:
    run = make_run("preempted", partition="low")
    _launch(run, boxed_store)
    box.control.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 5", "--output=/dev/null")
    _assert_it_comes_back(run, undisturbed[0])
    assert "Slurm wants the nodes back" in run.log


def test_a_run_whose_time_is_up_goes_on_in_another_allocation(make_run: MakeRun, boxed_store: Path) -> None:
    run = make_run("out_of_time", time="00:03:00")
    _launch(run, boxed_store, LONG | {"training.epochs": 3000})
    run.wait("a warning", lambda: "Slurm wants the nodes back" in run.log)
    run.box.slurm.hasten(run.job)
    run.wait("a second allocation", lambda: "start number 2 of this job" in run.log)
    reached = run.step
    run.wait_for_step(reached + 20)
    run.command("stop", run.name)


def test_a_node_that_is_cut_off_for_a_while_does_not_end_the_run(
    make_run: MakeRun, boxed_store: Path, undisturbed: tuple[BoxedRun, str], box: Box
) -> None:
    run = make_run("cut", workers=ELASTIC)
    _launch(run, boxed_store)
    box.network.cut(box.nodes[1])
    before = run.step
    try:
        seconds = run.wait_for_step(before + 20)
    finally:
        box.network.mend(box.nodes[1])
    print(f"the next report came after {seconds:.0f} s")
    run.end()
    assert_same_end(run.folder, undisturbed[0].folder)


def _refuse(run: BoxedRun) -> None:
    """A run that the driver refuses on the cluster, as the user's to mend."""
    # The store is another one when the job comes to it.
    run.launch(run.box.shared / "particles.zarr", LONG, "--detach")
    launched = run.box.shared / "runs" / run.name / "launch" / "run.yaml"
    launched.write_text(launched.read_text().replace("particles.zarr", "none.zarr"))
    code, said = run.try_command("logs", run.name)
    assert code == 2, said
    assert "failed (exit code 2)" in run.command("status", run.name)


@pytest.mark.usefixtures("boxed_store")
def test_a_job_ends_with_the_exit_code_of_the_run_and_one_that_nobody_remembers_is_lost(
    make_run: MakeRun, box: Box
) -> None:
    run = make_run("refused")
    _refuse(run)
    (kept,) = box.control.folder.glob("root/.local/state/cryoformer-dist/launches/refused.json")
    kept.write_text(kept.read_text().replace(f'"{run.job}"', '"987654"'))
    assert "lost" in run.command("status", run.name)


def test_a_job_that_the_controller_forgot_is_remembered_by_accounting() -> None:
    if obstacle := find_obstacle() or find_obstacle_to_accounting():
        pytest.skip(obstacle)
    with cluster_in_a_box(nodes=1, accounting=True) as box:
        write_set(box.shared)
        run = _run_in(box, "refused", nodes=1, workers={"count": 1, "cpus": 1.5})
        _refuse(run)
        asked = ("scontrol", "show", "job", run.job)
        box.slurm.wait("a job forgotten", lambda: box.control.attempt(*asked).returncode != 0, 180)
        assert "failed (exit code 2)" in run.command("status", run.name)
