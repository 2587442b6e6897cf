"""Features of the hash grid at points, in torch: what a CPU runs, and the reference of the other backends."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.model.grid_layout import GridLayout, corner_weights


def encode(
    table: Float[Tensor, "entries features"], points: Float[Tensor, "points 3"], layout: GridLayout
) -> Float[Tensor, "points width"]:
    """Trilinear interpolation of every level's table at any points.

    Parameters
    ----------
    table
        One row per entry, level by level.
    points
        ``(x, y, z)`` in the unit cube; outside it the grid wraps silently.
    layout
        Of the table.

    Returns
    -------
    features
        ``(points, levels * features)``, the features of a level side by side; differentiable in table and points.
    """
    entry, fraction = layout.corners(points)
    features: Tensor = _Interpolate.apply(table, entry, corner_weights(fraction))
    return features.flatten(1)


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
        row_start = torch.arange(0, 8 * rows + 1, 8, device=points.device)
        self.gather = _sparse(row_start, column, weight, (rows, layout.entries))
        order = torch.argsort(column, stable=True)
        counts = torch.bincount(column, minlength=layout.entries)
        column_start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        row = torch.arange(rows, device=points.device).repeat_interleave(8)
        self.scatter = _sparse(column_start, row[order], weight[order], (layout.entries, rows))

    def of(self, table: Float[Tensor, "entries features"]) -> Float[Tensor, "points width"]:
        """Features at the operator's points, differentiable in the table."""
        features: Tensor = _FixedLattice.apply(table, self)
        return features


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
