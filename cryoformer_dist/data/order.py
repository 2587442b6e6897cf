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
        Particles that each rank has consumed in this part.
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
        return sum(len(part) for _, part in self._rank_epochs(0, world))

    def reads(self, rank: int, world: int) -> Iterator[ShardRead]:
        """What one rank of ``world`` reads, in order, from where the consumed consumed_rows ended."""
        for epoch, rows in self._rank_epochs(rank, world):
            shard = rows // self.shard_rows
            borders = np.flatnonzero(np.diff(shard)) + 1
            for part in np.split(rows, borders):
                if len(part):
                    yield ShardRead(epoch, int(part[0]) // self.shard_rows, part)

    def after(self, world: int, rows_per_rank: int) -> tuple[ConsumedRows, ...]:
        """Consumed consumed_rows once ``world`` ranks have each taken this many more particles."""
        if self.consumed and self.consumed[-1].world == world:
            last = self.consumed[-1]
            return (*self.consumed[:-1], ConsumedRows(world, last.rows_per_rank + rows_per_rank))
        return (*self.consumed, ConsumedRows(world, rows_per_rank))

    def _rank_epochs(self, rank: int, world: int) -> Iterator[tuple[int, Rows]]:
        consumed_rows = list(self.consumed)
        # The same world goes on in its own stretches; only a change of world deals the rest anew.
        skip = consumed_rows.pop().rows_per_rank if consumed_rows and consumed_rows[-1].world == world else 0
        start, rest = self._remaining(consumed_rows)
        for epoch, stretches, _ in self._dealt(start, rest, world):
            mine = stretches[rank]
            dropped = min(skip, len(mine))
            skip -= dropped
            if len(mine) > dropped:
                yield epoch, mine[dropped:]

    def _remaining(self, consumed_rows: Sequence[ConsumedRows]) -> tuple[int, Rows | None]:
        """First unfinished epoch after some consumed_rows, and what is left of it (``None``: all)."""
        start, rest = 0, None
        for part in consumed_rows:
            left = part.rows_per_rank
            for epoch, stretches, carried in self._dealt(start, rest, part.world):
                if left < stretches.shape[1]:
                    start, rest = epoch, np.concatenate([stretches[:, left:].reshape(-1), carried])
                    break
                left -= stretches.shape[1]
            else:
                return self.epochs, None
        return start, rest

    def _dealt(self, start: int, rest: Rows | None, world: int) -> Iterator[tuple[int, Rows, Rows]]:
        """Epochs from ``start``, each cut into equal stretches per rank, with the rows carried to the next."""
        carried = np.empty(0, dtype=np.int64)
        for epoch in range(start, self.epochs):
            order = rest if rest is not None and epoch == start else self._epoch_order(epoch)
            sequence = np.concatenate([carried, order])
            each = len(sequence) // world
            carried = sequence[each * world :]
            yield epoch, sequence[: each * world].reshape(world, each), carried

    def _epoch_order(self, epoch: int) -> Rows:
        shard = self.rows // self.shard_rows
        groups = np.split(self.rows, np.flatnonzero(np.diff(shard)) + 1)
        shuffled = np.random.default_rng([*self.seed, epoch]).permutation(len(groups))
        inside = [
            np.random.default_rng([*self.seed, epoch, int(group)]).permutation(groups[group]) for group in shuffled
        ]
        return np.concatenate(inside)
