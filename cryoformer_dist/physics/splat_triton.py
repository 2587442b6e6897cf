"""`splat` on a GPU: scatter by atomic additions, gather without any.

One program works on a block of points of one particle. Kernels are exempt from the shape checks of the tests, which
would look at Triton's own annotations.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor

BLOCK = 256
# Sums of integers do not depend on their order. 61 bits leave room for the rounding of the bound they are scaled by.
_FIXED_POINT_BITS = 61


@triton.jit
@no_type_check
def _weight(fraction, TAP: tl.constexpr):
    """Cubic B-spline weight of the grid line TAP for a point at a fraction past line 1."""
    other = 1.0 - fraction
    if TAP == 0:
        weight = other * other * other / 6.0
    elif TAP == 1:
        weight = (4.0 - 6.0 * fraction * fraction + 3.0 * fraction * fraction * fraction) / 6.0
    elif TAP == 2:
        weight = (4.0 - 6.0 * other * other + 3.0 * other * other * other) / 6.0
    else:
        weight = fraction * fraction * fraction / 6.0
    return weight


@triton.jit
@no_type_check
def _slope(fraction, TAP: tl.constexpr):
    """Derivative of the weight with respect to the point's position."""
    other = 1.0 - fraction
    if TAP == 0:
        slope = -0.5 * other * other
    elif TAP == 1:
        slope = 1.5 * fraction * fraction - 2.0 * fraction
    elif TAP == 2:
        slope = 2.0 * other - 1.5 * other * other
    else:
        slope = 0.5 * fraction * fraction
    return slope


@triton.jit
@no_type_check
def _first_tap(position, size):
    """Index of the first of four grid lines, wrapped into the grid, and the fraction past the second."""
    cell = tl.floor(position)
    first = cell.to(tl.int32) - 1
    # The remainder of a negative number is negative, as in C.
    return ((first % size) + size) % size, position - cell


@triton.jit
@no_type_check
def _tap(first, TAP: tl.constexpr, size):
    line = first + TAP
    return tl.where(line >= size, line - size, line)


@triton.jit
@no_type_check
def _place(points_ptr, rotation_ptr, shift_ptr, particle, point, inside):
    """Where a particle has a block of points, and the points: ``x, y`` in the grid, ``x, y, z`` of its own."""
    x = tl.load(points_ptr + 3 * point, mask=inside, other=0.0)
    y = tl.load(points_ptr + 3 * point + 1, mask=inside, other=0.0)
    z = tl.load(points_ptr + 3 * point + 2, mask=inside, other=0.0)
    row = rotation_ptr + 6 * particle
    place_x = tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z + tl.load(shift_ptr + 2 * particle)
    row += 3
    place_y = tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z + tl.load(shift_ptr + 2 * particle + 1)
    return place_x, place_y, x, y, z


@triton.jit
@no_type_check
def _store_pull(to_pose_ptr, pull, x, y, z):
    """A block's share of the gradient in one row of a rotation, and in the shift beside it."""
    tl.store(to_pose_ptr, tl.sum(pull * x))
    tl.store(to_pose_ptr + 1, tl.sum(pull * y))
    tl.store(to_pose_ptr + 2, tl.sum(pull * z))
    tl.store(to_pose_ptr + 3, tl.sum(pull))


@triton.jit
@no_type_check
def scatter(
    density_ptr,
    points_ptr,
    rotation_ptr,
    shift_ptr,
    unit_ptr,
    grid_ptr,
    points,
    size,
    FIXED_POINT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK, particles): add a block of points to their particle's grid."""
    particle = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < points
    density = tl.load(density_ptr + particle * points + point, mask=inside, other=0.0)
    if FIXED_POINT:
        density = density * tl.load(unit_ptr + particle)
    place_x, place_y, _, _, _ = _place(points_ptr, rotation_ptr, shift_ptr, particle, point, inside)
    first_x, along_x = _first_tap(place_x, size)
    first_y, along_y = _first_tap(place_y, size)
    grid = grid_ptr + particle * size * size
    for row in tl.static_range(4):
        of_row = density * _weight(along_y, row)
        line = grid + _tap(first_y, row, size) * size
        for column in tl.static_range(4):
            value = of_row * _weight(along_x, column)
            if FIXED_POINT:
                value = value.to(tl.int64)
            tl.atomic_add(line + _tap(first_x, column, size), value, mask=inside, sem="relaxed")


@triton.jit
@no_type_check
def gather(
    density_ptr,
    points_ptr,
    rotation_ptr,
    shift_ptr,
    gradient_ptr,
    to_density_ptr,
    to_pose_ptr,
    points,
    size,
    SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK, particles): the gradient's interpolant at each point; a block's share of a pose's."""
    particle = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < points
    place_x, place_y, x, y, z = _place(points_ptr, rotation_ptr, shift_ptr, particle, point, inside)
    first_x, along_x = _first_tap(place_x, size)
    first_y, along_y = _first_tap(place_y, size)
    grid = gradient_ptr + particle * size * size
    value = tl.zeros([BLOCK], tl.float32)
    slope_x = tl.zeros([BLOCK], tl.float32)
    slope_y = tl.zeros([BLOCK], tl.float32)
    for row in tl.static_range(4):
        line = grid + _tap(first_y, row, size) * size
        of_line = tl.zeros([BLOCK], tl.float32)
        slope_of_line = tl.zeros([BLOCK], tl.float32)
        for column in tl.static_range(4):
            at = tl.load(line + _tap(first_x, column, size), mask=inside, other=0.0)
            of_line += at * _weight(along_x, column)
            if SLOPES:
                slope_of_line += at * _slope(along_x, column)
        value += of_line * _weight(along_y, row)
        if SLOPES:
            slope_x += slope_of_line * _weight(along_y, row)
            slope_y += of_line * _slope(along_y, row)
    tl.store(to_density_ptr + particle * points + point, value, mask=inside)
    if SLOPES:
        density = tl.load(density_ptr + particle * points + point, mask=inside, other=0.0)
        part = to_pose_ptr + 8 * (particle * tl.num_programs(0) + tl.program_id(0))
        _store_pull(part, slope_x * density, x, y, z)
        _store_pull(part + 4, slope_y * density, x, y, z)


def splat(
    density: Float32[Tensor, "particles points"],
    points: Float32[Tensor, "points 3"],
    rotation: Float32[Tensor, "particles 2 3"],
    shift: Float32[Tensor, "particles 2"],
    size: int,
) -> Float32[Tensor, "particles size size"]:
    """As `splat.splat`; summed in fixed point where torch is told to use deterministic algorithms.

    Places are computed where they are needed, in float32 whatever torch's products are rounded to, and never written.
    """
    result: Tensor = _Splat.apply(*(tensor.contiguous() for tensor in (density, points, rotation, shift)), size)
    return result


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, points: Tensor, rotation: Tensor, shift: Tensor, size: int) -> Tensor:
        # Only the gradient of a pose asks what a point weighs.
        ctx.slopes = any(ctx.needs_input_grad[2:4])
        ctx.save_for_backward(density if ctx.slopes else None, points, rotation, shift)
        particles, count = density.shape
        fixed_point = torch.are_deterministic_algorithms_enabled()
        unit = _fixed_point_unit(density) if fixed_point else density
        grid = density.new_zeros(particles, size, size, dtype=torch.int64 if fixed_point else torch.float32)
        blocks = (triton.cdiv(count, BLOCK), particles)
        tensors = (density, points, rotation, shift, unit, grid)
        scatter[blocks](*tensors, count, size, FIXED_POINT=fixed_point, BLOCK=BLOCK)
        if not fixed_point:
            return grid
        return (grid.double() / unit.double()[:, None, None]).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        density, points, rotation, shift = ctx.saved_tensors
        particles, count = len(rotation), len(points)
        to_density = gradient.new_empty(particles, count)
        blocks = (triton.cdiv(count, BLOCK), particles)
        to_pose = gradient.new_empty(particles, blocks[0], 2, 4) if ctx.slopes else to_density
        tensors = (density if ctx.slopes else to_density, points, rotation, shift, gradient.contiguous())
        gather[blocks](*tensors, to_density, to_pose, count, gradient.shape[-1], SLOPES=ctx.slopes, BLOCK=BLOCK)
        if not ctx.slopes:
            return to_density, None, None, None, None
        to_pose = to_pose.sum(1)
        return to_density, None, to_pose[..., :3], to_pose[..., 3], None


def _fixed_point_unit(density: Tensor) -> Tensor:
    """Integer steps per unit of density, so that no particle's grid can overflow.

    A grid point holds at most the sum of all magnitudes. With 32-bit integers this bound leaves too few steps for a
    lattice of 10^5 points; 64-bit ones lose nothing that float32 has. A density that is not finite gives a unit, and
    with it an image, that is not a number: it must not vanish in the conversion.
    """
    bound = density.abs().sum(1)
    exponent = torch.frexp(bound).exponent.clamp(min=_FIXED_POINT_BITS - 120)
    return torch.ldexp(torch.ones_like(bound), _FIXED_POINT_BITS - exponent) + 0 * bound
