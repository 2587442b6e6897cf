"""Homogeneous reconstruction of a run's particles; its half maps say how much of any map is signal."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import fourier_shell_correlation
from cryoformer_dist.progress import Progress

_BLOCK = 256
_WIENER = 0.1
# Of half maps, where there is no signal.
_LEAST_CORRELATION = 0.01


@dataclass(frozen=True, slots=True)
class Consensus:
    """Homogeneous reconstruction of some particles.

    Attributes
    ----------
    voxels
        From all of them.
    halves
        From every other one, and from the others.
    share
        Of the particles asked for, those that it was made from.
    """

    voxels: Float[Tensor, "box box box"]
    halves: tuple[Float[Tensor, "box box box"], Float[Tensor, "box box box"]]
    share: float

    def shell_weight(self, mask: Bool[Tensor, "box box box"], voxel_size_angstrom: float) -> Float[Tensor, " shells"]:
        """Signal's share of a map's power on shells ``0 .. box // 2 - 1``, were it made from all the particles.

        The Wiener filter that half maps ask for: ``2 FSC / (1 + FSC)`` of all the data. The FSC of a sample gives
        its signal-to-noise ratio, which scales with the number of particles.
        """
        first, second = self.halves
        fsc = fourier_shell_correlation(first, second, voxel_size_angstrom, mask.float()).correlation
        # No shell is silenced: a map is to be judged there too. Equal half maps leave no noise to compare with.
        fsc = fsc.clamp(_LEAST_CORRELATION, 1 - 1e-6)
        signal_to_noise = 2 * fsc / (1 - fsc) / self.share
        weight = signal_to_noise / (1 + signal_to_noise)
        # The mean is not compared with data.
        weight[0] = 1
        return weight


def back_project(
    store: ParticleStore,
    rows: NDArray[np.int64],
    sample: int = 10_000,
    progress: Progress | None = None,
) -> Consensus:
    """Homogeneous reconstruction of the given particles at the store's poses.

    Parameters
    ----------
    store
        Particle store.
    rows
        Store rows to use.
    sample
        So many or up to twice as many, evenly taken: store rows are in random order.
    progress
        Called with images done and in all.
    """
    particles, asked = store.particles(), len(rows)
    rows = rows[:: stride_for(asked, sample)]
    first, second = (FourierAccumulator(store.box_size, store.pixel_size_angstrom) for _ in range(2))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        images = torch.from_numpy(store.read_images(block).astype(np.float32))
        pixel = torch.from_numpy(particles.pixel_size_angstrom[block])
        pose, ctf = particles.pose(block), particles.ctf(block)
        for half, accumulator in enumerate((first, second)):
            mine = torch.arange(half, len(block), 2)
            # A last block of one particle has none for the second half.
            if len(mine):
                accumulator.add(images[mine], pose[mine], ctf[mine], pixel[mine])
        if progress is not None:
            progress(start + len(block), len(rows))
    halves = first.solve(wiener=_WIENER), second.solve(wiener=_WIENER)
    first.sums += second.sums
    return Consensus(first.solve(wiener=_WIENER), halves, len(rows) / asked)
