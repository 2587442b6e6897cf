"""The masks that a user gives: read once, brought to the store's box, and kept in the run directory."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.volume import Volume, interpolate
from cryoformer_dist.runs.layout import FOCUS_MASK, GIVEN_MASK

INSIDE = 0.5
"""What a mask exceeds where it allows density."""
# Relative difference of voxel sizes that is taken for rounding.
_SIZE_TOLERANCE = 1e-3
# Soft edges made by filters overshoot a little; a map of density does so by far.
_OVERSHOOT = 0.1
# Of a mask, what may lie outside the ball in which density can be.
_CUT = 0.1


def read_masks(config: RunConfig, store: ParticleStore) -> dict[str, Float[Tensor, "box box box"]]:
    """The masks that a configuration names, at the store's box, by what their copies are called.

    Raises
    ------
    ConfigError
        As `bring_mask`; or if the two have nothing in common.
    """
    training = config.training
    given = {GIVEN_MASK: ("training.mask", training.mask), FOCUS_MASK: ("training.focus_mask", training.focus_mask)}
    found = {
        name: bring_mask(f"{key}: {path}", Path(path), store.box_size, store.pixel_size_angstrom)
        for name, (key, path) in given.items()
        if path is not None
    }
    if len(found) == len(given):
        refuse_focus_without_density(found[FOCUS_MASK], found[GIVEN_MASK] > INSIDE)
    return found


def write_masks(run: Path, masks: Mapping[str, Float[Tensor, "box box box"]], voxel_size_angstrom: float) -> None:
    """Keep what `read_masks` has read in a run directory: from then on the run has no need of the user's files."""
    for name, voxels in masks.items():
        write_volume(run / name, Volume(voxels, voxel_size_angstrom), ["cryoformer-dist mask as given"])


def bring_mask(what: str, path: Path, box: int, voxel_size_angstrom: float) -> Float[Tensor, "box box box"]:
    """A mask at a map's voxels, by trilinear interpolation about the common centre; values between 0 and 1.

    Parameters
    ----------
    what
        Key and file, for errors.
    path
        Of the mask; its box and voxel size may be others.
    box, voxel_size_angstrom
        Of the map.

    Raises
    ------
    ConfigError
        If there is no such file; it holds density, and no mask; its header contradicts the map; nothing of it, or only
        part of it, lies where density can be.
    """
    if not path.is_file():
        raise ConfigError(f"{what}: no such file on this machine; a mask is a map, .mrc")
    mask = read_volume(path)
    lowest, highest = float(mask.voxels.min()), float(mask.voxels.max())
    if lowest < -_OVERSHOOT or highest > 1 + _OVERSHOOT:
        raise ConfigError(
            f"{what}: values from {lowest:.3g} to {highest:.3g}: this is a map, a mask lies between 0 and 1; make one "
            f"with `cryoformer-dist mask {path} -o mask.mrc`"
        )
    ratio = voxel_size_angstrom / mask.voxel_size_angstrom
    if mask.voxels.shape[-1] == box and abs(ratio - 1) > _SIZE_TOLERANCE:
        raise ConfigError(
            f"{what}: has the {box} voxels a side of the particles, of {mask.voxel_size_angstrom:.4g} angstrom where "
            f"theirs have {voxel_size_angstrom:.4g}: write the right voxel size into its header"
        )
    voxels = _resample(mask.voxels.clamp(0, 1), box, ratio)
    _refuse_misplaced(what, mask, voxels, voxel_size_angstrom)
    return voxels


def load_given_mask(run: Path) -> Bool[Tensor, "box box box"] | None:
    """Where the user allows density in a run, inside the ball; ``None`` where that was not said."""
    path = run / GIVEN_MASK
    if not path.is_file():
        return None
    voxels = read_volume(path).voxels
    return (voxels > INSIDE) & sphere(voxels.shape[-1])


def load_focus(run: Path) -> Float[Tensor, "box box box"] | None:
    """Where conformations of a run may differ; ``None`` where that is everywhere."""
    path = run / FOCUS_MASK
    return read_volume(path).voxels if path.is_file() else None


def refuse_focus_without_density(focus: Tensor | None, mask: Bool[Tensor, "box box box"]) -> None:
    """Raise `ConfigError` if there is no density where conformations may differ."""
    if focus is not None and not (mask & (focus > INSIDE)).any():
        raise ConfigError(
            "training.focus_mask: lies where no density is allowed: look at it beside the consensus map, and give a "
            "larger one or a training.mask that covers it"
        )


def mask_digest(path: str | None) -> str | None:
    """Checksum of a mask's file."""
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _resample(voxels: Tensor, box: int, ratio: float) -> Float[Tensor, "box box box"]:
    """A mask on another lattice about the same centre, whose voxels are ``ratio`` times as large."""
    if voxels.shape[-1] == box:
        return voxels
    return interpolate(voxels, lattice_points(box) * ratio).reshape(box, box, box)


def _refuse_misplaced(what: str, mask: Volume, voxels: Tensor, voxel_size_angstrom: float) -> None:
    kept = float((voxels * sphere(voxels.shape[-1])).sum()) * voxel_size_angstrom**3
    whole = float(mask.voxels.clamp(0, 1).sum()) * mask.voxel_size_angstrom**3
    if not ((voxels > INSIDE) & sphere(voxels.shape[-1])).any():
        raise ConfigError(f"{what}: no voxel above {INSIDE:g} where density can be: give a mask that covers some")
    if kept < (1 - _CUT) * whole:
        raise ConfigError(
            f"{what}: {1 - kept / whole:.0%} of it lies outside the ball inscribed in the particles' box of "
            f"{voxels.shape[-1] * voxel_size_angstrom:.4g} angstrom; crop or shift it, or look at its voxel size of "
            f"{mask.voxel_size_angstrom:.4g} angstrom"
        )
