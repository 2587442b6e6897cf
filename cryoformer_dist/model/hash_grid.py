"""Multiresolution hash grid: one table in tiny-cuda-nn's layout, whoever interpolates in it."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import HashGridConfig
from cryoformer_dist.model.grid_layout import GridLayout
from cryoformer_dist.model.kernels.encode import LatticeOperator, encode
from cryoformer_dist.physics.kernel_choice import require_triton

# A growth that puts scales exactly on integers makes the level's size depend on the last bit of exp2f.
_OFF_INTEGERS = 1.0003

# What is kept of points that come back at many steps: a constant operator, or no more than the points.
KeptPoints = LatticeOperator | Tensor


def operator_bytes_per_point(config: HashGridConfig) -> int:
    """Memory of what `HashGrid.operator` keeps of a point.

    Backend torch: index and weight of eight corners per level, in the matrix and its transpose, and row pointers. The
    others: the point's coordinates.
    """
    return config.levels * (2 * 8 * (4 + 4) + 4) if config.backend == "torch" else 3 * 4


class HashGrid(nn.Module):
    """Learnable features in space.

    Parameters
    ----------
    config
        Levels, features and resolutions, and the backend.
    box
        Side of the images in pixels: the finest resolution when the configuration names none.

    Raises
    ------
    BackendUnavailableError
        The backend that the configuration names cannot run here.
    """

    def __init__(self, config: HashGridConfig, box: int) -> None:
        super().__init__()
        finest = config.finest_resolution or box
        growth = (finest / config.base_resolution) ** (1 / max(config.levels - 1, 1)) * _OFF_INTEGERS
        # tiny-cuda-nn reads it as a float32.
        growth = float(np.float32(growth))
        self.layout = GridLayout.of(config.levels, config.base_resolution, growth, 2**config.log2_table_size)
        self.width = config.levels * config.features_per_level
        self.backend = config.backend
        self._encode = _choose_encoder(config, self.layout)
        table = torch.empty(self.layout.entries, config.features_per_level)
        # tiny-cuda-nn starts at 1e-4; from there the conditioning path takes far longer to wake up.
        self.table = nn.Parameter(table.uniform_(-1e-2, 1e-2))

    def operator(self, points: Float[Tensor, "points 3"]) -> KeptPoints:
        """What makes `at_lattice` fast for points that come back at many steps."""
        return LatticeOperator(self.layout, points) if self.backend == "torch" else points

    def at_lattice(self, operator: KeptPoints) -> Float[Tensor, "points width"]:
        """Features at an operator's points."""
        return operator.of(self.table) if isinstance(operator, LatticeOperator) else self(operator)

    def forward(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points width"]:
        """Features at any points of the unit cube, differentiable in the points."""
        return self._encode(self.table, points, self.layout)


def _choose_encoder(config: HashGridConfig, layout: GridLayout) -> Callable[[Tensor, Tensor, GridLayout], Tensor]:
    """The backend that the configuration names, loaded now: what is missing is told before anything is trained."""
    if config.backend == "triton":
        require_triton("set model.hash_grid.backend: torch; its tables are the same")
        from cryoformer_dist.model.kernels.encode_triton import encode as encode_triton

        return encode_triton
    if config.backend == "tinycudann":
        from cryoformer_dist.model.kernels.encode_tinycudann import TinyCudaNN

        return TinyCudaNN(layout, config.features_per_level)
    return encode
