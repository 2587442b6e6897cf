"""What `launch`, `status` and `logs` say of jobs of a real Slurm. Run with -m cluster, as root."""

import os
import re
from pathlib import Path

import pytest
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.requirements import find_obstacle_to_accounting
from support.boxed_runs import ENDLESS, LONG, BoxedRun, slurm_run
from support.tiny_runs import write_set

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("box_possible")]
# How much later than on a single machine a run may begin to train on an idle cluster.
_LATER_SECONDS = 15
ALONE = {"nodes": 1, "workers": {"count": 1, "cpus": 0.9}}


def _wait_until_idle(box: Box) -> None:
    box.slurm.wait("idle nodes", lambda: set(box.slurm.states().values()) == {"idle"}, 90)


def test_the_first_step_comes_hardly_later_on_slurm_than_on_one_machine(box: Box, boxed_store: Path) -> None:
    load = os.getloadavg()[0]
    local = {"provider": "local", "storage": str(box.shared / "runs"), "workers": {"count": 1, "cpus": 0.9}}
    runs = [BoxedRun(box, "local", local), slurm_run(box, "alone", **ALONE), slurm_run(box, "pair")]
    seconds = {run.name: run.time_first_step(boxed_store) for run in runs}
    print(f"from launch to the first report, s, at load {load:.1f} on {os.cpu_count()} cores: {seconds}")
    # A machine that others keep busy takes longer for everything.
    bar = _LATER_SECONDS * max(1.0, load / (os.cpu_count() or 1))
    # Two nodes share the cores here that one has alone: that they take longer says nothing.
    assert seconds["alone"] - seconds["local"] < bar


def test_a_run_whose_time_is_up_goes_on_in_another_allocation(box: Box, boxed_store: Path) -> None:
    run = slurm_run(box, "out_of_time", time="00:04:00")
    run.launch_and_wait(boxed_store, ENDLESS)
    run.wait("a warning", lambda: "Slurm wants the nodes back" in run.log)
    run.come_back()
    assert "start number 2 of this job" in run.log
    run.command("stop", run.name)
    _wait_until_idle(box)


def test_two_jobs_run_side_by_side_on_one_node_and_one_at_a_taken_port_is_refused(box: Box, boxed_store: Path) -> None:
    here = ALONE | {"cpus_per_node": 1, "options": ["--nodelist=node1"]}
    first = slurm_run(box, "beside", **here)
    first.launch_and_wait(boxed_store, ENDLESS)
    refused = slurm_run(box, "same_port", **here)
    code, said = refused.try_launch(boxed_store, LONG)
    assert code == 1
    assert "is port 6379 taken (set port:)" in said
    second = slurm_run(box, "beside_it", **here, port=6479, dashboard_port=8365)
    second.launch(boxed_store, LONG)
    assert (second.folder / "report.html").is_file()
    for run in (first, second):
        assert box.slurm.job(run.job)["NodeList"] == "node1"
    # The other has gone on all the while.
    first.wait_for_step(first.step + 5)
    first.command("stop", first.name)
    _wait_until_idle(box)
    assert first.processes() == []


def test_a_run_below_its_fewest_workers_says_for_whom_it_waits_and_since_when(box: Box, boxed_store: Path) -> None:
    run = slurm_run(box, "too_few", workers={"count": "2..3", "cpus": 1.5})
    run.launch_and_wait(boxed_store, ENDLESS)
    box.lose(box.nodes[1])
    waiting = r"training waits since \d\d:\d\d:\d\d for room for 2 workers: the nodes that are up hold 1; gone: node2"
    run.wait("word of whom it waits for", lambda: len(re.findall(waiting, run.log)) >= 2, 240)
    assert re.search(rf"too_few  running, but {waiting}", run.command("status", run.name))
    box.bring_back(box.nodes[1])
    run.command("stop", run.name)
    _wait_until_idle(box)


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
def test_a_job_ends_with_the_exit_code_of_the_run_and_one_that_nobody_remembers_is_lost(box: Box) -> None:
    run = slurm_run(box, "refused")
    _refuse(run)
    (kept,) = box.control.folder.glob("root/.local/state/cryoformer-dist/launches/refused.json")
    kept.write_text(kept.read_text().replace(f'"{run.job}"', '"987654"'))
    assert "lost" in run.command("status", run.name)


def test_a_job_that_the_controller_forgot_is_remembered_by_accounting() -> None:
    if obstacle := find_obstacle_to_accounting():
        pytest.skip(obstacle)
    with cluster_in_a_box(nodes=1, accounting=True) as box:
        write_set(box.shared)
        run = slurm_run(box, "refused", **ALONE)
        _refuse(run)
        asked = ("scontrol", "show", "job", run.job)
        box.slurm.wait("a job forgotten", lambda: box.control.attempt(*asked).returncode != 0, 180)
        assert "failed (exit code 2)" in run.command("status", run.name)
