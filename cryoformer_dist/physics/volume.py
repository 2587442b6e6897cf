"""A density map with its scale."""

from dataclasses import dataclass

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
