"""The picture of `check`: what the particles and their back-projection look like."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from cryoformer_dist.figures.fsc import plot_curves
from cryoformer_dist.figures.style import PLAIN
from cryoformer_dist.physics.fourier import FSCCurve, crop_images
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import replaced

_LOW_PASS_ANGSTROM = 20.0
_COLUMNS = 8
_NAMED_GROUPS = 4
# A longer line would push the pictures together.
_LINE_LENGTH = 150


@dataclass(frozen=True, slots=True)
class CheckPicture:
    """What is drawn.

    Attributes
    ----------
    images
        `(up to 8, box, box)` stored images.
    findings
        Sentences, written below the pictures.
    volume, fsc
        The back-projection; absent when there are no poses.
    noise
        `(2, shells)` of each optics group: frequency in 1/angstrom, and noise power before whitening.
    """

    images: NDArray[np.float32]
    image_pixel_size_angstrom: float
    findings: Sequence[str]
    volume: Volume | None = None
    fsc: FSCCurve | None = None
    noise: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def draw_check(path: Path, picture: CheckPicture) -> None:
    """Draw central slices, projections, the FSC, and images raw and low-passed, as a PNG file."""
    lines = [line for finding in picture.findings for line in textwrap.wrap(f"- {finding}", _LINE_LENGTH)]
    text_height = 0.25 * len(lines) + 0.3
    map_rows = 0 if picture.volume is None else 2
    heights = [3.0] * map_rows + [1.6, 1.6, text_height]
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(13.0, sum(heights) + 0.25 * len(heights)), dpi=100, layout="constrained")
        grid = figure.add_gridspec(len(heights), _COLUMNS, height_ratios=heights)
        if picture.volume is not None and picture.fsc is not None:
            _draw_maps(figure, grid, picture.volume)
            plot_curves(figure.add_subplot(grid[0, 6:]), {"half maps": picture.fsc})
            _draw_noise(figure.add_subplot(grid[1, 6:]), picture.noise)
        _draw_images(figure, grid, map_rows, picture)
        words = figure.add_subplot(grid[-1, :])
        words.set_axis_off()
        words.text(0.0, 1.0, "\n".join(lines), va="top", fontsize=9)
        with replaced(path) as beside:
            figure.savefig(beside, format="png")


def _draw_maps(figure: Figure, grid: GridSpec, volume: Volume) -> None:
    """Central slices above, projections below, along z, y and x."""
    voxels = volume.voxels.numpy()
    middle = voxels.shape[0] // 2
    # Rows of each picture run along the first axis named in the title, columns along the second.
    titles = ("y, x (along z)", "z, x (along y)", "z, y (along x)")
    for axis, title in enumerate(titles):
        _show(figure.add_subplot(grid[0, 2 * axis : 2 * axis + 2]), voxels.take(middle, axis), f"slice {title}")
        _show(figure.add_subplot(grid[1, 2 * axis : 2 * axis + 2]), voxels.sum(axis), f"projection {title}")


def _draw_noise(axes: Axes, noise: Mapping[str, NDArray[np.float64]]) -> None:
    """Noise power by frequency, one line per optics group; names while they fit."""
    for name, (frequency, power) in noise.items():
        axes.plot(frequency, power, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("frequency (1/Å)")
    axes.set_ylabel("noise power, mean 1")
    if 0 < len(noise) <= _NAMED_GROUPS:
        axes.legend(frameon=False)


def _draw_images(figure: Figure, grid: GridSpec, row: int, picture: CheckPicture) -> None:
    """Draw stored images, and the same without their high frequencies."""
    box = picture.images.shape[-1]
    field_angstrom = box * picture.image_pixel_size_angstrom
    # Coarse pixels need a coarser filter for it to be seen.
    wanted = max(_LOW_PASS_ANGSTROM, 4 * picture.image_pixel_size_angstrom)
    low_box = min(box, max(8, 2 * round(field_angstrom / wanted)))
    low = crop_images(torch.from_numpy(picture.images), low_box).numpy()
    limit = 2 * field_angstrom / low_box
    for column, (image, smooth) in enumerate(zip(picture.images, low, strict=True)):
        _show(figure.add_subplot(grid[row, column]), image, "as stored" if column == 0 else "")
        _show(
            figure.add_subplot(grid[row + 1, column]),
            smooth,
            f"to {limit:.0f} A" if column == 0 else "",
            "bicubic",
        )


def _show(axes: Axes, image: NDArray[np.float32], title: str, interpolation: str = "nearest") -> None:
    """One picture, bright is dense, grey range from the 0.5th to the 99.8th percentile."""
    low, high = np.percentile(image, [0.5, 99.8])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation=interpolation)
    axes.set_axis_off()
    if title:
        axes.set_title(title)
