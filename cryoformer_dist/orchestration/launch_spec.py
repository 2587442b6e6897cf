"""A run on its way to a cluster, and what every kind of cluster does with it."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cryoformer_dist.config.cluster import ClusterConfig
from cryoformer_dist.config.loading import dump_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ClusterError

# What finds a submitted job again: plain strings without secrets, kept in a file.
Handle = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A run to be made on a cluster: two files, and the command that reads them there.

    Attributes
    ----------
    name
        Of the run directory; launches are found again by it.
    cluster
        Where, its paths those of the cluster's nodes.
    run
        What, likewise.
    resume
        Go on with the run that is there.
    """

    name: str
    cluster: ClusterConfig
    run: RunConfig
    resume: bool

    @property
    def files(self) -> dict[str, str]:
        """File name to text: ``cluster.yaml`` and ``run.yaml``."""
        return {"cluster.yaml": dump_config(self.cluster), "run.yaml": dump_config(self.run)}

    def command(self, folder: str, python: str) -> list[str]:
        """What a node runs, the files lying in a folder there: the whole way, from particles to report."""
        program = [python, "-m", "cryoformer_dist.cli", "drive", f"{folder}/cluster.yaml", f"{folder}/run.yaml"]
        return [*program, "--name", self.name, *(["--resume"] if self.resume else [])]


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


class Provider(Protocol):
    """A kind of cluster: takes a launch, and answers for it from any later process."""

    def preview(self, spec: LaunchSpec) -> str:
        """Every file that would be written and every command that would be run, for ``--dry-run``."""

    def submit(self, spec: LaunchSpec) -> Handle:
        """Start the launch and return at once."""

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of its log, from the first on, until it ends."""

    def state(self, handle: Handle) -> JobState:
        """How it is doing."""

    def stop(self, handle: Handle) -> None:
        """End it; the run goes on from its last checkpoint when launched with ``--resume``."""


def output_of(command: Sequence[str], purpose: str, **options: Any) -> str:
    """What a program prints.

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
