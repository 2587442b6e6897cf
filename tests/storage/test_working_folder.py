from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from upath import UPath

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.checkpoint import (
    LearnedState,
    OccupancyState,
    Position,
    write_checkpoint,
)
from cryoformer_dist.runs.checkpoint_choice import fetch_latest, latest_checkpoint
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder, open_working_folder


@pytest.fixture(scope="module")
def home(object_store: Callable[[], UPath]) -> UPath:
    return object_store() / "runs" / "x"


def test_a_folder_on_a_file_system_is_its_own_home(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with open_working_folder(tmp_path) as run:
        assert (run.home, run.folder, run.is_copy) == (tmp_path, tmp_path, False)
        run.fetch("a")
        run.send("a")
        run.send_changes()
        run.forget("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_removed_is_gone_here_and_at_home(home: UPath) -> None:
    place = home / "removing"
    for name in ("here", "there", "maps/1.mrc"):
        (place / name).write_text("old")
    with open_working_folder(place) as run:
        (place / "later").write_text("by others")
        run.remove("here", "maps/1.mrc", "later", "absent")
        assert [path.name for path in run.folder.rglob("*") if path.is_file()] == ["there"]
        run.send_changes()
    assert [name.rpartition("/")[2] for name in sorted(place.fs.find(place.path))] == ["there"]


def test_a_working_copy_brings_what_home_holds_and_sends_what_changed(home: UPath) -> None:
    place = home / "changes"
    for name in ("same", "changed", "removed", "maps/1.mrc", "ray/state"):
        (place / name).write_text("old")
    with open_working_folder(place, ("ray",)) as run:
        assert run.folder.name == "changes"
        assert sorted(run.names_at_home("maps")) == ["maps/1.mrc"]
        assert not (run.folder / "ray").exists()
        (place / "same").write_text("changed by others")
        (run.folder / "changed").write_text("newer")
        (run.folder / "removed").unlink()
        (run.folder / "maps" / "2.mrc").write_text("new")
        run.send_changes(("ray",))
        assert str(run.at_home(run.folder / "maps" / "2.mrc")) == f"{place}/maps/2.mrc"
    assert not run.folder.exists()
    found = {str(name)[len(place.path) + 1 :]: place.fs.cat_file(name).decode() for name in place.fs.find(place.path)}
    assert found == {
        "same": "changed by others",
        "changed": "newer",
        "maps/1.mrc": "old",
        "maps/2.mrc": "new",
        "ray/state": "old",
    }


def test_errors_name_home_and_not_the_working_copy(home: UPath) -> None:
    def fail() -> None:
        with open_working_folder(home / "empty") as run:
            raise ConfigError(f"{run.folder}/manifest.json: no run")

    with pytest.raises(ConfigError, match=rf"^{home}/empty/manifest.json: no run$"):
        fail()


def _write(run: WorkingFolder, step: int, keep: int = 9) -> None:
    def save_engine(folder: Path) -> list[Path]:
        folder.mkdir(exist_ok=True)
        (folder / "state").write_text(str(step))
        return [folder / "state"]

    occupancy: OccupancyState = {"flat_index": torch.arange(3), "residual_outside": None}
    learned = LearnedState({"w": torch.tensor([float(step)])}, {}, occupancy)
    write_checkpoint(run, Position(step=step), True, save_engine, lambda: learned, keep, StorageRetry(run.home, 0))


class Cut(Exception):
    """What ends a sending."""


class CutShort(WorkingFolder):
    """Sends so many files, then the process dies."""

    left = 0

    def send(self, *names: str) -> None:
        for name in names:
            if not self.left:
                raise Cut
            self.left -= 1
            super().send(name)


def test_a_half_sent_checkpoint_is_never_chosen(home: UPath, tmp_path: Path) -> None:
    place = home / "half"
    _write(WorkingFolder(place, tmp_path), 4)
    for left in range(5):
        dying = CutShort(place, tmp_path)
        dying.left = left
        with pytest.raises(Cut):
            _write(dying, 8)
        with open_working_folder(place, ("checkpoints",)) as run:
            # A newer one lies here, complete: home does not know it.
            fetch_latest(run)
            found = latest_checkpoint(run.folder)
            assert found is not None
            assert found.position.step == 4
            assert (found.engine_folder / "state").read_text() == "4"
            assert found.read_weights()["w"].item() == 4
    _write(WorkingFolder(place, tmp_path), 8)
    with open_working_folder(place, ("checkpoints",)) as run:
        fetch_latest(run)
        found = latest_checkpoint(run.folder)
        assert found is not None
        assert found.position.step == 8


def test_only_the_newest_checkpoints_stay_at_home_and_none_in_the_working_copy(home: UPath, tmp_path: Path) -> None:
    place = home / "kept"
    for step in (2, 4, 6):
        _write(WorkingFolder(place, tmp_path), step, keep=2)
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert list((tmp_path / "checkpoints").iterdir()) == []
