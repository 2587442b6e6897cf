"""What is done at the ends of epochs, between two steps."""

from typing import Protocol

from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.training.latent_search import LatentSearch
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.occupancy_refresh import OccupancyRefresh
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Interval
from cryoformer_dist.training.stages import Moment


class EpochTask(Protocol):
    """Something that is done between two steps, when an epoch has ended."""

    def due(self, moment: Moment) -> bool:
        """Whether it is to be done now."""

    def run(self, moment: Moment, interval: Interval) -> None:
        """Do it, on all ranks; what the next record should tell goes into the interval."""


def make_epoch_tasks(learner: Learner, particles: RankParticles, memory: WorkerMemory) -> tuple[EpochTask, ...]:
    """All of them, in the order in which they are done: latents are searched with the points that a refresh added."""
    return OccupancyRefresh(learner, particles, memory), LatentSearch(learner, particles)
