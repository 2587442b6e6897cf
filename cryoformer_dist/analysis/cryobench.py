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
from cryoformer_dist.analysis.truth import Truth, find_nearest_reference
from cryoformer_dist.physics.grids import centred_axis, half_plane_weight
from cryoformer_dist.runs.scores import MaskSource, PerImageScores

_SAMPLE = 100
_BLOCK = 10


def sample_particles(count: int) -> Int[np.ndarray, " chosen"]:
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
    mask
        Of the masked curves.
    """

    def __init__(self, box: int, mask: Float[np.ndarray, "box box box"]) -> None:
        self._box, self._mask = box, mask
        axis = torch.fft.ifftshift(centred_axis(box))
        z, y, x = torch.meshgrid(axis, axis, torch.arange(box // 2 + 1.0), indexing="ij")
        # Shell i holds [i - 1, i): the zero frequency is shell 1, and shell 0 is 1 by definition.
        self._shell = (z.square() + y.square() + x.square()).sqrt().floor().long().ravel() + 1
        self._count = half_plane_weight(box).double().expand(box, box, -1).reshape(-1)

    def transform(self, voxels: Float[np.ndarray, "box box box"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Half of the Fourier transform of a map, and of what the mask leaves of it."""
        plain, masked = (
            torch.fft.rfftn(torch.from_numpy(np.ascontiguousarray(each, dtype=np.float32))).ravel()
            for each in (voxels, voxels * self._mask)
        )
        return plain, masked

    def correlate(self, first: torch.Tensor, second: torch.Tensor) -> Float[np.ndarray, " shells"]:
        """Correlation per shell of two transforms; a shell without power counts as 0."""
        cross = self._sum((first * second.conj()).real)
        power = (self._sum(first.abs().square()) * self._sum(second.abs().square())).sqrt()
        curve = torch.where(power > 0, cross / power.clamp_min(1e-300), 0.0)
        curve[0] = 1.0
        return curve.numpy()

    def measure_areas(
        self, voxels: Float[np.ndarray, "box box box"], true: tuple[torch.Tensor, torch.Tensor]
    ) -> list[float]:
        """Areas under the clipped curves of a map with a true one over ``shell / box``, plain and masked."""
        curves = [self.correlate(*pair) for pair in zip(self.transform(voxels), true, strict=True)]
        return [float(np.trapezoid(curve.clip(0.0, 1.0), dx=1.0 / self._box)) for curve in curves]

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(self._shell, weights=values.double() * self._count)[: self._box // 2]


@dataclass(frozen=True, slots=True)
class _Areas:
    """Areas under curves, ``(2, maps)`` each: plain and masked.

    Attributes
    ----------
    ours
        Maps of single particles.
    states
        Maps at the mean latents of the conformations.
    consensus, still
        The consensus map, and the mean of our maps, in place of each of ours.
    """

    ours: np.ndarray
    states: np.ndarray
    consensus: np.ndarray
    still: np.ndarray


def score_images(
    decode: Callable[[np.ndarray], np.ndarray],
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " particles"],
    truth: Truth,
    consensus: Float[np.ndarray, "box box box"],
    mask: Float[np.ndarray, "box box box"],
    mask_source: MaskSource,
    of_states: tuple[Int[np.ndarray, " seen"], Float[np.ndarray, "seen box box box"]],
) -> PerImageScores:
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
    mask, mask_source
        Multiplied into both maps for the masked scores, and where it comes from.
    of_states
        Which conformations were seen, and the map at the mean latent of each (for a continuous truth: of the particles
        near the reference).
    """
    chosen = np.argsort(source_row, kind="stable")[sample_particles(len(source_row))]
    reference = find_nearest_reference(truth.state[source_row[chosen]], truth)
    correlator = ShellCorrelator(consensus.shape[-1], mask)
    areas = _measure_areas(correlator, decode, latents[chosen], reference, truth, consensus, of_states)
    (plain, masked), (state_plain, state_masked) = areas.ours, areas.states
    return PerImageScores(
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
        perfect=perfect_area(consensus.shape[-1]),
        consensus_mean=float(areas.consensus[0].mean()),
        consensus_masked_mean=float(areas.consensus[1].mean()),
        still_mean=float(areas.still[0].mean()),
        still_masked_mean=float(areas.still[1].mean()),
        maps=len(chosen),
        mask=mask_source,
    )


def _measure_areas(
    correlator: ShellCorrelator,
    decode: Callable[[np.ndarray], np.ndarray],
    latents: np.ndarray,
    reference: np.ndarray,
    truth: Truth,
    consensus: np.ndarray,
    of_states: tuple[np.ndarray, np.ndarray],
) -> _Areas:
    """Compare everything with the truths, one truth after the other."""
    seen, maps = of_states
    mean = maps.mean(axis=0)
    ours, states, floor, still = [], [], [], []
    for index in np.unique(np.concatenate([reference, seen])):
        true = correlator.transform(fit_box(truth.volumes[index], consensus.shape[-1]))
        members = np.flatnonzero(reference == index)
        ours += [correlator.measure_areas(voxels, true) for voxels in _decode_in_blocks(decode, latents[members])]
        floor += [correlator.measure_areas(consensus, true)] * len(members)
        still += [correlator.measure_areas(mean, true)] * len(members)
        states += [correlator.measure_areas(maps[row], true) for row in np.flatnonzero(seen == index)]
    return _Areas(*(np.array(rows).T for rows in (ours, states, floor, still)))


def _decode_in_blocks(decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray) -> Iterator[np.ndarray]:
    """Maps one by one, decoded in blocks: a hundred at box 256 would not fit in memory."""
    for start in range(0, len(latents), _BLOCK):
        yield from decode(latents[start : start + _BLOCK])
