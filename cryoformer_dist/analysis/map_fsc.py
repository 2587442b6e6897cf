"""Two maps against each other by one ruler: FSC without a mask, inside one, and corrected for what the mask adds.

The correction is Chen et al. (Ultramicroscopy 135, 2013): phases are randomised beyond the shell where the unmasked
curve falls below 0.8; what correlation is left under the mask there is the mask's own.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.analysis.masks import SIZE_TOLERANCE, read_mask
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import FSC_THRESHOLDS, FSCCurve, fourier_shell_correlation
from cryoformer_dist.physics.grids import centred_axis
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import replaced

# Sums of squares over a map of larger numbers leave the range of float32.
_LARGEST_DENSITY = 1e12
RANDOMISE_BELOW = 0.8
"""Unmasked FSC below which phases are randomised."""
_TRUSTED_SHELLS = 2


Resolutions = Mapping[str, Mapping[str, float]]
"""Resolution in angstrom by name of the curve and by threshold, ``0.5`` and ``0.143``."""


@dataclass(frozen=True, slots=True)
class MapComparison:
    """FSC of two maps.

    Attributes
    ----------
    curves
        ``unmasked`` and, with a mask, ``masked``, ``randomised`` (masked, after the phases were randomised) and
        ``corrected``.
    randomised_from
        First shell with random phases; None without a mask, or when the unmasked curve never falls below 0.8: then
        there is nothing to correct and ``corrected`` equals ``masked``.
    """

    curves: Mapping[str, FSCCurve]
    randomised_from: int | None = None

    def resolutions(self) -> Resolutions:
        """Resolution in angstrom of each curve but the randomised at 0.5 and 0.143."""
        return {
            name: {f"{threshold:g}": curve.resolution_angstrom(threshold) for threshold in FSC_THRESHOLDS}
            for name, curve in self.curves.items()
            if name != "randomised"
        }


@dataclass(frozen=True, slots=True)
class CutOut:
    """What must be known of maps that are zero outside a region: the region's edge is a mask of their own.

    Attributes
    ----------
    regions
        Of each map: 1 where it may have density, 0 elsewhere. Applied again after phases are randomised.
    randomised_from
        First shell whose phases are randomised, from maps that are not cut out; their own unmasked curve is too high to
        tell. ``None`` where that curve never falls below 0.8.
    """

    regions: tuple[Float[np.ndarray, "box box box"], Float[np.ndarray, "box box box"]]
    randomised_from: int | None


def compare_maps(
    first: Float[np.ndarray, "box box box"],
    second: Float[np.ndarray, "box box box"],
    voxel_size_angstrom: float,
    mask: Float[np.ndarray, "box box box"] | None = None,
    cut_out: CutOut | None = None,
    seed: int = 0,
) -> MapComparison:
    """FSC of two maps of one box.

    Parameters
    ----------
    first, second
        Maps ``[z, y, x]``.
    voxel_size_angstrom
        Of both.
    mask
        Multiplied into both; none: only the unmasked curve.
    cut_out
        Of maps that are zero outside a region of theirs.
    seed
        Of the random phases.
    """
    maps = [torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)) for voxels in (first, second)]
    unmasked = fourier_shell_correlation(maps[0], maps[1], voxel_size_angstrom)
    if mask is None:
        return MapComparison({"unmasked": unmasked})
    weight = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))
    masked = fourier_shell_correlation(maps[0], maps[1], voxel_size_angstrom, weight)
    start = _find_low_shell(unmasked) if cut_out is None else cut_out.randomised_from
    if start is None:
        return MapComparison({"unmasked": unmasked, "masked": masked, "corrected": masked})
    generator = torch.Generator().manual_seed(seed)
    noisy = [randomise_phases(voxels, start, generator) for voxels in maps]
    if cut_out is not None:
        noisy = [voxels * torch.from_numpy(region) for voxels, region in zip(noisy, cut_out.regions, strict=True)]
    randomised = fourier_shell_correlation(noisy[0], noisy[1], voxel_size_angstrom, weight)
    corrected = _correct(masked, randomised, start + _TRUSTED_SHELLS)
    curves = {"unmasked": unmasked, "masked": masked, "randomised": randomised, "corrected": corrected}
    return MapComparison(curves, start)


def _find_low_shell(unmasked: FSCCurve) -> int | None:
    """Where phases are randomised from: the first shell below 0.8, if there is any."""
    below = torch.nonzero(unmasked.correlation[1:] < RANDOMISE_BELOW)
    return int(below[0, 0]) + 1 if len(below) else None


def randomise_phases(
    voxels: Float[Tensor, "box box box"], first_shell: int, generator: torch.Generator
) -> Float[Tensor, "box box box"]:
    """Keep every amplitude, and replace the phases from a shell on by those of white noise."""
    box = voxels.shape[-1]
    transform = torch.fft.rfftn(voxels.double())
    noise = torch.fft.rfftn(torch.randn(voxels.shape, generator=generator, dtype=torch.float64))
    axis = torch.fft.ifftshift(centred_axis(box))
    z, y, x = torch.meshgrid(axis, axis, torch.arange(box // 2 + 1.0), indexing="ij")
    far = (z.square() + y.square() + x.square()).sqrt().round() >= first_shell
    random = transform.abs() * noise / noise.abs().clamp_min(1e-300)
    changed: Tensor = torch.fft.irfftn(torch.where(far, random, transform), s=voxels.shape)
    return changed.float()


def _correct(masked: FSCCurve, randomised: FSCCurve, start: int) -> FSCCurve:
    """FSC without the mask's share from shell ``start`` on, as measured before it."""
    total, noise = masked.correlation.double(), randomised.correlation.double()
    clean = torch.where(noise < 1 - 1e-9, (total - noise) / (1 - noise).clamp_min(1e-9), torch.zeros_like(total))
    correlation = torch.where(torch.arange(len(total)) >= start, clean, total)
    return FSCCurve(correlation.float(), masked.box_size, masked.pixel_size_angstrom)


def average_comparisons(comparisons: list[MapComparison]) -> MapComparison:
    """Mean of each curve over several pairs of maps; curves that not all pairs have are left out."""
    shared = [name for name in comparisons[0].curves if all(name in each.curves for each in comparisons)]
    curves = {}
    for name in shared:
        members = [each.curves[name] for each in comparisons]
        mean = torch.stack([member.correlation for member in members]).mean(0)
        curves[name] = FSCCurve(mean, members[0].box_size, members[0].pixel_size_angstrom)
    return MapComparison(curves)


def read_and_compare(first: Path, second: Path, mask: Path | None = None) -> tuple[MapComparison, Volume]:
    """Compare two map files of any program; returns the first map too, for its box and voxel size.

    Raises
    ------
    ConfigError
        If boxes or voxel sizes differ, or the mask does not fit: resample one on the grid of the other. Or a map has no
        structure: its correlation with anything is undefined.
    """
    maps = [read_volume(path) for path in (first, second)]
    boxes = [volume.voxels.shape[-1] for volume in maps]
    if boxes[0] != boxes[1]:
        raise ConfigError(
            f"{first} is {boxes[0]} voxels wide, {second} {boxes[1]}: resample one on the grid of the other"
        )
    if boxes[0] % 2:
        raise ConfigError(f"{first}: the box of {boxes[0]} voxels is odd; pad both maps to an even one")
    sizes = [volume.voxel_size_angstrom for volume in maps]
    if abs(sizes[0] - sizes[1]) > SIZE_TOLERANCE * sizes[0]:
        raise ConfigError(
            f"{first} has voxels of {sizes[0]:.4f} angstrom, {second} of {sizes[1]:.4f}: a shell would not be the same "
            "frequency in both; fix the header that is wrong, or resample"
        )
    for path, volume in zip((first, second), maps, strict=True):
        _refuse_incomparable(path, volume)
    weight = None if mask is None else read_mask(mask, boxes[0], boxes[0] * sizes[0])
    return compare_maps(maps[0].voxels.numpy(), maps[1].voxels.numpy(), sizes[0], weight), maps[0]


def _refuse_incomparable(path: Path, volume: Volume) -> None:
    """Refuse a map whose correlation with another is undefined, or beyond single precision."""
    least, most = volume.voxels.aminmax()
    if least == most:
        raise ConfigError(f"{path}: all voxels are {float(least):g}: there is nothing to compare; give another map")
    if max(abs(float(least)), abs(float(most))) > _LARGEST_DENSITY:
        raise ConfigError(
            f"{path}: voxels reach {max(float(most), -float(least)):.3g}, beyond what can be compared in single "
            "precision; scale the map"
        )


def describe(comparison: MapComparison, mask: str, what: str = "two maps") -> list[str]:
    """Lines for the terminal: what was compared under which mask, and every resolution beside the Nyquist limit."""
    plain = comparison.curves["unmasked"]
    size = plain.pixel_size_angstrom
    lines = [
        f"compared    {what}, box {plain.box_size}, {size:.4g} A per voxel, Nyquist {2 * size:.4g} A",
        f"mask        {mask}",
    ]
    for name, found in comparison.resolutions().items():
        at = ", ".join(f"{value:.2f} A at FSC {threshold}" for threshold, value in found.items())
        lines.append(f"{name:<11} {at}; area {comparison.curves[name].area:.4f}")
    if comparison.randomised_from is not None:
        shell = comparison.randomised_from
        lines.append(f"phases random from {plain.box_size * size / shell:.2f} A on (shell {shell})")
    return lines


def write_curves(path: Path, curves: Mapping[str, FSCCurve]) -> Path:
    """Write curves of one box as a table: shell, frequency, resolution, and one column per curve."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frequency = next(iter(curves.values())).frequency_per_angstrom.tolist()
    columns = [curve.correlation.tolist() for curve in curves.values()]
    with replaced(path) as beside, beside.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["shell", "frequency_per_angstrom", "resolution_angstrom", *curves])
        for shell, (at, *values) in enumerate(zip(frequency, *columns, strict=True)):
            resolution = f"{1 / at:.4f}" if at else "inf"
            writer.writerow([shell, f"{at:.6f}", resolution, *(f"{value:.6f}" for value in values)])
    return path
