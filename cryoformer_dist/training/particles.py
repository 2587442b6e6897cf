"""The particles that a run is trained on, as one rank reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cryoformer_dist.data.batch import BatchSource, ParticleBatch
from cryoformer_dist.data.order import Consumed, ParticleOrder, Rows
from cryoformer_dist.data.ownership import Ownership

Seed = tuple[int, int]
"""Of the run, and the index of its stage."""


@dataclass(frozen=True, slots=True)
class RankParticles:
    """What this rank sees of the particles, on its device.

    Attributes
    ----------
    rows
        Store rows that all ranks train on, ascending.
    shard_rows
        Rows per shard of the store.
    batches
        Reads them, onto the device.
    samples
        Reads some of them while ``batches`` is at work, so without a second Ray Dataset: two that wait for one CPU
        would wait for ever.
    batch_size
        Particles of a batch.
    rank, world
        Of this process.
    alive
        Called at each batch of a pass that has nothing to report yet.
    left_out
        Store rows that passes amid training leave out; it may grow.
    """

    rows: Rows
    shard_rows: int
    batches: BatchSource
    samples: BatchSource
    batch_size: int
    rank: int
    world: int
    alive: Callable[[], None]
    left_out: list[int] = field(default_factory=list)

    @property
    def share(self) -> Rows:
        """Store rows that this rank owns, ascending."""
        return Ownership(self.rows, self.shard_rows, self.world).share(self.rank)

    def order(self, seed: Seed, epochs: int, consumed: Consumed) -> ParticleOrder:
        """In which order a stage sees them, from where earlier attempts ended."""
        return ParticleOrder(self.rows, self.shard_rows, seed, epochs, consumed)

    def read(self, order: ParticleOrder) -> Iterator[ParticleBatch]:
        """Batches of a stage that fall to this rank."""
        return self.batches(order, self.rank, self.world, self.batch_size)

    def read_once(self, seed: Seed) -> Iterator[ParticleBatch]:
        """Every particle, each rank its own; before a stage begins.

        All ranks have equally many: one that owns a row less has its first again at the end.
        """
        return self._alive_at_each(self.batches, self.order(seed, 1, Consumed()))

    def read_own_amid_training(self, seed: Seed) -> Iterator[ParticleBatch]:
        """Every particle, each rank its own and none twice, so some ranks one more; while `read` is at work."""
        return self._alive_at_each(self.samples, self._own(self.rows, seed))

    def read_sample_amid_training(self, sample: Rows, seed: Seed) -> Iterator[ParticleBatch]:
        """Some of the particles, each rank its own of them, once; while `read` is at work."""
        return self.samples(self._own(sample, seed), self.rank, self.world, self.batch_size)

    def _own(self, sample: Rows, seed: Seed) -> ParticleOrder:
        kept = np.setdiff1d(sample, self.left_out)
        return ParticleOrder(kept, self.shard_rows, seed, 1, owned=self.rows, even=False)

    def _alive_at_each(self, source: BatchSource, order: ParticleOrder) -> Iterator[ParticleBatch]:
        for batch in source(order, self.rank, self.world, self.batch_size):
            self.alive()
            yield batch
