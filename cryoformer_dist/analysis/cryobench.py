"""The per-image FSC of CryoBench: the map of single particles against the map each was made from.

Definition as in CryoBench's own code (``metrics/fsc/cdrgn_per_img_fsc.py``, ``metrics/fsc/utils/volumes.py``): every
``N // 100``-th particle in the order of the particle file; shell ``i`` holds the radii in ``[i - 1, i)``; the curve is
1 at zero, clipped to [0, 1] and integrated over ``x = i / box`` by trapezoids. So a perfect score is
``(box / 2 - 1) / box``, 63/128 at box 128, not 1. These are not the shells of `physics.fourier`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.truth import Truth, nearest_reference
from cryoformer_dist.physics.grids import centred_axis, half_plane_weight

_SAMPLE = 100
_BLOCK = 10


@dataclass(frozen=True, slots=True)
class PerImageFSC:
    """Areas under per-image FSC curves.

    Attributes
    ----------
    mean, std, median, masked_mean, masked_std, masked_median
        Over the sampled particles; masked: the mask multiplied into both maps.
    per_conformation_mean, per_conformation_std, per_conformation_masked_mean, per_conformation_masked_std
        CryoBench's older form: over the conformations, of the map at the mean latent of each.
    perfect
        What identical maps score.
    consensus_mean, consensus_masked_mean
        The consensus map in place of ours, against the same truths.
    maps
        Particles sampled.
    """

    mean: float
    std: float
    median: float
    masked_mean: float
    masked_std: float
    masked_median: float
    per_conformation_mean: float
    per_conformation_std: float
    per_conformation_masked_mean: float
    per_conformation_masked_std: float
    perfect: float
    consensus_mean: float
    consensus_masked_mean: float
    still_mean: float
    still_masked_mean: float
    maps: int


def sampled_particles(count: int) -> Int[np.ndarray, " chosen"]:
    """CryoBench's choice of particles, ``np.arange(0, N, N // 100)``; all of them when there are fewer than 100."""
    return np.arange(0, count, max(count // _SAMPLE, 1))


def perfect_area(box: int) -> float:
    """Area under the curve of identical maps."""
    return (box / 2 - 1) / box


class ShellCorrelator:
    """FSC on CryoBench's shells ``0 .. box / 2 - 1``, for many maps of one box.

    Parameters
    ----------
    box
        Side of the maps.
    """

    def __init__(self, box: int) -> None:
        self._box = box
        axis = torch.fft.ifftshift(centred_axis(box))
        z, y, x = torch.meshgrid(axis, axis, torch.arange(box // 2 + 1.0), indexing="ij")
        # Shell i holds [i - 1, i): the zero frequency is shell 1, and shell 0 is 1 by definition.
        self._shell = (z.square() + y.square() + x.square()).sqrt().floor().long().ravel() + 1
        self._count = half_plane_weight(box).double().expand(box, box, -1).reshape(-1)

    def spectrum(self, voxels: Float[np.ndarray, "box box box"]) -> torch.Tensor:
        """Half of a map's transform, to be compared with others."""
        transform: torch.Tensor = torch.fft.rfftn(torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)))
        return transform.ravel()

    def curve(self, first: torch.Tensor, second: torch.Tensor) -> Float[np.ndarray, " shells"]:
        """Correlation per shell of two spectra; a shell without power counts as 0."""
        cross = self._sum((first * second.conj()).real)
        power = (self._sum(first.abs().square()) * self._sum(second.abs().square())).sqrt()
        curve = torch.where(power > 0, cross / power.clamp_min(1e-300), 0.0)
        curve[0] = 1.0
        return curve.numpy()

    def area(self, first: torch.Tensor, second: torch.Tensor) -> float:
        """Area under the clipped curve over ``shell / box``."""
        return float(np.trapezoid(self.curve(first, second).clip(0.0, 1.0), dx=1.0 / self._box))

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(self._shell, weights=values.double() * self._count)[: self._box // 2]


def per_image_fsc(
    decode: Callable[[np.ndarray], np.ndarray],
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " particles"],
    truth: Truth,
    consensus: Float[np.ndarray, "box box box"],
    mask: Float[np.ndarray, "box box box"],
    of_states: tuple[Int[np.ndarray, " seen"], Float[np.ndarray, "seen box box box"]],
) -> PerImageFSC:
    """Score the maps of single particles, no alignment.

    A continuous truth keeps a few reference maps at the centres of its bins: there the truth of a particle is the map
    of the nearest reference, and even a perfect run falls short of `perfect_area` by the width of the bins. CryoBench
    simulates from as many conformations as it has maps.

    Parameters
    ----------
    decode
        Latents to maps.
    latents, source_row
        One row per particle, in any order; ``source_row`` is the particle's row in its file.
    truth
        Of the simulation.
    consensus
        The floor.
    mask
        Multiplied into both maps for the masked scores.
    of_states
        Which conformations were seen, and the map at the mean latent of each (for a continuous truth: of the particles
        near the reference).
    """
    box = consensus.shape[-1]
    correlator = ShellCorrelator(box)
    chosen = np.argsort(source_row, kind="stable")[sampled_particles(len(source_row))]
    reference = nearest_reference(truth.state[source_row[chosen]], truth)
    seen, maps = of_states
    still = maps.mean(axis=0)
    rows, state_rows, floor_rows, still_rows = [], [], [], []
    for index in np.unique(np.concatenate([reference, seen])):
        true = _spectra(correlator, fit_box(truth.volumes[index], box), mask)
        members = chosen[reference == index]
        rows += [_areas(correlator, voxels, mask, true) for voxels in _decoded(decode, latents[members])]
        floor_rows += [_areas(correlator, consensus, mask, true)] * len(members)
        still_rows += [_areas(correlator, still, mask, true)] * len(members)
        state_rows += [_areas(correlator, maps[place], mask, true) for place in np.flatnonzero(seen == index)]
    plain, masked = np.array(rows).T
    state_plain, state_masked = np.array(state_rows).T
    floor_plain, floor_masked = np.array(floor_rows).T
    still_plain, still_masked = np.array(still_rows).T
    return PerImageFSC(
        mean=float(plain.mean()),
        std=float(plain.std()),
        median=float(np.median(plain)),
        masked_mean=float(masked.mean()),
        masked_std=float(masked.std()),
        masked_median=float(np.median(masked)),
        per_conformation_mean=float(state_plain.mean()),
        per_conformation_std=float(state_plain.std()),
        per_conformation_masked_mean=float(state_masked.mean()),
        per_conformation_masked_std=float(state_masked.std()),
        perfect=perfect_area(box),
        consensus_mean=float(floor_plain.mean()),
        consensus_masked_mean=float(floor_masked.mean()),
        still_mean=float(still_plain.mean()),
        still_masked_mean=float(still_masked.mean()),
        maps=len(chosen),
    )


def _spectra(correlator: ShellCorrelator, voxels: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrum of a map, and of what the mask leaves of it."""
    return correlator.spectrum(voxels), correlator.spectrum(voxels * mask)


def _areas(
    correlator: ShellCorrelator, voxels: np.ndarray, mask: np.ndarray, true: tuple[torch.Tensor, torch.Tensor]
) -> list[float]:
    """Areas under the curves of a map with the true one, plain and masked."""
    return [correlator.area(*pair) for pair in zip(_spectra(correlator, voxels, mask), true, strict=True)]


def _decoded(decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray) -> Iterator[np.ndarray]:
    """Maps one by one, decoded in blocks: a hundred at box 256 would not fit in memory."""
    for start in range(0, len(latents), _BLOCK):
        yield from decode(latents[start : start + _BLOCK])
