"""Word of what training writes to its log, as it comes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cryoformer_dist.runs.layout import TRAINING_LOG
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log
from cryoformer_dist.storage.places import client_errors
from cryoformer_dist.storage.working_folder import WorkingFolder

_POLL_SECONDS = 0.5
_FETCH_SECONDS = 5.0
OnRecord = Callable[[TrainingRecord], None]


@contextmanager
def follow_training_log(working: WorkingFolder, on_record: OnRecord, elsewhere: bool = False) -> Iterator[None]:
    """Tell of every record that the leader adds to the training log of a run directory for as long as this lasts.

    Parameters
    ----------
    elsewhere
        Whether the leader is another process, with a working copy of its own.
    """
    stop = threading.Event()
    # Looked at before the thread starts: what comes in between is new.
    before = max((record.step for record in read_training_log(working.folder)), default=-1)
    pause = _FETCH_SECONDS if elsewhere and working.is_copy else _POLL_SECONDS

    def read() -> list[TrainingRecord]:
        # While storage is away there is no news; that it is away is for the leader to say.
        with suppress(OSError, *client_errors()):
            if elsewhere:
                working.fetch(TRAINING_LOG)
            return read_training_log(working.folder)
        return []

    def follow() -> None:
        told = before
        while True:
            last_look = stop.is_set()
            for record in read():
                if record.step > told:
                    told = record.step
                    on_record(record)
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
