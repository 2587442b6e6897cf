"""In which order particles are seen, by whom: a pure function of the seed, so that a resumed run goes on exactly.

An epoch's order shuffles shards, and rows inside a shard; store rows are themselves a random permutation of the
source, so this is a global shuffle. Each rank sees those of its rows (`Ownership`) in this order: with one rank, all.

All ranks take equally many rows of an epoch. A rank that owns one row less than another sees its first of this epoch
again at the end. When the number of ranks changes inside an epoch, rows are dealt anew, and each rank sees what nobody
has seen of its new share; those with less of that see other rows of theirs again, until all have taken as many as the
one with most. So every particle is seen at least once in every epoch, and exactly once where shares are equal and the
number of ranks stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.ownership import Ownership

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ConsumedRows:
    """A stretch of an epoch at one world size.

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
class Consumed:
    """What a stage has seen of the particles.

    Attributes
    ----------
    epochs
        Whole passes over them.
    rows
        Of the epoch under way, oldest first; no two in a row of one world size.
    """

    epochs: int = 0
    rows: tuple[ConsumedRows, ...] = ()

    def earlier(self, world: int) -> tuple[ConsumedRows, ...]:
        """Stretches of the epoch under way before the one that ``world`` ranks are in, or begin."""
        return self.rows[:-1] if self.within(world) else self.rows

    def within(self, world: int) -> int:
        """Rows that each rank has consumed in the stretch that ``world`` ranks are in."""
        return self.rows[-1].rows_per_rank if self.rows and self.rows[-1].world == world else 0


@dataclass(frozen=True, slots=True)
class ShardRead:
    """Rows of one shard that a rank reads next, in this order."""

    epoch: int
    shard: int
    rows: Rows


@dataclass(frozen=True)
class ParticleOrder:
    """The order of particles over all epochs of a stage.

    Attributes
    ----------
    rows
        Store rows to be seen, ascending.
    shard_rows
        Rows per shard of the store.
    seed
        Of the run and the stage.
    epochs
        Passes over the particles.
    consumed
        What earlier attempts at the same stage have consumed.
    owned
        Store rows that are dealt to the ranks, ascending; ``rows`` are some of them. The same when ``None``.
    even
        Whether all ranks take equally many; else each its own, once.
    """

    rows: Rows
    shard_rows: int
    seed: tuple[int, ...]
    epochs: int
    consumed: Consumed = Consumed()
    owned: Rows | None = None
    even: bool = True

    def rows_per_rank(self, world: int) -> int:
        """Particles each rank still sees."""
        if self.consumed.epochs >= self.epochs:
            return 0
        whole = self.epochs - self.consumed.epochs - 1
        return self._each_under_way(world) - self.consumed.within(world) + whole * self._each(world, None)

    def reads(self, rank: int, world: int) -> Iterator[ShardRead]:
        """What one rank of ``world`` reads, in order, from where the consumed rows ended."""
        for epoch, rows in self._deal_to_rank(rank, world):
            shard = rows // self.shard_rows
            borders = np.flatnonzero(np.diff(shard)) + 1
            for within in np.split(rows, borders):
                if len(within):
                    yield ShardRead(epoch, int(within[0]) // self.shard_rows, within)

    def after(self, world: int, rows_per_rank: int) -> Consumed:
        """What is consumed once ``world`` ranks have each taken this many more particles."""
        taken = self.consumed.within(world) + rows_per_rank
        under_way = self._each_under_way(world)
        if taken < under_way:
            return Consumed(self.consumed.epochs, (*self.consumed.earlier(world), ConsumedRows(world, taken)))
        whole, rest = divmod(taken - under_way, self._each(world, None))
        return Consumed(self.consumed.epochs + 1 + whole, (ConsumedRows(world, rest),) if rest else ())

    def _deal_to_rank(self, rank: int, world: int) -> Iterator[tuple[int, Rows]]:
        mine = self._owners(world) == rank
        for epoch in range(self.consumed.epochs, self.epochs):
            under_way = epoch == self.consumed.epochs
            left = self._left(world) if under_way else None
            places = self._take(epoch, mine, left, self._each(world, left))
            yield epoch, self.rows[places[self.consumed.within(world) if under_way else 0 :]]

    def _take(self, epoch: int, mine: NDArray[np.bool_], left: NDArray[np.bool_] | None, each: int) -> Rows:
        """Places in ``rows`` that a rank goes to in an epoch: what is left of its own, then its own again."""
        own = self._shuffle(epoch, mine)
        new = own if left is None else own[left[own]]
        return np.resize(np.concatenate([new, own]), each) if self.even and len(own) else new

    def _each(self, world: int, left: NDArray[np.bool_] | None) -> int:
        """Rows that each rank takes of an epoch, of which some or all (``None``) are left."""
        if left is None and self.owned is None:
            return Ownership(self.rows, self.shard_rows, world).largest_share
        owners = self._owners(world)
        return int(np.bincount(owners if left is None else owners[left], minlength=1).max())

    def _each_under_way(self, world: int) -> int:
        if world not in self._counted:
            self._counted[world] = self._each(world, self._left(world))
        return self._counted[world]

    @cached_property
    def _counted(self) -> dict[int, int]:
        """By world size, rows that each rank takes of the epoch under way: asked for at every step."""
        return {}

    def _left(self, world: int) -> NDArray[np.bool_] | None:
        """Which rows of the epoch under way no rank has seen before the stretch of ``world`` ranks; all if ``None``."""
        return self._unseen[len(self.consumed.earlier(world))]

    @cached_property
    def _unseen(self) -> list[NDArray[np.bool_] | None]:
        """Which rows of the epoch under way are left before each stretch, and after the last."""
        found: list[NDArray[np.bool_] | None] = [None]
        for part in self.consumed.rows:
            before, owners = found[-1], self._owners(part.world)
            left = np.ones(len(self.rows), bool) if before is None else before.copy()
            for rank in range(part.world):
                places = self._take(self.consumed.epochs, owners == rank, before, self._each(part.world, before))
                left[places[: part.rows_per_rank]] = False
            found.append(left)
        return found

    def _owners(self, world: int) -> Rows:
        """Rank of each of ``rows``."""
        if self.owned is None:
            return Ownership(self.rows, self.shard_rows, world).owners()
        return Ownership(self.owned, self.shard_rows, world).owners()[np.searchsorted(self.owned, self.rows)]

    def _shuffle(self, epoch: int, mine: NDArray[np.bool_]) -> Rows:
        """Places of a rank's own rows, in the order in which all are in this epoch."""
        groups = np.split(np.arange(len(self.rows)), np.flatnonzero(np.diff(self.rows // self.shard_rows)) + 1)
        shuffled = np.random.default_rng([*self.seed, epoch]).permutation(len(groups))
        # What is not drawn here others draw for themselves.
        inside = [
            np.random.default_rng([*self.seed, epoch, int(group)]).permutation(groups[group])
            for group in shuffled
            if mine[groups[group]].any()
        ]
        places = np.concatenate([np.empty(0, np.int64), *inside])
        own: Rows = places[mine[places]]
        return own
