"""The particles that a run is trained on, as one rank reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cryoformer_dist.data.batch import BatchSource, ParticleBatch, on_device
from cryoformer_dist.data.order import ConsumedRows, ParticleOrder, Rows

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
        Reads them.
    samples
        Reads some of them while ``batches`` is at work, so without a second Ray Dataset: two that wait for one CPU
        would wait for ever.
    batch_size
        Particles of a batch.
    rank, world, device
        Of this process.
    alive
        Called at each batch of a pass that has nothing to report yet.
    """

    rows: Rows
    shard_rows: int
    batches: BatchSource
    samples: BatchSource
    batch_size: int
    rank: int
    world: int
    device: torch.device
    alive: Callable[[], None]

    def order(self, seed: Seed, epochs: int, consumed: tuple[ConsumedRows, ...]) -> ParticleOrder:
        """In which order a stage sees them, from where earlier attempts ended."""
        return ParticleOrder(self.rows, self.shard_rows, seed, epochs, consumed)

    def read(self, order: ParticleOrder) -> Iterator[ParticleBatch]:
        """Batches of a stage that fall to this rank."""
        return on_device(self.batches(order, self.rank, self.world, self.batch_size), self.device)

    def read_once(self, seed: Seed) -> Iterator[ParticleBatch]:
        """Every particle once, each rank its share of them; before a stage begins."""
        return self._read_once(self.batches, seed)

    def read_once_amid_training(self, seed: Seed) -> Iterator[ParticleBatch]:
        """Every particle once, each rank its share of them; while `read` is at work."""
        return self._read_once(self.samples, seed)

    def read_sample_amid_training(self, sample: Rows, seed: Seed) -> Iterator[ParticleBatch]:
        """Some of the particles, each rank its share of them; while `read` is at work. Not yet on the device."""
        order = ParticleOrder(sample, self.shard_rows, seed, 1)
        return self.samples(order, self.rank, self.world, self.batch_size)

    def _read_once(self, source: BatchSource, seed: Seed) -> Iterator[ParticleBatch]:
        # One epoch leaves out the rows that do not divide by the ranks: the last row again makes them divide.
        rows = np.pad(self.rows, (0, -len(self.rows) % self.world), mode="edge")
        order = ParticleOrder(rows, self.shard_rows, seed, 1, ())
        for batch in on_device(source(order, self.rank, self.world, self.batch_size), self.device):
            self.alive()
            yield batch
