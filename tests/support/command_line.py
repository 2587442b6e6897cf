"""The program as its users start it, in a process of its own or in this one."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cryoformer_dist.cli import main as cli


def train_command(run_file: Path, storage: Path, name: str, *options: str) -> list[str]:
    program = [sys.executable, "-m", "cryoformer_dist.cli", "train", str(run_file)]
    return [*program, "--storage", str(storage), "--name", name, *options]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Any:
    with log.open("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env=_environment(), start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_command(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of the command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["cryoformer-dist", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a command that must fail for a reason the user can fix."""
    assert run_main(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message
