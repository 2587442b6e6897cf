"""Homogeneous reconstruction of a run's particles; its half maps say how much of any map is signal."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.data.batch import BatchMaker, ImageBlock, images_as_read
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import fourier_shell_correlation
from cryoformer_dist.progress import Progress
from cryoformer_dist.ranks import add_over_ranks, take_share

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
    """

    voxels: Float[Tensor, "box box box"]
    halves: tuple[Float[Tensor, "box box box"], Float[Tensor, "box box box"]]

    def shell_weight(
        self, mask: Bool[Tensor, "box box box"], voxel_size_angstrom: float, share: float = 1.0
    ) -> Float[Tensor, " shells"]:
        """Signal's share of a map's power on shells ``0 .. box // 2 - 1``.

        The Wiener filter that half maps ask for: ``2 FSC / (1 + FSC)`` of all the data.

        Parameters
        ----------
        mask, voxel_size_angstrom
            Where the half maps are compared, and their scale.
        share
            Of the particles that a map is made from, those that this consensus was: the signal-to-noise ratio of a
            shell scales with their number.
        """
        first, second = self.halves
        fsc = fourier_shell_correlation(first, second, voxel_size_angstrom, mask.to(first)).correlation
        # No shell is silenced: a map is to be judged there too. Equal half maps leave no noise to compare with.
        fsc = fsc.clamp(_LEAST_CORRELATION, 1 - 1e-6)
        signal_to_noise = 2 * fsc / (1 - fsc) / share
        weight = signal_to_noise / (1 + signal_to_noise)
        # The mean is not compared with data.
        weight[0] = 1
        return weight


def back_project(
    store: ParticleStore,
    rows: Rows,
    progress: Progress | None = None,
    device: torch.device | None = None,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> Consensus:
    """Homogeneous reconstruction of the given particles at the store's poses, by all ranks together.

    Each rank inserts its share; the sums add up. Every rank returns the same maps, but for the order of summation, on
    its device.

    Parameters
    ----------
    store
        Particle store.
    rows
        Store rows to use, the same on every rank.
    progress
        Called with images done and in all, of this rank's share.
    device
        Where images are inserted and maps are solved; the CPU when ``None``.
    weight
        How many images each row counts for; one when ``None``.
    """
    device = device or torch.device("cpu")
    share = np.arange(len(rows))[take_share(len(rows))]
    halves = [FourierAccumulator(store.box_size, store.pixel_size_angstrom, device) for _ in range(2)]
    done = 0
    for batch in BatchMaker(store.particles(), device).batches(_read_blocks(store, rows[share]), images_as_read):
        for half, accumulator in enumerate(halves):
            # Every other particle, whoever inserts it; a rank may have none of a half.
            every_other = slice((half - int(share[done])) % 2, None, 2)
            part = batch[every_other]
            if len(part):
                counts = None if weight is None else _pick(weight, share[done : done + len(batch)][every_other], device)
                accumulator.add(part.images, part.pose, part.ctf, part.pixel_size_angstrom, counts)
        done += len(batch)
        if progress is not None:
            progress(done, len(share))
    for accumulator in halves:
        add_over_ranks(accumulator.sums)
    first, second = halves
    maps = first.solve(wiener=_WIENER), second.solve(wiener=_WIENER)
    first.sums += second.sums
    return Consensus(first.solve(wiener=_WIENER), maps)


def _pick(weight: np.ndarray, places: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(weight[places].astype(np.float32)).to(device)


def _read_blocks(store: ParticleStore, rows: Rows) -> Iterator[ImageBlock]:
    """Images of so many rows at a time."""
    for start in range(0, len(rows), _BLOCK):
        mine = rows[start : start + _BLOCK]
        yield ImageBlock(store.read_images(mine), mine, np.zeros_like(mine))
