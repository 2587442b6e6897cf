"""Features of the hash grid at points, on a GPU, in tiny-cuda-nn's definition.

Unlike tiny-cuda-nn, which adds the table's gradient in float16 under a loss scale, table and gradients are float32: all
features of an entry are loaded by one instruction and added by one (``red.v2.f32`` on Hopper). Kernels are exempt from
the shape checks of the tests, which would look at Triton's own annotations.
"""

from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.model.grid_layout import PRIMES, GridLayout

BLOCK = 256
# The coordinate gradient keeps three sums and eight corners per point.
SLOPE_BLOCK = 128

_PRIME_Y = tl.constexpr(PRIMES[1])
_PRIME_Z = tl.constexpr(PRIMES[2])


@triton.jit
@no_type_check
def _place(points_ptr, point, inside, scale, AXIS: tl.constexpr):
    """Vertex below each point along one axis, and the fraction of the way to the next."""
    # One rounding, as tiny-cuda-nn has: two would move points across the borders of fine cells.
    position = tl.fma(tl.load(points_ptr + 3 * point + AXIS, mask=inside, other=0.0), scale, 0.5)
    below = tl.floor(position)
    return below.to(tl.int32), position - below


@triton.jit
@no_type_check
def _cell(points_ptr, point, inside, scale):
    """Cell that each point lies in, and how far along its three axes."""
    x, along_x = _place(points_ptr, point, inside, scale, 0)
    y, along_y = _place(points_ptr, point, inside, scale, 1)
    z, along_z = _place(points_ptr, point, inside, scale, 2)
    return x, y, z, along_x, along_y, along_z


@triton.jit
@no_type_check
def _entry(x, y, z, level_ptr, CORNER: tl.constexpr):
    """Row of the whole table that a corner of each point's cell owns or shares."""
    offset, size = tl.load(level_ptr), tl.load(level_ptr + 1).to(tl.uint32)
    resolution, dense = tl.load(level_ptr + 2).to(tl.uint32), tl.load(level_ptr + 3)
    x = (x + (CORNER & 1)).to(tl.uint32, bitcast=True)
    y = (y + ((CORNER >> 1) & 1)).to(tl.uint32, bitcast=True)
    z = (z + ((CORNER >> 2) & 1)).to(tl.uint32, bitcast=True)
    if dense != 0:
        within = (x + y * resolution + z * (resolution * resolution)) % size
    else:
        # A hashed level has the full table, a power of two.
        within = (x ^ (y * _PRIME_Y).to(tl.uint32) ^ (z * _PRIME_Z).to(tl.uint32)) & (size - 1)
    return offset + within.to(tl.int32, bitcast=True)


@triton.jit
@no_type_check
def _along(fraction, CORNER: tl.constexpr, AXIS: tl.constexpr):
    """A corner's weight along one axis."""
    return fraction if (CORNER >> AXIS) & 1 else 1.0 - fraction


@triton.jit
@no_type_check
def _share(along_x, along_y, along_z, CORNER: tl.constexpr):
    """A corner's weight."""
    return _along(along_x, CORNER, 0) * _along(along_y, CORNER, 1) * _along(along_z, CORNER, 2)


@triton.jit
@no_type_check
def interpolate(
    points_ptr,
    table_ptr,
    levels_ptr,
    scales_ptr,
    features_ptr,
    points,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK, levels): one level's features of a block of points."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level, feature, inside = tl.program_id(1), tl.arange(0, FEATURES), point < points
    scale = tl.load(scales_ptr + level)
    x, y, z, along_x, along_y, along_z = _cell(points_ptr, point, inside, scale)
    total = tl.zeros([BLOCK, FEATURES], tl.float32)
    for corner in tl.static_range(8):
        entry = _entry(x, y, z, levels_ptr + 4 * level, corner)
        weight = _share(along_x, along_y, along_z, corner)
        row = tl.load(table_ptr + entry[:, None] * FEATURES + feature[None, :], mask=inside[:, None], other=0.0)
        total += weight[:, None] * row
    place = (point.to(tl.int64) * tl.num_programs(1) + level) * FEATURES
    tl.store(features_ptr + place[:, None] + feature[None, :], total, mask=inside[:, None])


@triton.jit
@no_type_check
def table_gradient(
    points_ptr,
    gradient_ptr,
    levels_ptr,
    scales_ptr,
    to_table_ptr,
    points,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK, levels): add a block's gradients to the eight entries around each point."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level, feature, inside = tl.program_id(1), tl.arange(0, FEATURES), point < points
    scale = tl.load(scales_ptr + level)
    x, y, z, along_x, along_y, along_z = _cell(points_ptr, point, inside, scale)
    place = (point.to(tl.int64) * tl.num_programs(1) + level) * FEATURES
    incoming = tl.load(gradient_ptr + place[:, None] + feature[None, :], mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):
        entry = _entry(x, y, z, levels_ptr + 4 * level, corner)
        weight = _share(along_x, along_y, along_z, corner)
        row = to_table_ptr + entry[:, None] * FEATURES + feature[None, :]
        tl.atomic_add(row, weight[:, None] * incoming, mask=inside[:, None], sem="relaxed")


@triton.jit
@no_type_check
def point_gradient(
    points_ptr,
    table_ptr,
    gradient_ptr,
    levels_ptr,
    scales_ptr,
    to_points_ptr,
    points,
    levels,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK): slope of a block of points, summed over levels without atomics."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature, inside = tl.arange(0, FEATURES), point < points
    to_x, to_y, to_z = (tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32))
    for level in range(0, levels):
        scale = tl.load(scales_ptr + level)
        x, y, z, along_x, along_y, along_z = _cell(points_ptr, point, inside, scale)
        place = (point.to(tl.int64) * levels + level) * FEATURES
        incoming = tl.load(gradient_ptr + place[:, None] + feature[None, :], mask=inside[:, None], other=0.0)
        for corner in tl.static_range(8):
            entry = _entry(x, y, z, levels_ptr + 4 * level, corner)
            row = tl.load(table_ptr + entry[:, None] * FEATURES + feature[None, :], mask=inside[:, None], other=0.0)
            pull = tl.sum(row * incoming, 1) * scale
            weight_x, weight_y = _along(along_x, corner, 0), _along(along_y, corner, 1)
            weight_z = _along(along_z, corner, 2)
            to_x += (2 * (corner & 1) - 1) * weight_y * weight_z * pull
            to_y += (2 * ((corner >> 1) & 1) - 1) * weight_x * weight_z * pull
            to_z += (2 * ((corner >> 2) & 1) - 1) * weight_x * weight_y * pull
    tl.store(to_points_ptr + 3 * point, to_x, mask=inside)
    tl.store(to_points_ptr + 3 * point + 1, to_y, mask=inside)
    tl.store(to_points_ptr + 3 * point + 2, to_z, mask=inside)


def encode(
    table: Float32[Tensor, "entries features"], points: Float32[Tensor, "points 3"], layout: GridLayout
) -> Float32[Tensor, "points width"]:
    """As `encode.encode`; features a power of two, the table's gradient changes in the last bits from call to call.

    Raises
    ------
    BackendUnavailableError
        The tensors are not on a GPU.
    """
    if not (points.is_cuda or triton.knobs.runtime.interpret):
        raise BackendUnavailableError(
            f"model.hash_grid.backend: triton needs a CUDA device, and this is {points.device}; set it to torch: the "
            "tables are the same"
        )
    result: Tensor = _Encode.apply(table.contiguous(), points.contiguous(), layout)
    return result


@lru_cache(maxsize=8)
def _levels(layout: GridLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(levels, 4)`` offset, size, resolution and whether dense; ``(levels,)`` scales."""
    rows = [
        (layout.offsets[level], layout.size(level), resolution, int(layout.is_dense(level)))
        for level, resolution in enumerate(layout.resolutions)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device), torch.tensor(layout.scales, device=device)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, layout: GridLayout) -> Tensor:
        ctx.save_for_backward(table, points)
        ctx.layout = layout
        levels, scales = _levels(layout, points.device)
        features = table.new_empty(len(points), len(scales) * table.shape[1])
        grid = (triton.cdiv(len(points), BLOCK), len(scales))
        tensors = (points, table, levels, scales, features)
        interpolate[grid](*tensors, len(points), FEATURES=table.shape[1], BLOCK=BLOCK)
        return features

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, points = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_table = _to_table(table, points, gradient, ctx.layout) if ctx.needs_input_grad[0] else None
        to_points = _to_points(table, points, gradient, ctx.layout) if ctx.needs_input_grad[1] else None
        return to_table, to_points, None


def _to_table(table: Tensor, points: Tensor, gradient: Tensor, layout: GridLayout) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        # As torch's own operations do that have no such algorithm.
        raise RuntimeError(
            "model.hash_grid.backend: triton adds gradients in an order that changes from call to call, and "
            "torch.use_deterministic_algorithms is on; set model.hash_grid.backend: torch"
        )
    levels, scales = _levels(layout, points.device)
    to_table = torch.zeros_like(table)
    grid = (triton.cdiv(len(points), BLOCK), len(scales))
    tensors = (points, gradient, levels, scales, to_table)
    table_gradient[grid](*tensors, len(points), FEATURES=table.shape[1], BLOCK=BLOCK)
    return to_table


def _to_points(table: Tensor, points: Tensor, gradient: Tensor, layout: GridLayout) -> Tensor:
    levels, scales = _levels(layout, points.device)
    to_points = torch.empty_like(points)
    grid = (triton.cdiv(len(points), SLOPE_BLOCK),)
    tensors = (points, table, gradient, levels, scales, to_points)
    counts = (len(points), len(scales))
    point_gradient[grid](*tensors, *counts, FEATURES=table.shape[1], BLOCK=SLOPE_BLOCK)
    return to_points
