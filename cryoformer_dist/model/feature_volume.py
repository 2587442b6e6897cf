"""The implicit spatial feature volume (paper, section 3.3): hash grid, then one hidden layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.model.hash_grid import HashGrid, LatticeOperator

# What a tile's table entries and weights take, some 6 kB a point, is a cache's worth on a CPU, and little on a GPU.
_TILE_POINTS, _TILE_POINTS_CUDA = 2**14, 2**17


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
    """

    def __init__(self, config: HashGridConfig, box: int, hidden_width: int) -> None:
        super().__init__()
        self.box = box
        self.grid = HashGrid(config, box)
        self.hidden = nn.Linear(self.grid.width, hidden_width)
        # Grid features start at 1e-2: this gain brings h to a scale the attention can feel.
        nn.init.normal_(self.hidden.weight, std=4.0)

    def lattice(self, points_pixels: Float[Tensor, "points 3"]) -> LatticeOperator:
        """Operator for a lattice of points in pixels about the centre."""
        return self.grid.operator(self._unit_cube(points_pixels))

    def at_lattice(self, operator: LatticeOperator) -> Float[Tensor, "points hidden"]:
        """``h`` at the points of a lattice: once per step for the whole batch."""
        return torch.relu(self.hidden(self.grid.at_lattice(operator)))

    def in_tiles(self, points_pixels: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """``h`` at a lattice too large for an operator (2 kB a point), hashed afresh forwards and backwards.

        As `at_lattice` to rounding, at about ten times the work; nothing but ``h`` outlives a tile.
        """
        tiles = points_pixels.split(_TILE_POINTS_CUDA if points_pixels.is_cuda else _TILE_POINTS)
        parts = [checkpoint(self, tile, use_reentrant=False, preserve_rng_state=False) for tile in tiles]
        return torch.cat(parts)

    def forward(self, points_pixels: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """``h`` at any points, in pixels about the centre, differentiable in the points."""
        return torch.relu(self.hidden(self.grid(self._unit_cube(points_pixels))))

    def _unit_cube(self, points_pixels: Tensor) -> Tensor:
        # Outside the cube the grid wraps silently; callers keep to the inscribed sphere.
        return points_pixels / self.box + 0.5
