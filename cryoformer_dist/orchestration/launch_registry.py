"""What has been launched from here, and where to ask how it is doing."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import state_folder
from cryoformer_dist.storage.places import write_whole

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

    @classmethod
    def now(cls, name: str, storage: str, files: Mapping[str, str], handle: Mapping[str, str]) -> "Launch":
        """A launch of this moment."""
        return cls(name, storage, dict(files), dict(handle), time.strftime("%Y-%m-%d %H:%M:%S"))


def launch_folder() -> Path:
    """Where this user's launches are kept."""
    return state_folder() / "launches"


def keep_launch(launch: Launch) -> None:
    """Write a launch down, in place of an earlier one of its name."""
    folder = launch_folder()
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema_version": _SCHEMA_VERSION, **asdict(launch)}
    write_whole(folder / f"{launch.name}.json", json.dumps(record, indent=1))


def find_launch(name: str) -> Launch:
    """A launch by the name of its run.

    Raises
    ------
    ClusterError
        If none of this name was launched by this user from this machine.
    """
    path = launch_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(launch.name for launch in all_launches()) or "none"
        raise ClusterError(f"no launch is called {name!r}; launched from here: {known}")
    return _read(path)


def all_launches() -> list[Launch]:
    """Every launch kept here, by name."""
    return [_read(path) for path in sorted(launch_folder().glob("*.json"))]


def _read(path: Path) -> Launch:
    try:
        values = json.loads(path.read_text())
        version = values.pop("schema_version")
        launch = Launch(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"{path}: not readable ({error}); delete it") from error
    if version > _SCHEMA_VERSION:
        raise ClusterError(f"{path}: written by a newer version (schema {version}); upgrade cryoformer-dist")
    return launch
