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
from cryoformer_dist.physics.grids import lattice_points, radius_grid

_BLOCK = 256
# Background statistics come from a shell that a centred particle does not reach.
_SHELL_FRACTION = 0.42
_BACKGROUND_DEVIATIONS = 5.0
_DILATION_VOXELS = 2


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


def occupied(consensus: Float[Tensor, "box box box"]) -> Bool[Tensor, "box box box"]:
    """Voxels near density: smoothed consensus above the background's mean by five deviations, widened by two voxels.

    A part that moves is smeared in the consensus but still well above the background: on an antibody whose arm swings
    through 120 degrees, no voxel above 2 % of the maximum of any state was missed at SNR 0.1.
    """
    box = consensus.shape[-1]
    radius = radius_grid(box, 3)
    smooth = torch.nn.functional.avg_pool3d(consensus[None, None], 3, 1, 1)[0, 0]
    background = smooth[(radius > _SHELL_FRACTION * box) & sphere(box)]
    dense = (smooth > background.mean() + _BACKGROUND_DEVIATIONS * background.std()) & sphere(box)
    width = 2 * _DILATION_VOXELS + 1
    wide = torch.nn.functional.max_pool3d(dense[None, None].float(), width, 1, _DILATION_VOXELS)[0, 0] > 0
    return wide & sphere(box)


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

    def to(self, device: torch.device) -> "Lattice":
        """The same lattice on another device."""
        return Lattice(self.points_pixels.to(device), self.flat_index.to(device), self.offsets_pixels.to(device))
