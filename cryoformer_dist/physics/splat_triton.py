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
def scatter(
    density_ptr, position_ptr, unit_ptr, grid_ptr, points, size, FIXED_POINT: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (points / BLOCK, particles): add a block of points to their particle's grid."""
    particle = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < points
    place = particle * points + point
    density = tl.load(density_ptr + place, mask=inside, other=0.0)
    if FIXED_POINT:
        density = density * tl.load(unit_ptr + particle)
    first_x, along_x = _first_tap(tl.load(position_ptr + 2 * place, mask=inside, other=0.0), size)
    first_y, along_y = _first_tap(tl.load(position_ptr + 2 * place + 1, mask=inside, other=0.0), size)
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
    position_ptr,
    gradient_ptr,
    to_density_ptr,
    to_position_ptr,
    points,
    size,
    SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (points / BLOCK, particles): the gradient's interpolant at each point, and its slopes times the density."""
    particle = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < points
    place = particle * points + point
    first_x, along_x = _first_tap(tl.load(position_ptr + 2 * place, mask=inside, other=0.0), size)
    first_y, along_y = _first_tap(tl.load(position_ptr + 2 * place + 1, mask=inside, other=0.0), size)
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
    tl.store(to_density_ptr + place, value, mask=inside)
    if SLOPES:
        density = tl.load(density_ptr + place, mask=inside, other=0.0)
        tl.store(to_position_ptr + 2 * place, slope_x * density, mask=inside)
        tl.store(to_position_ptr + 2 * place + 1, slope_y * density, mask=inside)


def splat(
    density: Float32[Tensor, "particles points"], position: Float32[Tensor, "particles points 2"], size: int
) -> Float32[Tensor, "particles size size"]:
    """As `splat.splat`; summed in fixed point where torch is told to use deterministic algorithms."""
    result: Tensor = _Splat.apply(density, position, size)
    return result


class _Splat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, position: Tensor, size: int) -> Tensor:
        density, position = density.contiguous(), position.contiguous()
        ctx.save_for_backward(density, position)
        particles, points = density.shape
        fixed_point = torch.are_deterministic_algorithms_enabled()
        unit = _fixed_point_unit(density) if fixed_point else density
        grid = density.new_zeros(particles, size, size, dtype=torch.int64 if fixed_point else torch.float32)
        blocks = (triton.cdiv(points, BLOCK), particles)
        scatter[blocks](density, position, unit, grid, points, size, FIXED_POINT=fixed_point, BLOCK=BLOCK)
        if not fixed_point:
            return grid
        return (grid.double() / unit.double()[:, None, None]).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        density, position = ctx.saved_tensors
        particles, points = density.shape
        slopes = bool(ctx.needs_input_grad[1])
        to_density = torch.empty_like(density)
        to_position = torch.empty_like(position) if slopes else to_density
        blocks = (triton.cdiv(points, BLOCK), particles)
        tensors = (density, position, gradient.contiguous(), to_density, to_position)
        gather[blocks](*tensors, points, gradient.shape[-1], SLOPES=slopes, BLOCK=BLOCK)
        return to_density, to_position if slopes else None, None


def _fixed_point_unit(density: Tensor) -> Tensor:
    """Integer steps per unit of density, so that no particle's grid can overflow.

    A grid point holds at most the sum of all magnitudes. With 32-bit integers this bound leaves too few steps for a
    lattice of 10^5 points; 64-bit ones lose nothing that float32 has. A density that is not finite gives a unit, and
    with it an image, that is not a number: it must not vanish in the conversion.
    """
    bound = density.abs().sum(1)
    exponent = torch.frexp(bound).exponent.clamp(min=_FIXED_POINT_BITS - 120)
    return torch.ldexp(torch.ones_like(bound), _FIXED_POINT_BITS - exponent) + 0 * bound
