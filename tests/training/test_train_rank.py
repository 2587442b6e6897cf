"""A rank's part of a run goes on from the newest checkpoint that is whole."""

import shutil
from pathlib import Path

import pytest
from support.tiny_runs import Listener, assert_same_end, tiny_config, train, train_prepared

from cryoformer_dist.errors import CheckpointDamagedWarning, NoWholeCheckpointError
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.storage.working_folder import WorkingFolder


def test_a_run_with_a_damaged_checkpoint_ends_as_if_there_had_been_none(tiny_store: Path, tmp_path: Path) -> None:
    every_step = {"training.report_every_steps": 1, "training.checkpoint_every_steps": 1}
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    train(tiny_config(tiny_store, every_step | {"training.epochs": 1}), whole)
    shutil.copytree(whole, damaged)
    for name in ("engine/torch.pt", "tables.pt"):
        file = checkpoints(damaged)[-1].folder / name
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.warns(CheckpointDamagedWarning, match=r"engine/torch\.pt has .* bytes instead of"):
        train_prepared(WorkingFolder.on_disk(damaged), Listener())
    assert_same_end(damaged, whole)
    for checkpoint in checkpoints(damaged):
        (checkpoint.folder / "model.pt").unlink()
    with pytest.raises(NoWholeCheckpointError, match=r"model\.pt is missing"):
        train_prepared(WorkingFolder.on_disk(damaged), Listener())
