"""A path through the latent space as it is kept: its points, how it was found, and what lies along it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from cryoformer_dist.data.selection import RunState
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.storage.records import read_record, write_record

SCHEMA_VERSION = 1
PathKind = Literal["straight", "neighbours", "barrier"]


@dataclass(frozen=True, slots=True)
class LatentPath:
    """What a path's JSON holds.

    Attributes
    ----------
    run
        Whose latents they are.
    kind
        ``straight``; ``neighbours``: the shortest along the graph of neighbours; ``barrier``: the one whose rarest
        place is as common as can be.
    start, end
        In words.
    latents
        Of each point.
    particles
        How many each point stands for: those nearer to it than to any other, and within ``reach``.
    reach
        In latent units.
    energy
        Of each point in kT above the most crowded place: how rare it is, as minus the logarithm of the density.
    """

    run: RunState
    kind: PathKind
    start: str
    end: str
    latents: tuple[tuple[float, ...], ...]
    particles: tuple[int, ...]
    reach: float
    energy: tuple[float, ...]

    @property
    def points(self) -> Float[np.ndarray, "points latent"]:
        """Latents as an array."""
        return np.array(self.latents, dtype=np.float32)

    @property
    def barrier(self) -> float:
        """How much rarer the rarest point is than the rarer of the two ends, kT."""
        return max(self.energy) - max(self.energy[0], self.energy[-1])


def write_path(file: Path, path: LatentPath) -> Path:
    """Write a path as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_record(file, path, SCHEMA_VERSION)


def read_path(file: Path) -> LatentPath:
    """Read what `write_path` wrote.

    Raises
    ------
    CryoFormerError
        If the file is absent, damaged or of another version.
    """
    if not file.is_file():
        raise ExplorationError(f"{file}: no such path; `cryoformer-dist path` makes one")
    return read_record(file, LatentPath, SCHEMA_VERSION, "make the path again with `cryoformer-dist path`")
