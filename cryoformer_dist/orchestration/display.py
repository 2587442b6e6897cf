"""How the process that drives a run tells people what it does."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cryoformer_dist.progress import Progress, StagedProgress
from cryoformer_dist.runs.training_log import TrainingRecord


@dataclass(frozen=True, slots=True)
class Display:
    """Where words of the driver go.

    Attributes
    ----------
    say
        One line.
    progress
        Title to a context that yields a progress callback (done, in all).
    stages
        The same for work in stages: the callback is told (stage, done, in all).
    record
        One record of training.
    """

    say: Callable[[str], None]
    progress: Callable[[str], AbstractContextManager[Progress]]
    stages: Callable[[], AbstractContextManager[StagedProgress]]
    record: Callable[[TrainingRecord], None]
