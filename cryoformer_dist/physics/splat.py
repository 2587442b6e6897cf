"""Spreading point densities onto a periodic grid with a cubic B-spline, and its adjoint.

The torch version is the reference and what a CPU runs; `splat_triton` is its twin on a GPU. The spline and why its
transform must be divided out afterwards are told in `projection`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.physics.kernel_choice import Kernels, uses_triton

TAPS = 4
CACHED_POINTS = 2**16


def splat(
    density: Float[Tensor, "particles points"],
    points: Float[Tensor, "points 3"],
    rotation: Float[Tensor, "particles 2 3"],
    shift: Float[Tensor, "particles 2"],
    size: int,
    kernels: Kernels = "auto",
) -> Float[Tensor, "particles size size"]:
    """Sum of every particle's densities, each spread over the four by four grid points around its place.

    A point ``p`` lies at ``rotation @ p + shift``: ``(x, y)`` in grid steps, the origin at index 0.
    The grid is periodic.

    Parameters
    ----------
    density
        What each point carries.
    points
        ``(x, y, z)``, shared by all particles.
    rotation, shift
        Where a particle has them.
    size
        Side of the grid, indexed ``[y, x]``.
    kernels
        ``auto``: Triton on a GPU, torch on a CPU; ``torch``: torch everywhere.

    Notes
    -----
    Differentiable in density, rotation and shift. On a GPU the order of additions, and with it the last bits, changes
    from call to call unless ``torch.use_deterministic_algorithms`` is on.
    """
    if uses_triton(kernels, density.device):
        from cryoformer_dist.physics.splat_triton import splat as splat_on_device

        return splat_on_device(density, points, rotation, shift, size)
    position = torch.einsum("bij,mj->bmi", rotation, points) + shift[:, None]
    result: Tensor = _Splat.apply(density, position, size)
    return result


def bspline(fraction: Tensor) -> list[Tensor]:
    """Cubic B-spline weights of the four grid lines around a point at ``fraction`` past the second."""
    f, g = fraction, 1 - fraction
    f2 = f * f
    last, first = f2 * f / 6, g * g * g / 6
    second = 2 / 3 - f2 + 3 * last
    # They sum to one.
    return [first, second, 1 - first - second - last, last]


def _bspline_slope(fraction: Tensor) -> list[Tensor]:
    """Derivative of `bspline` with respect to the point's position."""
    f, g = fraction, 1 - fraction
    last, first = f * f / 2, -(g * g) / 2
    second = 3 * last - 2 * f
    return [first, second, -first - second - last, last]


class _Splat(torch.autograd.Function):
    """Spread densities onto a periodic fine grid whose origin is index 0; the adjoint gathers."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, position: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(density, position)
        padded = size + TAPS - 1
        # Rows and columns past the edge are kept apart and folded back once, instead of a modulo per tap.
        grid = density.new_zeros(len(density), padded, padded)
        for part in _parts(density):
            index, fraction = _taps(position[part], size)
            target = grid[part].reshape(-1)
            column_weights = bspline(fraction[..., 0])
            for row, row_weight in enumerate(bspline(fraction[..., 1])):
                value = density[part] * row_weight
                for column, column_weight in enumerate(column_weights):
                    # A view that starts at the tap spares an addition to every index.
                    target[row * padded + column :].scatter_add_(0, index, (value * column_weight).reshape(-1))
        grid[:, : TAPS - 1] += grid[:, size:]
        grid[:, :, : TAPS - 1] += grid[:, :, size:]
        return grid[:, :size, :size].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        density, position = ctx.saved_tensors
        around = torch.nn.functional.pad(gradient[:, None], (0, TAPS - 1, 0, TAPS - 1), mode="circular")
        to_density = torch.empty_like(density)
        to_position = torch.empty_like(position) if ctx.needs_input_grad[1] else None
        for part in _parts(density):
            value, slopes = _gather(around[part], position[part], gradient.shape[-1], to_position is not None)
            to_density[part] = value
            if to_position is not None:
                torch.mul(torch.stack(slopes, dim=-1), density[part][..., None], out=to_position[part])
        return to_density, to_position, None


def _parts(density: Tensor) -> Iterator[slice]:
    """Particles a few at a time: on a CPU what belongs to them stays in the cache meanwhile."""
    particles, points = density.shape
    step = particles if density.is_cuda else max(1, CACHED_POINTS // points)
    for start in range(0, particles, step):
        yield slice(start, start + step)


def _taps(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Flat index of each point's first tap in its padded grid, and how far past the second grid line it lies."""
    cell = position.floor()
    first = (cell.long() - 1).remainder(size)
    padded = size + TAPS - 1
    base = torch.arange(len(position), device=position.device)[:, None] * padded**2
    return (base + first[..., 1] * padded + first[..., 0]).reshape(-1), position - cell


def _gather(around: Tensor, position: Tensor, size: int, wants_slopes: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The padded grids' interpolants at the points, and their slopes along x and y."""
    index, fraction = _taps(position, size)
    padded, flat, shape = size + TAPS - 1, around.reshape(-1), position.shape[:-1]
    column_weights, column_slopes = bspline(fraction[..., 0]), _bspline_slope(fraction[..., 0])
    row_slopes = _bspline_slope(fraction[..., 1])
    value, along_x, along_y = (position.new_zeros(shape) for _ in range(3))
    for row, row_weight in enumerate(bspline(fraction[..., 1])):
        line, slope = position.new_zeros(shape), position.new_zeros(shape)
        for column in range(TAPS):
            tap = flat[row * padded + column :].index_select(0, index).reshape(shape)
            line.addcmul_(tap, column_weights[column])
            if wants_slopes:
                slope.addcmul_(tap, column_slopes[column])
        value.addcmul_(line, row_weight)
        if wants_slopes:
            along_x.addcmul_(slope, row_weight)
            along_y.addcmul_(line, row_slopes[row])
    return value, (along_x, along_y)
