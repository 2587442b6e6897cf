"""Multiresolution hash grid: one table in tiny-cuda-nn's layout, whoever interpolates in it."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import HashGridConfig, ModelConfig
from cryoformer_dist.model.grid_layout import GridLayout
from cryoformer_dist.model.kernels.encode import LatticeOperator, encode
from cryoformer_dist.physics.kernel_choice import Kernels, require_triton, uses_triton

# A growth that puts scales exactly on integers makes the level's size depend on the last bit of exp2f.
_OFF_INTEGERS = 1.0003

Encoder = Callable[[Tensor, Tensor, GridLayout], Tensor]
# What is kept of points that come back at many steps: a constant operator, or no more than the points.
KeptPoints = LatticeOperator | Tensor


def operator_bytes_per_point(model: ModelConfig, on_gpu: bool) -> int:
    """Memory of what `HashGrid.operator` keeps of a point.

    Backend torch: index and weight of eight corners per level, in the matrix and its transpose, and row pointers. The
    others: the point's coordinates.
    """
    return model.hash_grid.levels * (2 * 8 * (4 + 4) + 4) if model.encoder(on_gpu) == "torch" else 3 * 4


class HashGrid(nn.Module):
    """Learnable features in space.

    Parameters
    ----------
    config
        Levels, features and resolutions, and the backend.
    box
        Side of the images in pixels: the finest resolution when the configuration names none.
    kernels
        Backend ``auto`` encodes by Triton on a GPU unless torch is named.

    Raises
    ------
    BackendUnavailableError
        The backend that the configuration names cannot run here.
    """

    def __init__(self, config: HashGridConfig, box: int, kernels: Kernels = "auto") -> None:
        super().__init__()
        finest = config.finest_resolution or box
        growth = (finest / config.base_resolution) ** (1 / max(config.levels - 1, 1)) * _OFF_INTEGERS
        # tiny-cuda-nn reads it as a float32.
        growth = float(np.float32(growth))
        self.layout = GridLayout.of(config.levels, config.base_resolution, growth, 2**config.log2_table_size)
        self.width = config.levels * config.features_per_level
        self.backend, self.kernels = config.backend, kernels
        self._tinycudann = _load_tinycudann(config, self.layout)
        if config.backend == "triton":
            # What is missing is told before anything is trained.
            require_triton("set model.hash_grid.backend: torch; its tables are the same")
        table = torch.empty(self.layout.entries, config.features_per_level)
        # tiny-cuda-nn starts at 1e-4; from there the conditioning path takes far longer to wake up.
        self.table = nn.Parameter(table.uniform_(-1e-2, 1e-2))

    def operator(self, points: Float[Tensor, "points 3"]) -> KeptPoints:
        """What makes `at_lattice` fast for points that come back at many steps."""
        return LatticeOperator(self.layout, points) if self._choose(points.device) is encode else points

    def at_lattice(self, operator: KeptPoints) -> Float[Tensor, "points width"]:
        """Features at an operator's points."""
        return operator.of(self.table) if isinstance(operator, LatticeOperator) else self(operator)

    def forward(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points width"]:
        """Features at any points of the unit cube, differentiable in the points."""
        return self._choose(points.device)(self.table, points, self.layout)

    def _choose(self, device: torch.device) -> Encoder:
        """Who encodes points on a device: as `ModelConfig.encoder`."""
        if self._tinycudann is not None:
            return self._tinycudann
        if self.backend == "triton" or (self.backend == "auto" and uses_triton(self.kernels, device)):
            from cryoformer_dist.model.kernels.encode_triton import encode as encode_triton

            return encode_triton
        return encode


def _load_tinycudann(config: HashGridConfig, layout: GridLayout) -> Encoder | None:
    """Tiny-cuda-nn's encoder, if it is the one that is named."""
    if config.backend != "tinycudann":
        return None
    from cryoformer_dist.model.kernels.encode_tinycudann import TinyCudaNN

    return TinyCudaNN(layout, config.features_per_level)
