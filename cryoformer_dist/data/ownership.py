"""Which rank owns which particles: a pure function of the rows and of how many ranks there are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ownership:
    """The particles of a run dealt to its ranks, for as long as there are equally many of these.

    Nothing is drawn: store rows are a random permutation of the source, so every share is a fair sample. Rows are dealt
    in stretches as long as a shard, one rank after another, so that each rank reads few shards, and the first rows, of
    which samples are made, belong to all ranks alike. What does not make a whole round is divided evenly: no rank owns
    more than one row more than another.

    Attributes
    ----------
    rows
        Store rows to train on, ascending.
    shard_rows
        Rows per shard of the store.
    world
        Number of ranks.
    """

    rows: NDArray[np.int64]
    shard_rows: int
    world: int

    def owners(self) -> NDArray[np.int64]:
        """Rank of each of the rows."""
        place = np.arange(len(self.rows))
        dealt = len(place) // (self.shard_rows * self.world) * self.shard_rows * self.world
        left = max(len(place) - dealt, 1)
        return np.where(place < dealt, place // self.shard_rows % self.world, (place - dealt) * self.world // left)

    def share(self, rank: int) -> NDArray[np.int64]:
        """Store rows of one rank, ascending."""
        share: NDArray[np.int64] = self.rows[self.owners() == rank]
        return share

    @property
    def largest_share(self) -> int:
        """Rows of the rank that owns most."""
        return -(-len(self.rows) // self.world)
