"""Places in the latent space that a user names: particles by their row, clusters by their number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.selection.columns import ParticleColumns

_CLUSTER = "cluster:"


def find_particles(columns: ParticleColumns, source_row: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Places, among a run's particles, of some rows of its particle file.

    Raises
    ------
    ExplorationError
        If the run was not trained on one of them.
    """
    wanted = np.asarray(source_row, dtype=np.int64)
    absent = np.setdiff1d(wanted, columns.source_row)
    if len(absent):
        raise ExplorationError(
            f"{columns.run.home}: particle {absent[0]} is not among the {len(columns)} it was trained on; rows of "
            f"{columns.source.path} are counted from 0, and `cryoformer-dist select {columns.run.home} -o ind.pkl` "
            "lists those there are"
        )
    order = np.argsort(columns.source_row)
    found: NDArray[np.int64] = order[np.searchsorted(columns.source_row[order], wanted)]
    return found


def find_place(columns: ParticleColumns, text: str) -> tuple[int, str]:
    """The particle that a text names, and in words: ``17`` for row 17, ``cluster:3`` for that cluster's centre.

    Raises
    ------
    ExplorationError
        If it names neither, or none of this run.
    """
    number = text.removeprefix(_CLUSTER)
    if not number.isdecimal():
        raise ExplorationError(f"{text}: neither a particle nor a cluster; write 17 for row 17, or cluster:3")
    if number == text:
        return int(find_particles(columns, [int(number)])[0]), f"particle {number}"
    centres = columns.table["kmeans_row"]
    if int(number) >= len(centres):
        raise ExplorationError(f"{columns.run.home}: no cluster {number}; there are 0 to {len(centres) - 1}")
    return int(centres[int(number)]), f"cluster {number}"
