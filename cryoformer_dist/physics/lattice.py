"""The points of the box at which density is evaluated."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.physics.grids import lattice_points


def mask_of(flat_index: Tensor, box: int) -> Bool[Tensor, "box box box"]:
    """The mask whose voxels have these places in ``volume.ravel()``, on the CPU."""
    mask = torch.zeros(box**3, dtype=torch.bool)
    mask[flat_index.cpu().long()] = True
    return mask.reshape(box, box, box)


@dataclass(frozen=True, slots=True)
class Lattice:
    """Points at which density is evaluated.

    Attributes
    ----------
    points_pixels
        ``(points, 3)`` about the centre.
    flat_index
        ``(points,)``: place of each in ``volume.ravel()``.
    offsets_pixels
        ``(copies, 3)``: sub-voxel shifts of the whole lattice among which steps draw; without them an over-fine grid
        learns its lattice instead of the density.
    """

    points_pixels: Float[Tensor, "points 3"]
    flat_index: Tensor
    offsets_pixels: Float[Tensor, "copies 3"]

    @staticmethod
    def of(mask: Bool[Tensor, "box box box"], copies: int, seed: int) -> "Lattice":
        """Points of a mask, with ``copies`` seeded shifts (one copy is the unshifted lattice)."""
        flat_index = torch.nonzero(mask.ravel())[:, 0]
        offsets = torch.rand(copies, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
        if copies == 1:
            offsets = torch.zeros(1, 3)
        return Lattice(lattice_points(mask.shape[-1])[flat_index], flat_index, offsets)

    def coarsened(self, box: int, coarse_box: int) -> "Lattice":
        """Every place of a coarser lattice over the same field of view that lies nearest to one of these points.

        Points stay in pixels of the fine box; ``flat_index`` and the spacing of the shifts are the coarse lattice's.
        """
        spacing = box / coarse_box
        x, y, z = ((self.points_pixels / spacing).round().long() + coarse_box // 2).clamp(0, coarse_box - 1).unbind(-1)
        near = torch.zeros(coarse_box, coarse_box, coarse_box, dtype=torch.bool, device=self.points_pixels.device)
        near[z, y, x] = True
        flat_index = torch.nonzero(near.ravel())[:, 0]
        points = lattice_points(coarse_box).to(near.device)[flat_index] * spacing
        return Lattice(points, flat_index, self.offsets_pixels * spacing)

    def to(self, device: torch.device) -> "Lattice":
        """The same lattice on another device."""
        return Lattice(self.points_pixels.to(device), self.flat_index.to(device), self.offsets_pixels.to(device))
