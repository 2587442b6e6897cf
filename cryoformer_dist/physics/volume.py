"""A density map with its scale."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Volume:
    """Density on a cubic lattice.

    Attributes
    ----------
    voxels
        ``(box, box, box)`` as ``[z, y, x]``, centre at index ``box // 2``, arbitrary density units.
    voxel_size_angstrom
        Side of a voxel.
    """

    voxels: Float[Tensor, "box box box"]
    voxel_size_angstrom: float


def interpolate(
    voxels: Float[Tensor, "box box box"], points_pixels: Float[Tensor, "*some 3"]
) -> Float[Tensor, "*some"]:
    """Trilinear values of a map at points (x, y, z) in its pixels about the centre; 0 beyond its outermost voxels."""
    box = voxels.shape[-1]
    place = 2 * (points_pixels + box // 2) / (box - 1) - 1
    found = torch.nn.functional.grid_sample(
        voxels[None, None], place.reshape(1, 1, 1, -1, 3), padding_mode="zeros", align_corners=True
    )
    return found.reshape(points_pixels.shape[:-1])
