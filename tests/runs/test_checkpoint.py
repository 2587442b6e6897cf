import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cryoformer_dist.data.order import Consumed, ConsumedRows
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.runs.checkpoint import (
    LearnedState,
    OccupancyState,
    Position,
    adopt_checkpoint,
    checkpoints,
    read_tensors,
    write_checkpoint,
)
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.storage.retry import Attempt, StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder

CONSUMED = Consumed(4, (ConsumedRows(2, 8), ConsumedRows(1, 3)))


def _learned(weight: float) -> LearnedState:
    occupancy: OccupancyState = {"flat_index": torch.arange(3), "residual_outside": None}
    return LearnedState({"w": torch.tensor([weight])}, {}, occupancy)


def _write(run: Path, step: int, keep: int = 10, **changes: object) -> Path:
    def save_engine(folder: Path) -> list[Path]:
        folder.mkdir()
        (folder / "state").write_text(str(step))
        return [folder / "state"]

    arguments = {
        "leader": True,
        "save_engine": save_engine,
        "learned": lambda: _learned(float(step)),
        "keep": keep,
        "retry": StorageRetry(run, 0),
    }
    run.mkdir(exist_ok=True)
    position = Position(stage=1, stage_step=step - 1, step=step, consumed=CONSUMED)
    return write_checkpoint(WorkingFolder.on_disk(run), position, **(arguments | changes))  # type: ignore[arg-type]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = _write(tmp_path, 7)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.folder == folder
    assert found.position == Position(1, 6, 7, CONSUMED)
    assert found.read_weights()["w"].item() == 7
    assert found.read_tables() == {}
    assert (found.engine_folder / "state").read_text() == "7"


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert checkpoints(tmp_path) == []


def test_the_newest_is_chosen_and_only_the_newest_few_stay(tmp_path: Path) -> None:
    for step in (5, 12, 90, 1000):
        _write(tmp_path, step)
    assert [one.position.step for one in checkpoints(tmp_path)] == [5, 12, 90, 1000]
    _write(tmp_path, 2000, keep=2)
    assert [one.position.step for one in checkpoints(tmp_path)] == [1000, 2000]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00001000", "step-00002000"]


def test_a_crash_while_writing_leaves_the_older_one_the_newest(tmp_path: Path) -> None:
    _write(tmp_path, 4)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for cut_short in ({"save_engine": crash}, {"learned": crash}):
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path, 8, **cut_short)
        found = latest_checkpoint(tmp_path)
        assert found is not None
        assert found.position.step == 4
    # The next attempt is not in the way of what the crash left.
    _write(tmp_path, 8)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_a_folder_without_a_manifest_is_never_chosen(tmp_path: Path) -> None:
    _write(tmp_path, 4)
    (_write(tmp_path, 8) / "manifest.json").unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.position.step == 4


def test_what_a_kill_left_half_written_or_half_removed_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    (_write(tmp_path, 4) / "manifest.json").unlink()
    (tmp_path / "checkpoints" / ".partial-00000006").mkdir()
    # Killed between the manifest and the rename.
    _write(tmp_path, 7).rename(tmp_path / "checkpoints" / ".partial-00000007")
    _write(tmp_path, 8)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000008"]


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    _write(tmp_path, 4)
    _write(tmp_path, 4, learned=lambda: _learned(99.0))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.read_weights()["w"].item() == 99


def test_only_the_leader_writes_what_all_share_and_all_wait_for_it(tmp_path: Path) -> None:
    waits: list[bool] = []
    saved: list[Path] = []

    def save_engine(folder: Path) -> list[Path]:
        saved.append(folder)
        return []

    def exchange(outcome: Attempt) -> list[Attempt]:
        waits.append((tmp_path / "checkpoints").exists())
        return [outcome, outcome]

    final = _write(
        tmp_path,
        4,
        leader=False,
        save_engine=save_engine,
        retry=StorageRetry(tmp_path, 0, leader=False, exchange=exchange),
    )
    assert not final.exists()
    assert saved == [tmp_path / "checkpoints" / ".partial-00000004" / "engine"]
    assert waits == [False] * 5


def test_what_is_later_than_the_newest_is_of_work_that_was_lost(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        _write(tmp_path, step)
    _write(tmp_path, 6)
    assert [one.position.step for one in checkpoints(tmp_path)] == [4, 6]


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, 4) / "manifest.json"
    content = json.loads(path.read_text()) | {"schema_version": 3}
    del content["crc32"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"step-00000004.*schema 3.*use the version that wrote it"):
        latest_checkpoint(tmp_path)


def test_a_file_that_torch_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"model\.pt: cannot be read \(not a file of tensors\); .*older one$"):
        read_tensors(tmp_path / "model.pt")


def test_a_run_goes_on_from_an_adopted_checkpoint_alone(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        _write(tmp_path / "run", step)
    _write(tmp_path / "donor", 8, learned=lambda: _learned(99.0))
    adopt_checkpoint(tmp_path / "run", checkpoints(tmp_path / "donor")[0])
    (found,) = checkpoints(tmp_path / "run")
    assert (found.position.step, found.read_weights()["w"].item()) == (8, 99)
    assert (found.engine_folder / "state").read_text() == "8"
    assert len(checkpoints(tmp_path / "donor")) == 1


@pytest.mark.parametrize("calls_before", range(8))
def test_a_kill_while_adopting_leaves_complete_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    """Every removal of a file and every rename is a place where the process may die."""
    for step in (4, 12):
        _write(tmp_path / "run", step)
    _write(tmp_path / "donor", 8, learned=lambda: _learned(99.0))
    calls = []

    def dies(act: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(act)
            if len(calls) > calls_before:
                raise KeyboardInterrupt
            return act(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "unlink"), (Path, "rename"), (shutil, "rmtree")):
            patch.setattr(owner, name, dies(getattr(owner, name)))
        with contextlib.suppress(KeyboardInterrupt):
            adopt_checkpoint(tmp_path / "run", checkpoints(tmp_path / "donor")[0])
    left = checkpoints(tmp_path / "run")
    assert left
    for checkpoint in left:
        weight = 99.0 if checkpoint.position.step == 8 else float(checkpoint.position.step)
        assert checkpoint.read_weights()["w"].item() == weight
        assert (checkpoint.engine_folder / "state").is_file()
