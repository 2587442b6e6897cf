"""Deeds done to a run's storage while it trains."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.tiny_runs import Listener

from cryoformer_dist.errors import StorageTroubleWarning
from cryoformer_dist.runs.training_log import TrainingRecord


@dataclass
class Saboteur(Listener):
    """Does something once, when a step has been reported."""

    at: int = 0
    deed: Callable[[], None] = lambda: None
    done: bool = field(default=False, init=False)

    def report(self, record: TrainingRecord, checkpoint: Path | None) -> None:
        super().report(record, checkpoint)
        if record.step == self.at and not self.done:
            self.done = True
            self.deed()


@contextlib.contextmanager
def once_warned(deed: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something so long after training has warned of its storage, beside training."""
    with pytest.warns(StorageTroubleWarning) as told:  # noqa: PT031 (training runs in it)
        over = threading.Event()

        def wait_and_do() -> None:
            while not over.is_set():
                if any(issubclass(each.category, StorageTroubleWarning) for each in told):
                    time.sleep(seconds)
                    deed()
                    return
                time.sleep(0.01)

        thread = threading.Thread(target=wait_and_do)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
