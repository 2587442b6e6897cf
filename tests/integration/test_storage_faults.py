"""Storage that is full or away during training: waited for, or given up with one message, and never a loss."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sabotage import Saboteur, once_warned
from support.tiny_runs import final_state, tiny_config, train

from cryoformer_dist.errors import CheckpointNotWrittenError, StorageTroubleWarning
from cryoformer_dist.runs.training_log import read_training_log

CHANGES = {"training.epochs": 2, "training.storage_patience_seconds": 60.0}


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left in peace."""
    run = tmp_path_factory.mktemp("peace") / "run"
    train(tiny_config(tiny_store, CHANGES), run)
    return run


def _assert_same_end(run: Path, other: Path) -> None:
    assert [record.step for record in read_training_log(run)] == [record.step for record in read_training_log(other)]
    assert [record.loss for record in read_training_log(run)] == [record.loss for record in read_training_log(other)]
    state, other_state = final_state(run), final_state(other)
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)):
                    pass


def test_training_survives_a_full_disk_that_is_freed(tiny_store: Path, small_disk: Path, whole: Path) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    with once_warned(filler.unlink, 1.0):
        train(tiny_config(tiny_store, CHANGES), run, Saboteur(at=4, deed=lambda: _fill(small_disk)))
    assert not filler.exists()
    _assert_same_end(run, whole)


def test_a_disk_that_stays_full_ends_training_with_one_message_and_resume_goes_on(
    tiny_store: Path, small_disk: Path, whole: Path
) -> None:
    run, config = small_disk / "run", tiny_config(tiny_store, CHANGES | {"training.storage_patience_seconds": 0.5})
    with (
        pytest.warns(StorageTroubleWarning, match=r"No space left|as on a full disk"),
        pytest.raises(CheckpointNotWrittenError, match=rf"^{run}: cannot be written.*free space.*--resume"),
    ):
        train(config, run, Saboteur(at=4, deed=lambda: _fill(small_disk)))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    (small_disk / "filler").unlink()
    train(config, run)
    _assert_same_end(run, whole)


def test_training_waits_for_storage_that_is_away_for_two_seconds(tiny_store: Path, tmp_path: Path, whole: Path) -> None:
    storage, away = tmp_path / "storage", tmp_path / "away"
    storage.mkdir()
    with once_warned(lambda: away.rename(storage), 2.0):
        train(tiny_config(tiny_store, CHANGES), storage / "run", Saboteur(at=4, deed=lambda: storage.rename(away)))
    _assert_same_end(storage / "run", whole)


def test_old_checkpoints_stay_until_the_new_one_is_whole(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = CHANGES | {"training.keep_checkpoints": 1, "training.storage_patience_seconds": 0.0}
    save = torch.save

    def refuse() -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(torch, "save", full)

    with pytest.raises(CheckpointNotWrittenError):
        train(tiny_config(tiny_store, changes), tmp_path / "run", Saboteur(at=6, deed=refuse))
    monkeypatch.setattr(torch, "save", save)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
