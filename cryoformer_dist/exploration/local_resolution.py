"""How finely each place of a map is resolved, by its half maps; and maps filtered to that, place by place.

Half maps are cut into bands of frequencies, and correlated within each under a Gaussian window that is moved from voxel
to voxel. Window and band are as wide at all frequencies, in wavelengths and as a share of the frequency, so each
correlation is of as many independent numbers: some 110, of which noise alone reaches 0.143 one time in fifteen. Hence
the resolution is read at 0.5, as in other programs' local resolution. The window's full width at half its height is 2.4
wavelengths: the map of resolutions is no sharper than that. A wider one would make less noise, but what lies beside a
poorly resolved part would pass for a part of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.analysis.masks import SIZE_TOLERANCE, MaskChoice, make_mask, read_mask
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.series import read_series
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import FSC_REFERENCE
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.volume import Volume, interpolate
from cryoformer_dist.progress import Progress

# Standard deviations: of the window in wavelengths, of a band as a share of its frequency.
_WINDOW, _BAND = 1.0, 0.08
_COARSEST_SHELL, _STEP = 4.0, 1.08
# A filter falls from 1 to 0 over so many shells.
_EDGE_SHELLS = 2.0


@dataclass(frozen=True, slots=True)
class ResolutionRange:
    """Resolutions within a region, in angstrom: that of its best, its middle and its worst places.

    Attributes
    ----------
    finest, median, coarsest
        5th, 50th and 95th percentile of the region's voxels.
    """

    finest: float
    median: float
    coarsest: float

    def __str__(self) -> str:
        return f"{self.median:.1f} A in the middle, {self.finest:.1f} to {self.coarsest:.1f} A over nine tenths"


def measure_local_resolution(
    first: Float[Tensor, "box box box"],
    second: Float[Tensor, "box box box"],
    voxel_size_angstrom: float,
    threshold: float = FSC_REFERENCE,
    progress: Progress | None = None,
) -> Float[Tensor, "box box box"]:
    """Resolution of every voxel in angstrom: where the correlation about it first falls below a threshold.

    Parameters
    ----------
    first, second
        Half maps, without a mask: its edge would correlate.
    voxel_size_angstrom
        Of both.
    threshold
        Of the correlation.
    progress
        Called with bands done and in all.

    Notes
    -----
    From four cycles over the box to Nyquist. Bands are not narrow: of signal five times as strong as the noise that
    ends at once, the tail of a band makes some 6 % too fine a resolution.
    """
    box = first.shape[-1]
    transforms, radius = [torch.fft.rfftn(half) for half in (first, second)], _shell_radius(box)
    shells = _choose_shells(box)
    falls_at = torch.full_like(first, shells[0])
    alive, before = torch.ones_like(first, dtype=torch.bool), torch.ones_like(first)
    for number, shell in enumerate(shells):
        band = torch.exp(-((radius - shell) / max(_BAND * shell, 0.5)).square() / 2)
        one, other = (torch.fft.irfftn(each * band, s=first.shape) for each in transforms)
        here = _correlate(one, other, shell)
        below = alive & (here < threshold)
        # On a straight line between this band and the one before.
        share = ((before - threshold) / (before - here).clamp_min(1e-6)).clamp(0, 1)
        coarser = shells[max(number - 1, 0)]
        falls_at = torch.where(below, coarser * (shell / coarser) ** share, falls_at)
        alive, before = alive & ~below, here
        if progress is not None:
            progress(number + 1, len(shells))
    falls_at[alive] = box / 2
    return box * voxel_size_angstrom / falls_at


def _choose_shells(box: int) -> list[float]:
    """Middles of the bands, each a twelfth finer than the one before."""
    last = box / 2 - 1
    count = max(2, math.ceil(math.log(last / _COARSEST_SHELL) / math.log(_STEP)))
    return [_COARSEST_SHELL * (last / _COARSEST_SHELL) ** (number / (count - 1)) for number in range(count)]


def _correlate(
    first: Float[Tensor, "box box box"], second: Float[Tensor, "box box box"], shell: float
) -> Float[Tensor, "box box box"]:
    """Correlation of two bands about every voxel."""
    box = first.shape[-1]
    width = _WINDOW * box / shell
    window = torch.exp(-2 * (math.pi * width * _shell_radius(box) / box).square())

    def smooth(values: Tensor) -> Tensor:
        smoothed: Tensor = torch.fft.irfftn(torch.fft.rfftn(values) * window, s=values.shape)
        return smoothed

    # One root after the other: of faint maps the product of both would be no number.
    norm = smooth(first.square()).clamp_min(0).sqrt() * smooth(second.square()).clamp_min(0).sqrt()
    return smooth(first * second) / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _shell_radius(box: int) -> Float[Tensor, "box box half"]:
    """Cycles over the box of each frequency of ``rfftn``."""
    full, half = torch.fft.fftfreq(box) * box, torch.fft.rfftfreq(box) * box
    z, y, x = torch.meshgrid(full, full, half, indexing="ij")
    return (z.square() + y.square() + x.square()).sqrt()


def summarise_resolution(
    resolution_angstrom: Float[Tensor, "box box box"], region: Float[Tensor, "box box box"]
) -> ResolutionRange:
    """The range within a mask, where it exceeds one half."""
    inside = resolution_angstrom[region > 0.5].double()
    finest, median, coarsest = torch.quantile(inside[_thin(len(inside))], torch.tensor([0.05, 0.5, 0.95]).double())
    return ResolutionRange(float(finest), float(median), float(coarsest))


def _thin(count: int) -> slice:
    # torch.quantile takes at most 2^24 numbers.
    return slice(None, None, -(-count // 2**22))


def filter_locally(
    voxels: Float[Tensor, "box box box"],
    resolution_angstrom: Float[Tensor, "box box box"],
    voxel_size_angstrom: float,
) -> Float[Tensor, "box box box"]:
    """A map of which every place shows what is resolved there and nothing finer.

    A low-pass filter whose edge differs from voxel to voxel: a mixture of filtered maps, a twelfth of the frequency
    apart.

    Parameters
    ----------
    voxels
        Map.
    resolution_angstrom
        Of every voxel.
    voxel_size_angstrom
        Of both.
    """
    box = voxels.shape[-1]
    position = (box * voxel_size_angstrom / resolution_angstrom).clamp(1, box / 2).log()
    transform, radius, step = torch.fft.rfftn(voxels), _shell_radius(box), math.log(_STEP)
    filtered = torch.zeros_like(voxels)
    for level in _choose_levels(float(position.min()), float(position.max()), step):
        passed = ((math.exp(level) + _EDGE_SHELLS / 2 - radius) / _EDGE_SHELLS).clamp(0, 1)
        lowpass = (1 - torch.cos(math.pi * passed)) / 2
        share = (1 - (position - level).abs() / step).clamp_min(0)
        filtered += share * torch.fft.irfftn(transform * lowpass, s=voxels.shape)
    return filtered


def _choose_levels(lowest: float, highest: float, step: float) -> Iterator[float]:
    for number in range(math.ceil((highest - lowest) / step - 1e-6) + 1):
        yield lowest + number * step


def measure_files(
    first: Path, second: Path, mask: Path | None, progress: Progress | None = None
) -> tuple[Volume, ResolutionRange]:
    """Local resolution of two half maps of any program, and its range within a mask, or one made from them.

    Raises
    ------
    ExplorationError, ConfigError
        If the maps are on different grids, or the mask is on another.
    """
    halves, size = read_series([first, second])
    one, other = (torch.from_numpy(half) for half in halves)
    box, mean = len(one), Volume((one + other) / 2, size)
    region = make_mask(mean, MaskChoice()).mask.voxels if mask is None else read_mask(mask, box, box * size)
    measured = measure_local_resolution(one, other, size, progress=progress)
    return Volume(measured, size), summarise_resolution(measured, torch.as_tensor(region))


def read_resolution(path: Path, box: int, box_angstrom: float) -> Float[Tensor, "box box box"]:
    """Read a map of resolutions in angstrom, of this program or another, on the lattice of maps of a box.

    Where it says 0, nothing was measured: there the coarsest resolution holds.

    Raises
    ------
    ExplorationError
        If it spans another field of view, or its values are no resolutions.
    """
    given = read_volume(path)
    voxels, length = given.voxels, given.voxel_size_angstrom * given.voxels.shape[-1]
    if abs(length - box_angstrom) > SIZE_TOLERANCE * box_angstrom:
        raise ExplorationError(
            f"{path}: spans {length:.2f} angstrom, the maps {box_angstrom:.2f}; give one of the same field of view"
        )
    if not torch.isfinite(voxels).all() or float(voxels.min()) < 0 or float(voxels.max()) <= 0:
        raise ExplorationError(
            f"{path}: its values, {float(voxels.min()):.3g} to {float(voxels.max()):.3g}, are no resolutions in "
            "angstrom; make one with `cryoformer-dist local-resolution HALF1 HALF2`"
        )
    voxels, given_box = torch.where(voxels > 0, voxels, voxels.max()), len(voxels)
    if given_box == box:
        return voxels
    # No finer resolution arises from what lies beyond the outermost voxels.
    points = (lattice_points(box) * (given_box / box)).clamp(max=given_box - 1 - given_box // 2)
    return interpolate(voxels, points).reshape(box, box, box)
