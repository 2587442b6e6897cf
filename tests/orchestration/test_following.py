import threading
import time
from pathlib import Path

import pytest
from support.training_records import training_record

from cryoformer_dist.errors import TrainingError
from cryoformer_dist.orchestration.following import follow_run
from cryoformer_dist.runs.layout import STAGE_PROGRESS, TRAINING_LOG
from cryoformer_dist.runs.notices import add_notice
from cryoformer_dist.runs.stage_progress import StageProgress, StageProgressFile
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


def test_files_that_cannot_be_understood_are_no_news_and_the_next_that_can_are(tmp_path: Path) -> None:
    working, stages, steps = WorkingFolder.on_disk(tmp_path), list[tuple[str, int, int]](), list[int]()
    progress, log = tmp_path / STAGE_PROGRESS, tmp_path / TRAINING_LOG
    progress.write_text('[["consensus map", 3')
    looked = threading.Event()

    def hear(stage: str, done: int, total: int) -> None:
        stages.append((stage, done, total))
        looked.set()

    with follow_run(working, lambda record: steps.append(record.step), hear):
        for damaged in ('{"stage": 1}', "null", '[["consensus map", 3, 4]]'):
            progress.write_text(damaged)
            log.write_text("not a record\n")
            time.sleep(0.05)
        StageProgressFile(working).tell(StageProgress("maps", 4, 4, 1.0))
        assert looked.wait(10)
        log.unlink()
        TrainingLog(working, 0).append(training_record(step=2))
    assert stages == [("maps", 4, 4)]
    assert steps == [2]


def test_notices_are_told_once_and_old_ones_not(tmp_path: Path) -> None:
    add_notice(tmp_path, "of an earlier attempt")
    told: list[str] = []
    with follow_run(WorkingFolder.on_disk(tmp_path), lambda record: None, on_notice=told.append):
        add_notice(tmp_path, "one")
        add_notice(tmp_path, "two")
    assert told == ["one", "two"]


def test_following_ends_with_an_error_too(tmp_path: Path) -> None:
    def fail() -> None:
        with follow_run(WorkingFolder.on_disk(tmp_path), lambda record: None):
            raise TrainingError("stopped")

    with pytest.raises(TrainingError, match="stopped"):
        fail()
    assert "follow-training-log" not in {thread.name for thread in threading.enumerate()}
