import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.command_line import run_command, running, train_command
from support.tiny_runs import assert_same_end, tiny_config, tiny_settings, train

from cryoformer_dist.runs.training_log import read_records_so_far

# Long enough to be killed in: some seconds of steps, a report at each second one.
CHANGES = {
    "training.epochs": 12,
    "model.pose.form": "table",
    "training.report_every_steps": 2,
    "training.checkpoint_every_steps": 6,
    "training.occupancy": "data",
    "training.occupancy_refresh_epochs": 1,
}


def _wait_for_step(run: Path, step: int, process: subprocess.Popen[str], seconds: float = 100) -> None:
    """Until the run has reported a step, while it is still training."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"training ended before step {step}: {process.communicate()[0]}"
        if any(record.step >= step for record in read_records_so_far(run)):
            return
        time.sleep(0.01)
    pytest.fail(f"no report of step {step} within {seconds} s")


@pytest.fixture
def run_file(tiny_store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(tiny_store, CHANGES)))
    return path


@pytest.mark.usefixtures("flushed_denormals")
@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.NoiseDepartureWarning")
def test_a_run_killed_outright_and_resumed_ends_as_if_nothing_had_happened(
    run_file: Path, tiny_store: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    with running(train_command(run_file, storage, "killed", "--local"), tmp_path / "killed.log") as process:
        _wait_for_step(storage / "killed", 20, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert read_records_so_far(storage / "killed")[-1].step < 64
    run_command(train_command(run_file, storage, "killed", "--local", "--resume"))
    train(tiny_config(tiny_store, CHANGES), storage / "whole")
    assert read_records_so_far(storage / "whole")[-1].step == 64
    assert_same_end(storage / "killed", storage / "whole")
    assert (storage / "killed" / "report.html").is_file()


def _training_workers(driver: int) -> list[int]:
    """Processes below the driver that Ray Train named as its workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            title = (folder / "cmdline").read_bytes()
            if b"RayTrainWorker" in title and os.getsid(int(folder.name)) and _descends(int(folder.name), driver):
                found.append(int(folder.name))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds worker processes in /proc, which this system lacks")
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_ray_worker_that_is_lost_is_replaced_and_the_run_ends_the_same(
    run_file: Path, tmp_path: Path, fault: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    storage = tmp_path / "runs"
    settings = yaml.safe_load(run_file.read_text())
    settings["training"]["epochs"] = 8
    settings["dataset"]["loader"] = "ray"
    run_file.write_text(yaml.safe_dump(settings))
    cluster = tmp_path / "cluster.yaml"
    workers = {"count": 2, "silence_minutes": 0.75}
    cluster.write_text(
        yaml.safe_dump(
            {"provider": "local", "storage": "runs", "run": "run.yaml", "workers": workers, "max_failures": 2}
        )
    )
    launch = [sys.executable, "-m", "cryoformer_dist.cli", "launch", str(cluster), "--name"]
    run_command([*launch, "whole"])
    log = tmp_path / "log"
    with running([*launch, "disturbed"], log) as process:
        _wait_for_step(storage / "disturbed", 14, process)
        found = _training_workers(process.pid)
        assert len(found) == 2, log.read_text()
        os.kill(found[-1], fault)
        assert read_records_so_far(storage / "disturbed")[-1].step < 40
        assert process.wait(timeout=280) == 0, log.read_text()
    assert_same_end(storage / "disturbed", storage / "whole")
