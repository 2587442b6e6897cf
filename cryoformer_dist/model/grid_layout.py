"""Where tiny-cuda-nn's multiresolution hash grid keeps what: the definition that all backends share, index for index.

Points live in the unit cube. Level ``l`` has scale ``exp2(l log2(growth)) * base - 1`` and ``ceil(scale) + 1`` vertices
per side; coarse levels are dense, fine ones hashed; a point sits at ``scale * x + 0.5`` (Mueller et al. 2022, and the
source of tiny-cuda-nn, whose own functions made the golden numbers of our tests).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class GridLayout:
    """Size and place of every level in the flat table.

    Attributes
    ----------
    base_resolution, growth, table_size
        What the layout was made from: about the vertices per side of the coarsest level, factor from level to level,
        most entries of a level.
    scales
        Per level, multiplied into unit-cube coordinates.
    resolutions
        Vertices per side.
    offsets
        First entry of each level, and the total at the end.
    """

    base_resolution: int
    growth: float
    table_size: int
    scales: tuple[float, ...]
    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]

    @staticmethod
    def of(levels: int, base_resolution: int, growth: float, table_size: int) -> "GridLayout":
        """Lay out levels as tiny-cuda-nn does, with its roundings: they decide which entries the finest levels use."""
        scales, resolutions, offsets = [], [], [0]
        exponent = np.float32(math.log2(growth))
        for level in range(levels):
            power = np.float32(2.0 ** float(np.float32(level) * exponent))
            scale = power * np.float32(base_resolution) - np.float32(1)
            resolution = math.ceil(scale) + 1
            entries = min((resolution**3 + 7) // 8 * 8, table_size)
            scales.append(float(scale))
            resolutions.append(resolution)
            offsets.append(offsets[-1] + entries)
        return GridLayout(base_resolution, growth, table_size, tuple(scales), tuple(resolutions), tuple(offsets))

    @property
    def entries(self) -> int:
        """Entries of the whole table."""
        return self.offsets[-1]

    def is_dense(self, level: int) -> bool:
        """Whether every vertex of a level has an entry of its own; otherwise they are hashed."""
        return self.resolutions[level] ** 3 <= self.size(level)

    def size(self, level: int) -> int:
        """Entries of one level."""
        return self.offsets[level + 1] - self.offsets[level]

    def corners(
        self, points: Float[Tensor, "points 3"]
    ) -> tuple[Int[Tensor, "points levels 8"], Float[Tensor, "points levels 3"]]:
        """Table entries of the eight vertices around each point, and the point's place between them.

        Parameters
        ----------
        points
            ``(points, 3)`` in the unit cube.

        Returns
        -------
        entry
            ``(points, levels, 8)``; bit ``d`` of the corner number set means one step along axis ``d``.
        fraction
            ``(points, levels, 3)`` in [0, 1), differentiable in the points.
        """
        entries, fractions = [], []
        for level, (scale, resolution) in enumerate(zip(self.scales, self.resolutions, strict=True)):
            # One rounding, as a fused multiply-add has: two would move points across the borders of fine cells.
            position = (points.double() * scale + 0.5).to(points.dtype)
            cell = position.detach().floor()
            fractions.append(position - cell)
            entries.append(self._level_entries(cell.long(), level, resolution) + self.offsets[level])
        return torch.stack(entries, dim=1), torch.stack(fractions, dim=1)

    def _level_entries(self, cell: Tensor, level: int, resolution: int) -> Tensor:
        size, dense = self.size(level), self.is_dense(level)
        columns = []
        for corner in range(8):
            x, y, z = (cell[:, axis] + (corner >> axis & 1) for axis in range(3))
            if dense:
                mixed = (x + y * resolution + z * resolution**2) & _UINT32
            else:
                mixed = (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) & _UINT32
            columns.append(mixed % size)
        return torch.stack(columns, dim=1)


def corner_weights(fraction: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 8"]:
    """Trilinear weight of each of the eight corners."""
    weights = []
    for corner in range(8):
        along = [fraction[..., axis] if corner >> axis & 1 else 1 - fraction[..., axis] for axis in range(3)]
        weights.append(along[0] * along[1] * along[2])
    return torch.stack(weights, dim=-1)
