"""The newest whole checkpoint is used, the same on all ranks, whatever became of files and whatever nodes are shown."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_runs import tiny_config, train
from upath import UPath

from cryoformer_dist.errors import CheckpointDamagedWarning, CheckpointError, NoWholeCheckpointError
from cryoformer_dist.runs import checkpoint_choice as module
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.checkpoint_choice import agree_on_checkpoint, fetch_latest, latest_checkpoint
from cryoformer_dist.storage.working_folder import WorkingFolder, open_working_folder

FILES = ("model.pt", "tables.pt", "occupancy.pt", "engine/torch.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("session") / "run"
    changes = {"training.epochs": 1, "training.report_every_steps": 1, "training.checkpoint_every_steps": 1}
    train(tiny_config(tiny_store, {**changes, "training.keep_checkpoints": 2}), folder)
    assert len(checkpoints(folder)) == 2
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _zero(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40) if any(content[middle : middle + 40]) else b"\1" * 40
    file.write_bytes(bytes(content))


def _falls_back(run: Path, words: str) -> None:
    before, newest = checkpoints(run)
    told = rf"{newest.folder.name} is damaged \({words}.*{before.folder.name}, the one before, is used"
    with pytest.warns(CheckpointDamagedWarning, match=told):
        found = latest_checkpoint(run)
    assert found is not None
    assert found.folder == before.folder


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(run: Path, name: str) -> None:
    _zero(checkpoints(run)[-1].folder / name)
    _falls_back(run, f"{name} is not what was written")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_named_and_the_checkpoint_before_is_used(run: Path, name: str) -> None:
    file = checkpoints(run)[-1].folder / name
    file.write_bytes(file.read_bytes()[:-1])
    _falls_back(run, rf"{name} has \d+ bytes instead of \d+")


def test_a_missing_file_is_named_and_the_checkpoint_before_is_used(run: Path) -> None:
    (checkpoints(run)[-1].folder / "tables.pt").unlink()
    _falls_back(run, r"tables\.pt is missing")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0" * 300, "[" * 100_000, '{"schema_version": 4, "crc32": 1}'])
def test_an_unreadable_manifest_is_named_and_the_checkpoint_before_is_used(run: Path, text: str) -> None:
    (checkpoints(run)[-1].folder / "manifest.json").write_text(text)
    _falls_back(run, r"manifest\.json is not ")


def test_a_manifest_with_any_digit_changed_is_not_what_was_written(run: Path) -> None:
    file = checkpoints(run)[-1].folder / "manifest.json"
    whole = file.read_text()
    for digit in list(re.finditer(r"\d", whole))[::9]:
        changed = str((int(digit[0]) + 1) % 10)
        file.write_text(whole[: digit.start()] + changed + whole[digit.end() :])
        if json.loads(file.read_text()) != json.loads(whole):
            _falls_back(run, r"manifest\.json is not ")


def test_a_run_without_a_whole_checkpoint_says_what_to_do(run: Path) -> None:
    for checkpoint in checkpoints(run):
        _zero(checkpoint.folder / "tables.pt")
    remedy = r"no checkpoint is whole: .*tables\.pt.*tables\.pt.*from a copy, or remove the folder checkpoints"
    with pytest.raises(NoWholeCheckpointError, match=remedy):
        latest_checkpoint(run)


def test_a_working_copy_is_brought_the_one_before_too(run: Path, object_store: Callable[[], UPath]) -> None:
    home, (before, newest) = object_store() / "runs" / "x", checkpoints(run)
    _zero(newest.folder / "tables.pt")
    home.fs.put(str(run / "checkpoints"), (home / "checkpoints").path, recursive=True)
    with open_working_folder(home, ("checkpoints",)) as copy:
        with pytest.warns(CheckpointDamagedWarning, match=rf"^{home}: .*{newest.folder.name} is damaged"):
            fetch_latest(copy)
        found = latest_checkpoint(copy.folder)
        assert found is not None
        assert found.position == before.position
        assert found.read_tables().keys() == before.read_tables().keys()


def _another_rank_sees(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Another rank that is shown some checkpoints, and finds no damage."""
    seen = [f"checkpoints/{name}" for name in names]
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine, seen if isinstance(mine, list) else None])


def test_what_another_rank_finds_damaged_is_used_by_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, newest = checkpoints(run)
    told = iter(["tables.pt is missing", None])
    gather = lambda mine: [mine, mine if isinstance(mine, list) else next(told)]  # noqa: E731
    monkeypatch.setattr(module, "gather_objects", gather)
    with pytest.warns(CheckpointDamagedWarning, match=newest.folder.name):
        found = agree_on_checkpoint(WorkingFolder.on_disk(run))
    assert found is not None
    assert found.folder == before.folder


def test_a_rank_that_sees_more_than_another_goes_on_with_what_it_sees(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _another_rank_sees(monkeypatch)
    found = agree_on_checkpoint(WorkingFolder.on_disk(run), 0.0)
    assert found is not None
    assert found.folder == checkpoints(run)[-1].folder


def test_a_rank_that_is_shown_an_old_listing_waits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = checkpoints(run)[-1].folder
    hidden = newest.with_name("not-shown-yet")
    newest.rename(hidden)
    _another_rank_sees(monkeypatch, newest.name)
    monkeypatch.setattr(module.time, "sleep", lambda _: hidden.rename(newest))
    found = agree_on_checkpoint(WorkingFolder.on_disk(run), 60.0)
    assert found is not None
    assert found.folder == newest


def test_storage_that_nodes_do_not_share_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _another_rank_sees(monkeypatch, "step-99999999")
    with pytest.raises(CheckpointError, match="holds checkpoints/step-99999999 for another worker, but not for this"):
        agree_on_checkpoint(WorkingFolder.on_disk(run), 0.0)
