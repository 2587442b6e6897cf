"""Runs on a real Slurm of two nodes, disturbed: they end as one that was not. Run with -m cluster, as root."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_in_a_box.box import Box
from support.boxed_runs import ELASTIC, LONG, BoxedRun, assert_same_curve, assert_same_end, slurm_run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def undisturbed(box: Box, boxed_store: Path) -> tuple[BoxedRun, str]:
    """A run of two nodes from launch to report, and what was said."""
    run = slurm_run(box, "undisturbed")
    return run, run.launch(boxed_store, LONG)


@pytest.fixture(scope="module")
def whole(undisturbed: tuple[BoxedRun, str]) -> Path:
    """The run directory that all others are compared with."""
    return undisturbed[0].folder


def _assert_ended_as(run: BoxedRun, whole: Path, compare: Callable[[Path, Path], None] = assert_same_end) -> None:
    """The run ends well, as if nothing had happened, and leaves nothing."""
    run.end()
    assert "succeeded (exit code 0)" in run.command("status", run.name)
    compare(run.folder, whole)
    run.box.slurm.wait("idle nodes", lambda: set(run.box.slurm.states().values()) == {"idle"}, 90)
    # A node that was cut off is told of the job's end when it is back.
    run.box.slurm.wait("nothing of it anywhere", lambda: run.processes() == [], 90)


def _let_the_lease_age(begin: float) -> None:
    """A driver that comes within half a minute of another's death takes it for alive; Slurm waits for two minutes."""
    time.sleep(max(0.0, begin + 40 - time.monotonic()))


def test_a_launch_on_two_nodes_ends_in_the_report(undisturbed: tuple[BoxedRun, str]) -> None:
    run, said = undisturbed
    assert "2 of 2 nodes are up" in said
    assert said.count("storage and store seen") == 2
    assert (run.folder / "report.html").is_file()
    assert "succeeded (exit code 0)" in run.command("status", run.name)
    assert run.processes() == []


def test_a_node_killed_at_a_random_time_five_times_costs_time_and_nothing_else(
    box: Box, boxed_store: Path, whole: Path
) -> None:
    run, chance = slurm_run(box, "killed"), random.Random(0)
    last, kills = BoxedRun(box, "undisturbed", run.cluster).step, 5
    run.launch(boxed_store, LONG, "--detach")
    for number in range(kills):
        # Anywhere in its part of the run, of which the last is left alone.
        run.wait_for_step(round(last * (number + chance.random()) / (kills + 1)))
        node = chance.choice(box.nodes)
        begin, before = time.monotonic(), run.step
        box.lose(node)
        box.slurm.wait("a job that goes back", lambda: run.restarts() == number + 1, 180)  # noqa: B023
        box.bring_back(node)
        _let_the_lease_age(begin)
        run.come_back()
        print(f"killed {node.name} at step {before} of {last}: {time.monotonic() - begin:.0f} s until a later report")
    _assert_ended_as(run, whole)


def test_a_run_that_gives_way_three_times_and_is_requeued_by_hand_goes_on_where_it_was(
    box: Box, boxed_store: Path, whole: Path
) -> None:
    run = slurm_run(box, "preempted", partition="low")
    run.launch_and_wait(boxed_store, LONG)
    higher = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 5", "--output=/dev/null")
    for _ in range(3):
        box.control.run(*higher)
        print(f"gave way: {run.come_back():.0f} s until a later report")
    assert run.log.count("Slurm wants the nodes back") == 3
    box.control.run("scontrol", "requeue", run.job)
    print(f"requeued by hand: {run.come_back():.0f} s until a later report")
    assert run.restarts() == 4
    assert "start number 5 of this job" in run.log
    _assert_ended_as(run, whole)


def test_a_run_that_is_cancelled_or_stopped_leaves_nothing_on_the_nodes_and_is_resumed(
    box: Box, boxed_store: Path, whole: Path
) -> None:
    run = slurm_run(box, "ended_early")
    run.launch_and_wait(boxed_store, LONG)
    box.control.run("scancel", run.job)
    box.slurm.wait("a cancelled job", lambda: box.slurm.job(run.job)["JobState"] == "CANCELLED", 120)
    run.wait("empty nodes", lambda: run.processes() == [], 60)
    assert "stopped" in run.command("status", run.name)
    before = run.step
    run.command("resume", run.name, "--detach")
    run.wait_for_step(before + 10)
    run.command("stop", run.name)
    code, said = run.try_command("logs", run.name)
    assert code == 130, said
    run.command("resume", run.name, "--detach")
    _assert_ended_as(run, whole)


def test_a_run_that_can_shrink_goes_on_without_a_lost_node_and_comes_back_when_its_first_is_lost(
    box: Box, boxed_store: Path, whole: Path
) -> None:
    run = slurm_run(box, "elastic", workers=ELASTIC)
    run.launch_and_wait(boxed_store, LONG)
    begin = time.monotonic()
    box.lose(box.nodes[0])
    # The other node's Ray notices first, then asks Slurm.
    box.slurm.wait("a job that goes back", lambda: run.restarts() == 1, 180)
    assert "Slurm has lost node1" in run.log
    box.bring_back(box.nodes[0])
    _let_the_lease_age(begin)
    run.come_back()
    print(f"first node lost: {time.monotonic() - begin:.0f} s until a later report")
    before = run.step
    box.lose(box.nodes[1])
    print(f"second node lost: {run.wait_for_step(before + 20):.0f} s until the next report but some")
    assert run.restarts() == 1
    box.bring_back(box.nodes[1])
    _assert_ended_as(run, whole, assert_same_curve)


def test_a_run_that_can_shrink_goes_on_without_a_node_that_is_cut_off(box: Box, boxed_store: Path, whole: Path) -> None:
    run = slurm_run(box, "cut", workers=ELASTIC)
    run.launch_and_wait(boxed_store, LONG)
    box.network.cut(box.nodes[1])
    begin, before = time.monotonic(), run.step
    try:
        print(f"cut off: {run.wait_for_step(before + 20):.0f} s until the next report but some")
        run.end()
        # To the node it was two minutes at least, to the run for ever.
        time.sleep(max(0.0, begin + 120 - time.monotonic()))
    finally:
        box.network.mend(box.nodes[1])
    _assert_ended_as(run, whole, assert_same_curve)


def test_a_run_that_cannot_shrink_waits_in_the_queue_for_a_node_that_is_cut_off_or_drained(
    box: Box, boxed_store: Path, whole: Path
) -> None:
    run = slurm_run(box, "cut_fixed")
    run.launch_and_wait(boxed_store, LONG)
    # A drained node keeps what it has.
    drained = ("scontrol", "update", "nodename=node1", "reason=later")
    box.control.run(*drained, "state=drain")
    run.wait_for_step(run.step + 10)
    box.network.cut(box.nodes[1])
    try:
        box.slurm.wait("a job that goes back", lambda: run.restarts() == 1, 180)
    finally:
        box.network.mend(box.nodes[1])
    box.slurm.hasten(run.job)
    box.slurm.wait("a node that is back", lambda: box.slurm.states()["node2"] == "idle", 90)
    assert "  pending  " in run.command("status", run.name)
    assert box.slurm.job(run.job)["JobState"] == "PENDING"
    box.control.run(*drained, "state=resume")
    run.come_back()
    _assert_ended_as(run, whole)
