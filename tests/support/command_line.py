"""The program as its users start it, in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


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
