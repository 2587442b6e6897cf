"""Masks for judging maps: where the molecule is, where it moves, and soft edges for both."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, distance_transform_edt

from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import read_volume

SOLVENT_THRESHOLD = 0.05
"""Share of the highest density that still counts as molecule."""
MOVING_THRESHOLD = 0.2
"""Share of the largest standard deviation over the states that counts as motion."""
SIZE_TOLERANCE = 1e-3
"""Relative difference of two voxel sizes that is taken for rounding."""


def make_soft_mask(
    region: Bool[np.ndarray, "box box box"], dilation_voxels: float, edge_voxels: float
) -> Float[np.ndarray, "box box box"]:
    """One within ``dilation_voxels`` of a region, a cosine down to zero over the next ``edge_voxels``.

    Raises
    ------
    ConfigError
        If the region is empty.
    """
    if not region.any():
        raise ConfigError("the mask would be empty: give one that covers density (--mask)")
    beyond = distance_transform_edt(~region) - dilation_voxels
    ramp = np.clip(beyond / edge_voxels, 0.0, 1.0)
    mask: np.ndarray = (0.5 + 0.5 * np.cos(np.pi * ramp)).astype(np.float32)
    return mask


def make_solvent_mask(
    maps: Float[np.ndarray, "maps box box box"], threshold: float = SOLVENT_THRESHOLD
) -> Float[np.ndarray, "box box box"]:
    """Soft mask round everything that any of the maps shows above a share of their highest density.

    Widened by 1/32 of the box (at least one voxel) with a cosine edge of 1/16 (at least three), as masks for FSC
    usually are: 4 and 8 voxels at box 128.

    Raises
    ------
    ConfigError
        If no map has positive density.
    """
    if maps.max() <= 0:
        raise ConfigError(
            "the maps show no positive density to make a mask from: train longer, or give a mask (--mask)"
        )
    box = maps.shape[-1]
    return make_soft_mask((maps > threshold * maps.max()).any(axis=0), max(1.0, box / 32), max(3.0, box / 16))


def find_moving_voxels(references: Float[np.ndarray, "states box box box"]) -> Bool[np.ndarray, "box box box"]:
    """Voxels whose standard deviation over the states exceeds `MOVING_THRESHOLD` of its maximum, widened by one.

    A voxel filled in one state of ten deviates by 0.3 of its density where the most possible is 0.5: well inside.
    Ripples of band-limited maps deviate by a few hundredths and stay outside. Nothing moves: nothing is inside.
    """
    deviation = references.std(axis=0, dtype=np.float64)
    top = float(deviation.max())
    if top <= 1e-6 * float(np.abs(references).max()):
        return np.zeros(deviation.shape, dtype=bool)
    widened: np.ndarray = binary_dilation(deviation > MOVING_THRESHOLD * top, np.ones((3, 3, 3), dtype=bool))
    return widened


def soften(inside: Bool[np.ndarray, "box box box"]) -> Float[np.ndarray, "box box box"]:
    """Cosine edge of 1/16 of the box (at least three voxels) round a region."""
    return make_soft_mask(inside, 0.0, max(3.0, inside.shape[-1] / 16))


def read_mask(path: Path, box: int, box_angstrom: float) -> Float[np.ndarray, "box box box"]:
    """Read a mask and bring it to a box over the same field of view, values between 0 and 1.

    Raises
    ------
    ConfigError
        If it spans another field of view, or is empty: resample it on the maps it is meant for.
    StoreError
        If it is smaller than the box.
    """
    mask = read_volume(path)
    length = mask.voxel_size_angstrom * mask.voxels.shape[-1]
    if abs(length - box_angstrom) > SIZE_TOLERANCE * box_angstrom:
        raise ConfigError(
            f"{path}: the mask spans {length:.2f} angstrom, the maps {box_angstrom:.2f}: resample it on the maps, or "
            "fix the voxel size in its header"
        )
    voxels: np.ndarray = np.clip(fit_box(mask.voxels.numpy(), box), 0.0, 1.0)
    if not (voxels > 0.5).any():
        raise ConfigError(f"{path}: the mask is empty (no voxel above 0.5): give one that covers density")
    return voxels
