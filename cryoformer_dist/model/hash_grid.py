"""Multiresolution hash grid in tiny-cuda-nn's definition, index for index, so that tables move between backends.

Points live in the unit cube. Level ``l`` has scale ``exp2(l log2(growth)) * base - 1`` and ``ceil(scale) + 1`` vertices
per side; coarse levels are dense, fine ones hashed; a point sits at ``scale * x + 0.5`` (Mueller et al. 2022, and the
source of tiny-cuda-nn, whose own functions made the golden numbers of our tests).
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryoformer_dist.config.schema import HashGridConfig

_PRIMES = (1, 2654435761, 805459861)
_UINT32 = 0xFFFFFFFF
# A growth that puts scales exactly on integers makes the level's size depend on the last bit of exp2f.
_OFF_INTEGERS = 1.0003


@dataclass(frozen=True, slots=True)
class GridLayout:
    """Size and place of every level in the flat table.

    Attributes
    ----------
    scales
        Per level, multiplied into unit-cube coordinates.
    resolutions
        Vertices per side.
    offsets
        First entry of each level, and the total at the end.
    """

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
        return GridLayout(tuple(scales), tuple(resolutions), tuple(offsets))

    @property
    def entries(self) -> int:
        """Entries of the whole table."""
        return self.offsets[-1]

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
        size = self.offsets[level + 1] - self.offsets[level]
        dense = resolution**3 <= size
        columns = []
        for corner in range(8):
            x, y, z = (cell[:, axis] + (corner >> axis & 1) for axis in range(3))
            if dense:
                mixed = (x + y * resolution + z * resolution**2) & _UINT32
            else:
                mixed = (x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]) & _UINT32
            columns.append(mixed % size)
        return torch.stack(columns, dim=1)


def corner_weights(fraction: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 8"]:
    """Trilinear weight of each of the eight corners."""
    weights = []
    for corner in range(8):
        along = [fraction[..., axis] if corner >> axis & 1 else 1 - fraction[..., axis] for axis in range(3)]
        weights.append(along[0] * along[1] * along[2])
    return torch.stack(weights, dim=-1)


class LatticeOperator:
    """Interpolation at a fixed set of points as one constant sparse matrix and its transpose: fast and deterministic.

    Parameters
    ----------
    layout
        Of the grid.
    points
        ``(points, 3)`` in the unit cube.
    """

    def __init__(self, layout: GridLayout, points: Float[Tensor, "points 3"]) -> None:
        entry, fraction = layout.corners(points)
        self.points = len(points)
        rows = entry.shape[0] * entry.shape[1]
        column, weight = entry.reshape(-1), corner_weights(fraction).reshape(-1)
        row_start = torch.arange(0, 8 * rows + 1, 8)
        self.gather = _sparse(row_start, column, weight, (rows, layout.entries))
        order = torch.argsort(column, stable=True)
        counts = torch.bincount(column, minlength=layout.entries)
        column_start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        row = torch.arange(rows).repeat_interleave(8)
        self.scatter = _sparse(column_start, row[order], weight[order], (layout.entries, rows))


def operator_bytes_per_point(config: HashGridConfig) -> int:
    """Memory of a `LatticeOperator`: index and weight of eight corners per level, both ways, and row starts."""
    return config.levels * (2 * 8 * (4 + 4) + 4)


def _sparse(start: Tensor, index: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # torch calls its CSR layout beta; the golden test guards what we use of it.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(start.int(), index.int(), weight, size=size, check_invariants=False)


class _FixedLattice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, operator: LatticeOperator) -> Tensor:
        ctx.operator = operator
        return (operator.gather @ table).reshape(operator.points, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = ctx.operator.gather.shape[0]
        return ctx.operator.scatter @ gradient.reshape(rows, -1), None


class _Interpolate(torch.autograd.Function):
    """Weighted sum of eight table rows; the gradient is scattered once instead of sorted."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, entry: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, entry, weight)
        rows = table.index_select(0, entry.reshape(-1)).reshape(*entry.shape, -1)
        return (rows * weight[..., None]).sum(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        table, entry, weight = ctx.saved_tensors
        flat = entry.reshape(-1)
        spread = (weight[..., None] * gradient[..., None, :]).reshape(len(flat), -1)
        to_table = torch.zeros_like(table).index_add_(0, flat, spread)
        to_weight = None
        if ctx.needs_input_grad[2]:
            rows = table.index_select(0, flat).reshape(*entry.shape, -1)
            to_weight = (rows * gradient[..., None, :]).sum(-1)
        return to_table, None, to_weight


class HashGrid(nn.Module):
    """Learnable features in space.

    Parameters
    ----------
    config
        Levels, features and resolutions.
    box
        Side of the images in pixels: the finest resolution when the configuration names none.
    """

    def __init__(self, config: HashGridConfig, box: int) -> None:
        super().__init__()
        finest = config.finest_resolution or box
        growth = (finest / config.base_resolution) ** (1 / max(config.levels - 1, 1)) * _OFF_INTEGERS
        self.layout = GridLayout.of(config.levels, config.base_resolution, growth, 2**config.log2_table_size)
        self.width = config.levels * config.features_per_level
        table = torch.empty(self.layout.entries, config.features_per_level)
        # tiny-cuda-nn starts at 1e-4; from there the conditioning path takes far longer to wake up.
        self.table = nn.Parameter(table.uniform_(-1e-2, 1e-2))

    def operator(self, points: Float[Tensor, "points 3"]) -> LatticeOperator:
        """The constant operator for points that come back at many steps."""
        return LatticeOperator(self.layout, points)

    def at_lattice(self, operator: LatticeOperator) -> Float[Tensor, "points width"]:
        """Features at an operator's points."""
        return _FixedLattice.apply(self.table, operator)

    def forward(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points width"]:
        """Features at any points of the unit cube, differentiable in the points."""
        entry, fraction = self.layout.corners(points)
        return _Interpolate.apply(self.table, entry, corner_weights(fraction)).flatten(1)
