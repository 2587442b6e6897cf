import threading
from pathlib import Path

import pytest
from support.training_records import training_record

from cryoformer_dist.errors import TrainingError
from cryoformer_dist.orchestration.following import follow_run
from cryoformer_dist.runs.training_log import TrainingLog
from cryoformer_dist.storage.working_folder import WorkingFolder


def test_every_new_record_is_told_once_and_old_ones_not(tmp_path: Path) -> None:
    metrics = TrainingLog(WorkingFolder.on_disk(tmp_path), 0)
    metrics.append(training_record(step=2, seconds=1.0))
    told: list[int] = []
    with follow_run(WorkingFolder.on_disk(tmp_path), lambda record: told.append(record.step)):
        metrics.append(training_record(step=4, seconds=2.0))
        metrics.append(training_record(step=6, seconds=3.0))
    assert told == [4, 6]


def test_following_ends_with_an_error_too(tmp_path: Path) -> None:
    def fail() -> None:
        with follow_run(WorkingFolder.on_disk(tmp_path), lambda record: None):
            raise TrainingError("stopped")

    with pytest.raises(TrainingError, match="stopped"):
        fail()
    assert "follow-training-log" not in {thread.name for thread in threading.enumerate()}
