"""The picture of `check`: what the particles and their back-projection look like."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from cryoformer_dist.figures.fsc import plot_curves
from cryoformer_dist.figures.style import ACCENT, STYLE
from cryoformer_dist.physics.fourier import FSCCurve, crop_images
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import replaced

_LOW_PASS_ANGSTROM = 20.0
_NAMED_GROUPS = 4
# A longer line would run out of the picture.
_LINE_LENGTH = 150
# Inches: the width of all, the heights of its parts.
_WIDTH, _MAPS_HEIGHT, _CURVES_HEIGHT, _IMAGES_HEIGHT, _LINE_HEIGHT = 13.0, 2.8, 3.0, 3.4, 0.21
_GOOD, _LOOK = "#1a7f4b", "#b3382c"


@dataclass(frozen=True, slots=True)
class CheckPicture:
    """What is drawn.

    Attributes
    ----------
    images
        `(up to 8, box, box)` stored images.
    findings
        Sentences, written above the pictures.
    healthy
        Whether none of them is a problem.
    volume, fsc
        The back-projection; absent when there are no poses.
    noise
        `(2, shells)` of each optics group: frequency in 1/angstrom, and noise power before whitening.
    """

    images: NDArray[np.float32]
    image_pixel_size_angstrom: float
    findings: Sequence[str]
    healthy: bool = True
    volume: Volume | None = None
    fsc: FSCCurve | None = None
    noise: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def draw_check(path: Path, picture: CheckPicture) -> None:
    """Draw what was found, slices and projections, curves, and images raw and low-passed, as a PNG file."""
    lines = [line for finding in picture.findings for line in textwrap.wrap(f"- {finding}", _LINE_LENGTH)]
    has_maps = picture.volume is not None and picture.fsc is not None
    heights = [0.4 + _LINE_HEIGHT * len(lines), *([_MAPS_HEIGHT, _CURVES_HEIGHT] if has_maps else []), _IMAGES_HEIGHT]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=100, layout="constrained")
        parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        _write_findings(next(parts), lines, picture.healthy)
        if picture.volume is not None and picture.fsc is not None:
            _draw_maps(next(parts), picture.volume)
            fsc, noise = next(parts).subplots(1, 2)
            plot_curves(fsc, {"half maps": picture.fsc})
            fsc.set_title("Half-maps of the sample against each other")
            _draw_noise(noise, picture.noise)
        _draw_images(next(parts), picture)
        with replaced(path) as beside:
            figure.savefig(beside, format="png", facecolor="white")


def _write_findings(part: SubFigure, lines: Sequence[str], healthy: bool) -> None:
    """The verdict, and what it rests on."""
    words = part.subplots()
    words.set_axis_off()
    words.set_title(
        "Ready to train, if the map looks like your molecule" if healthy else "Look before training",
        fontsize=14,
        color=_GOOD if healthy else _LOOK,
    )
    words.text(0.0, 1.0, "\n".join(lines), va="top", fontsize=9, linespacing=1.5)


def _draw_maps(part: SubFigure, volume: Volume) -> None:
    """Central slices above, projections below, along z, y and x."""
    voxels = volume.voxels.numpy()
    middle = voxels.shape[0] // 2
    part.suptitle("Back-projection of the sample", x=0.003, ha="left", fontsize=10.5, fontweight="bold")
    # Rows of each picture run along the first axis named in the title, columns along the second.
    titles = ("y, x (along z)", "z, x (along y)", "z, y (along x)")
    panels = part.subplots(1, 6)
    for axis, title in enumerate(titles):
        _show(panels[axis], voxels.take(middle, axis), f"slice {title}", "bicubic", "normal")
        _show(panels[3 + axis], voxels.sum(axis), f"projection {title}", "bicubic", "normal")


def _draw_noise(axes: Axes, noise: Mapping[str, NDArray[np.float64]]) -> None:
    """Noise power by frequency, one line per optics group; names while they fit."""
    for name, (frequency, power) in noise.items():
        axes.plot(frequency, power, label=name, color=ACCENT if len(noise) == 1 else None)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    # White noise is to look flat.
    axes.set_ylim(min(low, 0.5), max(high, 2.0))
    axes.set_title("Noise of the images, before it was made white")
    axes.set_xlabel("frequency (1/Å)")
    axes.set_ylabel("noise power, mean 1")
    if 0 < len(noise) <= _NAMED_GROUPS:
        axes.legend()


def _draw_images(part: SubFigure, picture: CheckPicture) -> None:
    """Draw stored images, and the same without their high frequencies."""
    box = picture.images.shape[-1]
    field_angstrom = box * picture.image_pixel_size_angstrom
    # Coarse pixels need a coarser filter for it to be seen.
    wanted = max(_LOW_PASS_ANGSTROM, 4 * picture.image_pixel_size_angstrom)
    low_box = min(box, max(8, 2 * round(field_angstrom / wanted)))
    low = crop_images(torch.from_numpy(picture.images), low_box).numpy()
    limit = 2 * field_angstrom / low_box
    panels = part.subplots(2, len(picture.images), squeeze=False)
    for column, (image, smooth) in enumerate(zip(picture.images, low, strict=True)):
        _show(panels[0, column], image, "Images as stored" if column == 0 else "")
        _show(panels[1, column], smooth, f"The same to {limit:.0f} Å" if column == 0 else "", "bicubic")


def _show(
    axes: Axes, image: NDArray[np.float32], title: str, interpolation: str = "nearest", weight: str = "bold"
) -> None:
    """One picture, bright is dense, grey range from the 0.5th to the 99.8th percentile."""
    low, high = np.percentile(image, [0.5, 99.8])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation=interpolation)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontweight=weight)
