"""Word of what a run writes down, as it comes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.layout import NOTICES, STAGE_PROGRESS, TRAINING_LOG
from cryoformer_dist.runs.notices import read_notices
from cryoformer_dist.runs.stage_progress import StageProgress, read_stage_progress
from cryoformer_dist.runs.training_log import TrainingRecord, read_records_so_far
from cryoformer_dist.storage.places import client_errors
from cryoformer_dist.storage.working_folder import WorkingFolder

_POLL_SECONDS = 0.5
_FETCH_SECONDS = 5.0
OnRecord = Callable[[TrainingRecord], None]


def _read_log(run: Path) -> list[TrainingRecord]:
    """The training log, or no news of one that cannot be read: the leader will say so."""
    with suppress(OSError, CryoFormerError):
        return read_records_so_far(run)
    return []


def _read_notices(run: Path) -> list[str]:
    with suppress(OSError, UnicodeDecodeError):
        return read_notices(run)
    return []


def _tell_rest(notices: list[str], heard: int, on_notice: Callable[[str], None]) -> int:
    """Tell what was not heard yet; returns how many were."""
    for notice in notices[heard:]:
        on_notice(notice)
    return len(notices)


@contextmanager
def follow_run(
    working: WorkingFolder,
    on_record: OnRecord,
    on_stage: StagedProgress = silent,
    elsewhere: bool = False,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Tell of what the leader writes down for as long as this lasts.

    Parameters
    ----------
    on_record
        Called with each record that is added to the training log.
    on_stage
        Called with (stage, done, in all) of the stages before and after training.
    on_notice
        Called with each line that is added to the notices.
    elsewhere
        Whether the leader is another process, with a working copy of its own.
    """
    stop = threading.Event()
    # Looked at before the thread starts: what comes in between is new.
    before = max((record.step for record in read_records_so_far(working.folder)), default=-1)
    pause = _FETCH_SECONDS if elsewhere and working.is_copy else _POLL_SECONDS

    known = set(read_stage_progress(working.folder))
    noticed = len(_read_notices(working.folder))

    def read() -> tuple[list[StageProgress], list[TrainingRecord], list[str]]:
        # While storage is away there is no news; that it is away is for the leader to say.
        with suppress(OSError, *client_errors()):
            if elsewhere:
                working.fetch(STAGE_PROGRESS, TRAINING_LOG, NOTICES)
        return read_stage_progress(working.folder), _read_log(working.folder), _read_notices(working.folder)

    def follow() -> None:
        told, heard = before, noticed
        while True:
            last_look = stop.is_set()
            stages, records, notices = read()
            for stage in stages:
                if stage not in known:
                    known.add(stage)
                    on_stage(stage.stage, stage.done, stage.total)
            for record in records:
                if record.step > told:
                    told = record.step
                    on_record(record)
            heard = _tell_rest(notices, heard, on_notice)
            if last_look:
                return
            stop.wait(pause)

    thread = threading.Thread(target=follow, name="follow-training-log")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
