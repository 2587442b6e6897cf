"""Where there may be density: a consensus map from the data, and the points near it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import crop_volume
from cryoformer_dist.physics.grids import centred_axis, lattice_points, radius_grid

_BLOCK = 256
# Background statistics come from a shell that a centred particle does not reach.
_SHELL_FRACTION = 0.42
_BACKGROUND_DEVIATIONS = 5.0
# The mask is drawn at this scale, whatever the sampling: a back-projection tells protein from solvent no more finely.
_MASK_VOXEL_ANGSTROM = 6.0
_SMALLEST_MASK_BOX = 24


def consensus_map(
    store: ParticleStore,
    rows: NDArray[np.int64],
    sample: int = 10_000,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "box box box"]:
    """Homogeneous reconstruction of the given particles at the store's poses.

    Parameters
    ----------
    store
        Particle store.
    rows
        Store rows to use.
    sample
        At most this many, evenly taken: store rows are in random order.
    progress
        Called with images done and in all.
    """
    particles = store.particles()
    rows = rows[:: max(1, len(rows) // sample)]
    accumulator = FourierAccumulator(store.box_size, store.pixel_size_angstrom)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        accumulator.add(
            torch.from_numpy(store.read_images(block).astype(np.float32)),
            particles.pose(block),
            particles.ctf(block),
            torch.from_numpy(particles.pixel_size_angstrom[block]),
        )
        if progress is not None:
            progress(start + len(block), len(rows))
    return accumulator.solve(wiener=0.1)


def sphere(box: int) -> Bool[Tensor, "box box box"]:
    """The ball inside the box, one voxel clear of its faces."""
    return radius_grid(box, 3) <= box / 2 - 1


def occupied(consensus: Float[Tensor, "box box box"], voxel_size_angstrom: float) -> Bool[Tensor, "box box box"]:
    """Voxels near density: smoothed consensus above the background's mean by five deviations, widened by one voxel.

    Decided on a grid of about 6 angstrom. A part that moves is smeared in the consensus but still well above the
    background: on the built-in molecule at SNR 0.1, whose arm swings through 100 degrees, no voxel above 2 % of the
    maximum of any state is missed, in 12 % of the box.
    """
    box = consensus.shape[-1]
    wanted = 2 * round(box * voxel_size_angstrom / _MASK_VOXEL_ANGSTROM / 2)
    coarse = min(box, max(_SMALLEST_MASK_BOX, wanted))
    smooth = torch.nn.functional.avg_pool3d(crop_volume(consensus, coarse)[None, None], 3, 1, 1)[0, 0]
    outer = smooth[(radius_grid(coarse, 3) > _SHELL_FRACTION * coarse) & sphere(coarse)]
    dense = (smooth > outer.mean() + _BACKGROUND_DEVIATIONS * outer.std()) & sphere(coarse)
    wide = torch.nn.functional.max_pool3d(dense[None, None].float(), 3, 1, 1)[0, 0] > 0
    nearest = (centred_axis(box) * coarse / box).round().long().clamp(-coarse // 2, coarse // 2 - 1) + coarse // 2
    return wide[nearest][:, nearest][:, :, nearest] & sphere(box)


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
