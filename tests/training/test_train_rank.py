"""All ranks of a run go on from one checkpoint, whatever their nodes' file systems show them at first."""

from pathlib import Path

import pytest
from support.tiny_runs import tiny_config, train

from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training import train_rank as module
from cryoformer_dist.training.train_rank import agree_on_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("session") / "run"
    train(tiny_config(tiny_store, {"training.epochs": 1}), folder)
    return folder


def _another_rank_sees(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "gather_objects", lambda mine: [mine, name])


def test_a_rank_alone_goes_on_with_the_newest_checkpoint(run: Path) -> None:
    found = agree_on_checkpoint(WorkingFolder.on_disk(run), 0.0)
    assert found is not None
    assert found.folder == checkpoints(run)[-1].folder


def test_a_rank_that_sees_more_than_another_goes_on_with_what_it_sees(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _another_rank_sees(monkeypatch, "")
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
    with pytest.raises(CheckpointError, match="holds step-99999999 for another worker, but not for this one"):
        agree_on_checkpoint(WorkingFolder.on_disk(run), 0.0)
