"""In which order particles are seen, by whom: a pure function of the seed, so that a resumed run goes on exactly.

An epoch's order shuffles shards, and rows inside a shard; store rows are themselves a random permutation of the
source, so this is a global shuffle. Each rank gets one contiguous stretch of an epoch's order: it reads few shards, no
two ranks read the same particle, and all have equally many. The rows that do not divide by the ranks come first in the
next epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ConsumedRows:
    """A stretch of training at one world size.

    Attributes
    ----------
    world
        Number of ranks.
    rows_per_rank
        Particles that each rank has consumed in this stretch.
    """

    world: int
    rows_per_rank: int


@dataclass(frozen=True, slots=True)
class ShardRead:
    """Rows of one shard that a rank reads next, in this order."""

    epoch: int
    shard: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class ParticleOrder:
    """The order of all particles over all epochs of a stage.

    Attributes
    ----------
    rows
        Store rows to train on, ascending.
    shard_rows
        Rows per shard of the store.
    seed
        Of the run and the stage.
    epochs
        Passes over the particles.
    consumed
        What earlier attempts at the same stage have consumed, oldest first.
    """

    rows: Rows
    shard_rows: int
    seed: tuple[int, ...]
    epochs: int
    consumed: tuple[ConsumedRows, ...] = ()

    def rows_per_rank(self, world: int) -> int:
        """Particles each rank still sees."""
        return sum(len(rows) for _, rows in self._deal_to_rank(0, world))

    def reads(self, rank: int, world: int) -> Iterator[ShardRead]:
        """What one rank of ``world`` reads, in order, from where the consumed rows ended."""
        for epoch, rows in self._deal_to_rank(rank, world):
            shard = rows // self.shard_rows
            borders = np.flatnonzero(np.diff(shard)) + 1
            for within in np.split(rows, borders):
                if len(within):
                    yield ShardRead(epoch, int(within[0]) // self.shard_rows, within)

    def after(self, world: int, rows_per_rank: int) -> tuple[ConsumedRows, ...]:
        """Consumed rows once ``world`` ranks have each taken this many more particles."""
        if self.consumed and self.consumed[-1].world == world:
            last = self.consumed[-1]
            return (*self.consumed[:-1], ConsumedRows(world, last.rows_per_rank + rows_per_rank))
        return (*self.consumed, ConsumedRows(world, rows_per_rank))

    def _deal_to_rank(self, rank: int, world: int) -> Iterator[tuple[int, Rows]]:
        consumed = list(self.consumed)
        # The same world goes on in its own stretches; only a change of world deals the rest anew.
        skip = consumed.pop().rows_per_rank if consumed and consumed[-1].world == world else 0
        start, rest = self._find_remaining(consumed)
        for epoch, stretches, _ in self._deal(start, rest, world):
            mine = stretches[rank]
            dropped = min(skip, len(mine))
            skip -= dropped
            if len(mine) > dropped:
                yield epoch, mine[dropped:]

    def _find_remaining(self, consumed: Sequence[ConsumedRows]) -> tuple[int, Rows | None]:
        """First unfinished epoch after what is consumed, and what is left of it (``None``: all)."""
        start, rest = 0, None
        for earlier in consumed:
            left = earlier.rows_per_rank
            for epoch, stretches, carried in self._deal(start, rest, earlier.world):
                if left < stretches.shape[1]:
                    start, rest = epoch, np.concatenate([stretches[:, left:].reshape(-1), carried])
                    break
                left -= stretches.shape[1]
            else:
                return self.epochs, None
        return start, rest

    def _deal(self, start: int, rest: Rows | None, world: int) -> Iterator[tuple[int, Rows, Rows]]:
        """Epochs from ``start``, each cut into equal stretches per rank, with the rows carried to the next."""
        carried = np.empty(0, dtype=np.int64)
        for epoch in range(start, self.epochs):
            order = rest if rest is not None and epoch == start else self._shuffle_epoch(epoch)
            sequence = np.concatenate([carried, order])
            each = len(sequence) // world
            carried = sequence[each * world :]
            yield epoch, sequence[: each * world].reshape(world, each), carried

    def _shuffle_epoch(self, epoch: int) -> Rows:
        shard = self.rows // self.shard_rows
        groups = np.split(self.rows, np.flatnonzero(np.diff(shard)) + 1)
        shuffled = np.random.default_rng([*self.seed, epoch]).permutation(len(groups))
        inside = [
            np.random.default_rng([*self.seed, epoch, int(group)]).permutation(groups[group]) for group in shuffled
        ]
        return np.concatenate(inside)
