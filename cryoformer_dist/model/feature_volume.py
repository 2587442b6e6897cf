"""The implicit spatial feature volume (paper, section 3.3): hash grid, then one hidden layer."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.model.hash_grid import HashGrid, KeptPoints
from cryoformer_dist.physics.kernel_choice import Kernels

# What a tile's table entries and weights take, some 6 kB a point, is a cache's worth on a CPU, and little on a GPU.
TILE_POINTS, TILE_POINTS_CUDA = 2**14, 2**17


class FeatureVolume(nn.Module):
    """Hidden spatial feature ``h(x)``; the linear layer to ``F_S`` lives in the decoder, where it is folded away.

    Parameters
    ----------
    config
        Of the hash grid.
    box
        Side of the images in pixels.
    hidden_width
        Length of ``h``.
    kernels
        See `HashGrid`.
    """

    def __init__(self, config: HashGridConfig, box: int, hidden_width: int, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.box = box
        self.grid = HashGrid(config, box, kernels)
        self.hidden = nn.Linear(self.grid.width, hidden_width)
        # Grid features start at 1e-2: this gain brings h to a scale the attention can feel.
        nn.init.normal_(self.hidden.weight, std=4.0)

    def lattice(self, points_pixels: Float[Tensor, "points 3"]) -> KeptPoints:
        """Operator for a lattice of points in pixels about the centre."""
        return self.grid.operator(self._unit_cube(points_pixels))

    def at_lattice(self, operator: KeptPoints) -> Float[Tensor, "points hidden"]:
        """``h`` at the points of a lattice: once per step for the whole batch."""
        return torch.relu(self.hidden(self.grid.at_lattice(operator)))

    def in_tiles(self, points_pixels: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """``h`` at a lattice too large for an operator (2 kB a point), hashed afresh forwards and backwards.

        As `at_lattice` to rounding, at about ten times the work; nothing but ``h`` outlives a tile.
        """
        return _InTiles.apply(self, points_pixels, *self.parameters())

    def forward(self, points_pixels: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """``h`` at any points, in pixels about the centre, differentiable in the points."""
        return torch.relu(self.hidden(self.grid(self._unit_cube(points_pixels))))

    def _unit_cube(self, points_pixels: Tensor) -> Tensor:
        # Outside the cube the grid wraps silently; callers keep to the inscribed sphere.
        return points_pixels / self.box + 0.5


class _InTiles(torch.autograd.Function):
    """The feature of one tile of points after the other, made again for the gradient of the parameters.

    Not `torch.utils.checkpoint`: what it keeps of each tile lies between the large blocks that a tile works in, and an
    allocator that cannot join those again grows to twice the size.
    """

    @staticmethod
    def forward(ctx: Any, volume: FeatureVolume, points: Tensor, *parameters: Tensor) -> Tensor:
        ctx.volume, ctx.points = volume, points
        ctx.save_for_backward(*parameters)
        hidden = points.new_empty(len(points), volume.hidden.out_features)
        for tile in _tiles(points):
            hidden[tile] = volume(points[tile])
        return hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        totals = [torch.zeros_like(parameter) for parameter in ctx.saved_tensors]
        parameters = list(ctx.volume.parameters())
        for tile in _tiles(ctx.points):
            with torch.enable_grad():
                hidden = ctx.volume(ctx.points[tile])
            for total, part in zip(totals, torch.autograd.grad(hidden, parameters, gradient[tile]), strict=True):
                total += part
        return None, None, *totals


def _tiles(points: Tensor) -> Iterator[slice]:
    size = TILE_POINTS_CUDA if points.is_cuda else TILE_POINTS
    for start in range(0, len(points), size):
        yield slice(start, start + size)
