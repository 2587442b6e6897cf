"""Maps against reference maps: correlations, difference maps and Fourier shell correlation."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Bool, Float

from cryoformer_dist.errors import StoreError
from cryoformer_dist.physics.fourier import FSCCurve, crop_volume, fourier_shell_correlation
from cryoformer_dist.runs.scores import MapScores, RegionScores

# A relative change below this is rounding.
_LEAST = 1e-6
STILL = 0.02
"""Maps that vary by less, relative to their mean, are said to stand still."""


def score_maps(
    volumes: Float[np.ndarray, "states box box box"], references: Float[np.ndarray, "states box box box"]
) -> MapScores:
    """Compare a map per state with the true one of that state.

    Maps that do not move score difference correlation 0, amplitude 0 and gap 0; the truth scores 1 in both.
    """
    ours, truth = centre(volumes), centre(references)
    scores = _score(ours, truth, map_variation(volumes) > _LEAST, *compare_own_and_distant(volumes, references, 1.0))
    own_state = [cosine(volume, reference) for volume, reference in zip(ours, truth, strict=True)]
    return MapScores(**asdict(scores), map_correlation=float(np.mean(own_state)))


def score_region(
    volumes: Float[np.ndarray, "states box box box"],
    references: Float[np.ndarray, "states box box box"],
    inside: Bool[np.ndarray, "box box box"],
    mask: Float[np.ndarray, "box box box"],
) -> RegionScores:
    """As `score_maps`, where the still rest of the molecule can neither help nor dilute.

    Difference maps are compared ``inside``, FSC under the soft ``mask``.
    """
    ours, truth = centre(volumes)[:, inside], centre(references)[:, inside]
    curves = compare_own_and_distant(volumes, references, 1.0, mask)
    return _score(ours, truth, map_variation(volumes) > _LEAST, *curves)


def _score(
    ours: np.ndarray, truth: np.ndarray, moves: bool, own: Sequence[FSCCurve], distant: Sequence[FSCCurve]
) -> RegionScores:
    """Scores of centred maps, or of their voxels in a region."""
    ours_change, truth_change = ours - ours.mean(axis=0), truth - truth.mean(axis=0)
    size, true_size = _measure_size(ours_change, ours), _measure_size(truth_change, truth)
    area_own, area_distant = (float(np.mean([curve.area for curve in curves])) for curves in (own, distant))
    return RegionScores(
        difference_map_correlation=cosine(ours_change, truth_change) if moves else 0.0,
        difference_map_amplitude=size / true_size if moves and true_size > _LEAST else 0.0,
        fsc_area_own=area_own,
        fsc_area_distant=area_distant,
        auc_gap=area_own - area_distant,
    )


def map_variation(volumes: Float[np.ndarray, "states box box box"]) -> float:
    """Root-mean-square change of the maps about their mean, relative to that of the mean map."""
    wide = centre(volumes)
    mean = wide.mean(axis=0)
    scale = float(np.square(mean).mean())
    return float(np.sqrt(np.square(wide - mean).mean() / scale)) if scale > 0 else 0.0


def centre(volumes: Float[np.ndarray, "*maps box box box"]) -> Float[np.ndarray, "*maps box box box"]:
    """Subtract each map's own mean, which the forward model does not see; double precision."""
    wide: np.ndarray = volumes.astype(np.float64)
    result: np.ndarray = wide - wide.mean(axis=(-3, -2, -1), keepdims=True)
    return result


def cosine(first: Float[np.ndarray, "*shape"], second: Float[np.ndarray, "*shape"]) -> float:
    """Cosine of the angle between two arrays taken as vectors; 0 when either is empty of signal."""
    scale = np.sqrt(np.square(first).sum() * np.square(second).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0


def compare_own_and_distant(
    volumes: Float[np.ndarray, "states box box box"],
    references: Float[np.ndarray, "states box box box"],
    voxel_size_angstrom: float,
    mask: Float[np.ndarray, "box box box"] | None = None,
) -> tuple[tuple[FSCCurve, ...], tuple[FSCCurve, ...]]:
    """FSC of each map against its own reference, and against the one half the range of states away.

    Under a mask each map is first freed of its solvent level: a step at the mask's edge would correlate with any other.
    """
    count = len(references)
    if mask is not None:
        volumes, references = _mask(volumes, mask), _mask(references, mask)
    maps = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in volumes]
    truth = [torch.from_numpy(np.ascontiguousarray(t, dtype=np.float32)) for t in references]
    curve = fourier_shell_correlation
    own = tuple(curve(maps[i], truth[i], voxel_size_angstrom) for i in range(count))
    far = [(i + count // 2) % count for i in range(count)]
    return own, tuple(curve(maps[i], truth[far[i]], voxel_size_angstrom) for i in range(count))


def _mask(volumes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each map less its solvent level, times the mask; the level is the median, as solvent fills most of a box."""
    level = np.median(volumes, axis=(-3, -2, -1), keepdims=True)
    masked: np.ndarray = (volumes - level) * mask
    return masked


def _measure_size(changes: np.ndarray, maps: np.ndarray) -> float:
    """Root-mean-square of changes, relative to that of the mean map."""
    return float(np.sqrt(np.square(changes).mean() / max(float(np.square(maps.mean(axis=0)).mean()), 1e-30)))


def fit_box(voxels: Float[np.ndarray, "old old old"], box: int) -> Float[np.ndarray, "box box box"]:
    """Band-limit a map to the box of another over the same field of view; refuses to invent detail."""
    old = voxels.shape[-1]
    if old < box:
        raise StoreError(f"cannot compare a map of box {old} with maps of box {box}: give the larger one")
    return crop_volume(torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)), box).numpy()
