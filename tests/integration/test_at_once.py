"""Real commands that come at once, and one that asks for less than was done: one wins, the others say why."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.command_line import run_command, running, train_command
from support.tiny_runs import tiny_settings

from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.training_log import read_training_log

pytestmark = pytest.mark.slow
STEPS, SECONDS = 16, 280


@pytest.fixture
def run_file(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(tiny_store, {"training.epochs": 3})))
    return path


def _both(command: list[str], folder: Path) -> dict[int, list[str]]:
    """Exit code to the last lines of two processes of one command that were begun together."""
    logs = [folder / "first.log", folder / "second.log"]
    with running(command, logs[0]) as first, running(command, logs[1]) as second:
        codes = [process.wait(timeout=SECONDS) for process in (first, second)]
    told = [log.read_text().strip().splitlines() for log in logs]
    assert sorted(codes) == [0, 2], told
    return dict(zip(codes, told, strict=True))


def _is_refused(lines: list[str]) -> bool:
    """One message that says who is there already, and no traceback."""
    errors = [line for line in lines if line.startswith("error: ")]
    said = len(errors) == 1 and any(word in errors[0] for word in ("process", "was launched at"))
    return said and "Traceback" not in "".join(lines)


def test_of_two_trains_of_one_run_directory_one_trains_and_the_other_says_why(run_file: Path, tmp_path: Path) -> None:
    told = _both(train_command(run_file, tmp_path / "runs", "one", "--local"), tmp_path)
    assert _is_refused(told[2]), told[2]
    assert read_training_log(tmp_path / "runs" / "one")[-1].step == STEPS
    assert (tmp_path / "runs" / "one" / "report.html").is_file()


def test_of_two_launches_of_one_name_one_runs_and_the_other_says_why(run_file: Path, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(
        yaml.safe_dump({"provider": "local", "storage": "runs", "run": "run.yaml", "workers": {"count": 1}})
    )
    told = _both([sys.executable, "-m", "cryoformer_dist.cli", "launch", str(cluster), "--name", "one"], tmp_path)
    assert _is_refused(told[2]), told[2]
    assert read_training_log(tmp_path / "runs" / "one")[-1].step == STEPS
    assert (tmp_path / "runs" / "one" / "report.html").is_file()


def _wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_resumed_with_fewer_epochs_than_it_has_done_takes_no_step_and_is_reported(
    run_file: Path, tmp_path: Path
) -> None:
    command, run = train_command(run_file, tmp_path / "runs", "one", "--local"), tmp_path / "runs" / "one"
    with running([*command, "--set", "training.epochs=500"], tmp_path / "log") as process:
        _wait_for(lambda: (run / "checkpoints" / "step-00000012").is_dir(), process)
        (run / "stop").touch()
        assert process.wait(timeout=SECONDS) == 130
    before = latest_checkpoint(run)
    assert before is not None
    told = run_command([*command, "--resume", "--set", "training.epochs=1"])
    assert "report.html" in told
    assert latest_checkpoint(run) == before
    assert (run / "report.html").is_file()
