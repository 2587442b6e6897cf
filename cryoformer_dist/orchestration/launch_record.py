"""What has been launched from here, and where to ask how it is doing."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.config.schema import RUN_NAME
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import find_state_folder, make_private_folder
from cryoformer_dist.storage.records import read_record, write_record

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Launch:
    """A launched run.

    Attributes
    ----------
    name
        Of the run.
    storage
        Where its run directory is.
    files
        ``cluster.yaml`` and ``run.yaml`` as they were sent, for `resume`.
    handle
        What the provider finds it by.
    started
        Local time.
    """

    name: str
    storage: str
    files: Mapping[str, str]
    handle: Mapping[str, str]
    started: str

    @property
    def home(self) -> str:
        """The run directory."""
        return f"{self.storage.rstrip('/')}/{self.name}"


def find_launch_folder() -> Path:
    """Where this user's launches are kept."""
    return find_state_folder() / "launches"


def write_launch(name: str, storage: str, files: Mapping[str, str], handle: Mapping[str, str]) -> Launch:
    """Write down a launch of this moment, in place of an earlier one of its name; see `Launch`."""
    launch = Launch(name, storage, dict(files), dict(handle), time.strftime("%Y-%m-%d %H:%M:%S"))
    folder = find_launch_folder()
    make_private_folder(folder)
    write_record(folder / f"{name}.json", launch, _SCHEMA_VERSION).chmod(0o600)
    return launch


def find_launch(name: str) -> Launch | None:
    """The launch of a run of this name, if this user made one from this machine."""
    path = find_launch_folder() / f"{name}.json"
    return _read(path) if re.fullmatch(RUN_NAME, name) and path.is_file() else None


def read_launch(name: str) -> Launch:
    """A launch by the name of its run.

    Raises
    ------
    ClusterError
        If none of this name was launched by this user from this machine.
    """
    launch = find_launch(name)
    if launch is None:
        known = ", ".join(launch.name for launch in read_launches()) or "none"
        raise ClusterError(f"no launch is called {name!r}; launched from here: {known}")
    return launch


def read_launches() -> list[Launch]:
    """Every launch kept here, by name."""
    return [_read(path) for path in sorted(find_launch_folder().glob("*.json"))]


def _read(path: Path) -> Launch:
    return read_record(path, Launch, _SCHEMA_VERSION, "delete it, or use the version of cryoformer-dist that wrote it")
