"""What every kind of cluster does with a run."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import make_private_folder
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.orchestration.stopping import EXIT_CODES

# What finds a submitted job again: plain strings without secrets, kept in a file.
Handle = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JobState:
    """How a submitted job is doing.

    Attributes
    ----------
    word
        ``lost``: the cluster does not know it any more.
    exit_code
        Of the driver, once it has ended and if the cluster tells.
    """

    word: Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.word not in ("pending", "running")


def write_private_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write a launch's files, in place of those of an earlier one of its name, for this user alone to read."""
    make_private_folder(folder)
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)


def judge_exit(code: int) -> JobState:
    """How a driver ended, by its exit code."""
    return JobState("succeeded" if code == 0 else "stopped" if code in EXIT_CODES else "failed", code)


class Provider(Protocol):
    """A kind of cluster: takes a run, and answers for it from any later process."""

    def preview(self, request: RunRequest) -> str:
        """Every file that would be written and every command that would be run, for ``--dry-run``."""

    def submit(self, request: RunRequest) -> Handle:
        """Start the run and return at once."""

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of its log, from the first on, until it ends; then what was there for it alone is taken down."""

    def ask_state(self, handle: Handle) -> JobState:
        """How it is doing."""

    def stop(self, handle: Handle) -> None:
        """End it; the run goes on from its last checkpoint when launched with ``--resume``."""


def run_program(command: Sequence[str], purpose: str, **options: Any) -> str:
    """Run a program to its end; returns what it prints.

    Parameters
    ----------
    command
        Program and arguments.
    purpose
        What it is run for, for the error.
    options
        Further ones of ``subprocess.run``: ``input``, ``env``, ``cwd``.

    Raises
    ------
    ClusterError
        If it is not installed or fails, with the last lines it said.
    """
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, check=False, **options)
    except FileNotFoundError as error:
        raise ClusterError(f"{purpose}: {command[0]} is not installed here, or not on the PATH") from error
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        raise ClusterError(f"{purpose}: `{' '.join(command[:3])}` ended with code {done.returncode}: {said}")
    return done.stdout
