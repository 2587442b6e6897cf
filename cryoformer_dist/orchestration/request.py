"""What is asked of a driver, and how it answers."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cryoformer_dist.config.cluster import ClusterConfig
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.progress import Progress, StagedProgress
from cryoformer_dist.runs.training_log import TrainingRecord
from cryoformer_dist.storage.places import Place


@dataclass(frozen=True, slots=True)
class Console:
    """How the driver tells people what it does.

    Attributes
    ----------
    say
        One line.
    progress
        Title to a context that yields a progress callback (done, in all).
    stages
        The same for work in stages: the callback is told (stage, done, in all).
    record
        One report of training.
    """

    say: Callable[[str], None]
    progress: Callable[[str], AbstractContextManager[Progress]]
    stages: Callable[[], AbstractContextManager[StagedProgress]]
    record: Callable[[TrainingRecord], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A run to be made.

    Attributes
    ----------
    config
        Run configuration, with the store's path resolved.
    cluster
        Where it happens; ``None`` for this process without Ray.
    run
        Run directory.
    resume
        Go on with what is there.
    """

    config: RunConfig
    cluster: ClusterConfig | None
    run: Place
    resume: bool
