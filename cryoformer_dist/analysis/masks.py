"""Masks: where the molecule is, for judging maps or to train in; where it moves; and soft edges for both."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, distance_transform_edt, label

from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import weighted_shells
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.volume import Volume

SOLVENT_THRESHOLD = 0.05
"""Share of the highest density that still counts as molecule."""
MOVING_THRESHOLD = 0.2
"""Share of the largest standard deviation over the states that counts as motion."""
SIZE_TOLERANCE = 1e-3
"""Relative difference of two voxel sizes that is taken for rounding."""
# What masks are usually made at; finer detail is of no use to one, and noise.
_LOWPASS_ANGSTROM, _LOWPASS_VOXELS = 15.0, 3.0
# Beyond this share of the box a centred particle has no density; noise there stands out by less.
_BACKGROUND_FRACTION, _BACKGROUND_DEVIATIONS = 0.42, 4.8
_LEVELS = 512
# Of the largest piece, what a piece must have to be no dust.
_DUST = 0.02
_EDGE_VOXELS = 3.0
# Protein has 0.81 dalton per cubic angstrom.
_CUBIC_ANGSTROM_PER_DALTON = 1.21


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


@dataclass(frozen=True, slots=True)
class MaskChoice:
    """How a mask is made of a map; what is ``None`` is chosen from the map.

    Attributes
    ----------
    threshold
        Density of the smoothed map.
    lowpass_angstrom, dilation_angstrom, edge_angstrom
        Resolution of the smoothed map; how far the region is widened; width of the cosine edge beyond.
    """

    threshold: float | None = None
    lowpass_angstrom: float | None = None
    dilation_angstrom: float | None = None
    edge_angstrom: float | None = None

    def refuse_negative(self) -> None:
        """Raise `ConfigError` for a length that cannot be."""
        lengths = {"lowpass": self.lowpass_angstrom, "dilate": self.dilation_angstrom, "soft-edge": self.edge_angstrom}
        for name, length in lengths.items():
            if length is not None and length < 0:
                raise ConfigError(f"--{name} {length:g}: give a length in angstrom, 0 for none")


@dataclass(frozen=True, slots=True)
class MadeMask:
    """A mask, and how it came about.

    Attributes
    ----------
    mask
        Values from 0 to 1.
    threshold, lowpass_angstrom, dilation_angstrom, edge_angstrom
        As given or chosen.
    region_cubic_angstrom
        Above the threshold, before it was widened.
    pieces
        Of the region that were left out as dust.
    """

    mask: Volume
    threshold: float
    lowpass_angstrom: float
    dilation_angstrom: float
    edge_angstrom: float
    region_cubic_angstrom: float
    pieces: int

    @property
    def mass_kilodalton(self) -> float:
        """Of as much protein as fills the region."""
        return self.region_cubic_angstrom / _CUBIC_ANGSTROM_PER_DALTON / 1000

    @property
    def mask_cubic_angstrom(self) -> float:
        """Volume of the mask, its edge counted by its values."""
        return float(self.mask.voxels.sum()) * self.mask.voxel_size_angstrom**3

    def describe(self) -> list[str]:
        """Lines for a user."""
        box, voxel = self.mask.voxels.shape[-1], self.mask.voxel_size_angstrom
        dust = f"; {self.pieces} pieces of dust left out" if self.pieces else ""
        return [
            f"lowpass     {self.lowpass_angstrom:.4g} A",
            f"threshold   {self.threshold:.4g}{dust}",
            f"region      {self.region_cubic_angstrom:.4g} A^3: {self.mass_kilodalton:.4g} kDa, were it protein",
            f"widened     by {self.dilation_angstrom:.4g} A, soft edge of {self.edge_angstrom:.4g} A",
            f"mask        {self.mask_cubic_angstrom:.4g} A^3, {float(self.mask.voxels.mean()):.1%} of the box of {box} "
            f"voxels of {voxel:.4g} A",
        ]


def make_mask(volume: Volume, choice: MaskChoice) -> MadeMask:
    """Make a solvent mask of a map.

    Left to itself it smooths to 15 angstrom (at least three voxels), cuts half-way between solvent and the threshold
    that parts molecule and solvent best (Otsu's, inside the ball), yet above what the background shows; widens by half
    of the resolution, and adds an edge as wide, at least three voxels.

    Raises
    ------
    ConfigError
        If a length is negative, or nothing lies above the threshold.
    """
    choice.refuse_negative()
    voxel = volume.voxel_size_angstrom
    lowpass = _given(choice.lowpass_angstrom, max(_LOWPASS_ANGSTROM, _LOWPASS_VOXELS * voxel))
    smoothed = _smooth(volume, lowpass)
    threshold = _given(choice.threshold, choose_threshold(smoothed))
    region, pieces = _without_dust(smoothed > threshold)
    if not region.any():
        raise ConfigError(
            f"no density above {threshold:.4g}: the smoothed map reaches {smoothed.max():.4g}; give a lower "
            "--threshold, or see that protein is bright in the map"
        )
    dilation = _given(choice.dilation_angstrom, max(lowpass / 2, voxel))
    edge = _given(choice.edge_angstrom, max(lowpass / 2, _EDGE_VOXELS * voxel))
    # An edge of less than a voxel is none.
    soft = make_soft_mask(region, dilation / voxel, max(edge / voxel, 1e-3))
    mask = Volume(torch.from_numpy(soft), voxel)
    return MadeMask(mask, threshold, lowpass, dilation, edge, float(region.sum()) * voxel**3, pieces)


def choose_threshold(smoothed: Float[np.ndarray, "box box box"]) -> float:
    """Half-way from solvent to where Otsu's method parts the ball in two, but above the background's noise."""
    box = smoothed.shape[-1]
    inside = sphere(box).numpy()
    background = smoothed[inside & (radius_grid(box, 3).numpy() > _BACKGROUND_FRACTION * box)]
    solvent, noise = float(np.median(background)), _BACKGROUND_DEVIATIONS * float(background.std())
    return solvent + max((_part(smoothed[inside]) - solvent) / 2, noise)


def _part(values: Float[np.ndarray, " values"]) -> float:
    """Level that makes the variance between the values below and above it largest (Otsu, 1979)."""
    count, edges = np.histogram(values, _LEVELS)
    middle = (edges[:-1] + edges[1:]) / 2
    below, total = count.cumsum(), count.sum()
    moment = (count * middle).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below / total - moment) ** 2 / (below * (total - below))
    return float(edges[1 + int(np.nanargmax(between[:-1]))])


def _smooth(volume: Volume, lowpass_angstrom: float) -> Float[np.ndarray, "box box box"]:
    """The map without what is finer, by a cosine over a quarter of the frequency on either side."""
    box = volume.voxels.shape[-1]
    if lowpass_angstrom <= 2 * volume.voxel_size_angstrom:
        smoothed: np.ndarray = volume.voxels.numpy()
        return smoothed
    cut = box * volume.voxel_size_angstrom / lowpass_angstrom
    ramp = ((torch.arange(box // 2) / cut - 0.75) / 0.5).clamp(0, 1)
    filtered: np.ndarray = weighted_shells(volume.voxels, (1 + torch.cos(torch.pi * ramp)) / 2).numpy()
    return filtered


def _without_dust(region: Bool[np.ndarray, "box box box"]) -> tuple[Bool[np.ndarray, "box box box"], int]:
    """The region's larger pieces, and how many others it had."""
    pieces, count = label(region)
    if not count:
        return region, 0
    size = np.bincount(pieces.ravel())
    kept = size >= _DUST * size[1:].max()
    kept[0] = False
    large: np.ndarray = kept[pieces]
    return large, count - int(kept.sum())


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
