"""How a source image becomes a stored one: normalised on its box, contrast set, Fourier-cropped, scaled."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.contrast import Contrast, contrast_from_z_score, contrast_z_score
from cryoformer_dist.errors import ParticleFormatError, SmallSampleWarning
from cryoformer_dist.io.mrc import open_stack
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.physics.fourier import crop_images
from cryoformer_dist.physics.grids import radius_grid

ContrastChoice = Literal["auto", "light", "dark"]

_BLOCK_BYTES = 16 * 2**20
_SCALE_SAMPLE = 1000
_CONTRAST_SAMPLE = 2000
_CONTRAST_BOX = 48


@dataclass(frozen=True, slots=True)
class Normalisation:
    """One recipe for all images of a store.

    Attributes
    ----------
    box_size
        Side of the stored images in pixels.
    particle_diameter_angstrom
        Background is what lies outside; the circle that fills the box, less a pixel, when ``None``.
    sign
        -1 for dark-on-light sources.
    scale
        By side of the source images, since larger ones lose more noise to cropping: factor that makes the background
        standard deviation 1 again. 1 where none is given.
    """

    box_size: int
    particle_diameter_angstrom: float | None = None
    sign: int = 1
    scale: Mapping[int, float] = field(default_factory=dict)

    def background(self, box: int, pixel_size_angstrom: float) -> Bool[Tensor, "box box"]:
        """Pixels of an image of the given box that hold no particle."""
        radius = box / 2 - 1
        if self.particle_diameter_angstrom is not None:
            radius = self.particle_diameter_angstrom / 2 / pixel_size_angstrom
        return radius_grid(box, 2) > radius


def settle_box(table: ParticleTable, asked: int | None) -> int:
    """Choose the box of the stored images.

    Parameters
    ----------
    asked
        Wanted side in pixels; that of the source when ``None``.

    Raises
    ------
    ParticleFormatError
        If it is odd, tiny, larger than a source image, or not asked for where the source has several.
    """
    boxes = sorted({table.optics[group].box_size for group in np.unique(table.optics_group)})
    box = boxes[0] if asked is None else asked
    if asked is None and len(boxes) > 1:
        raise ParticleFormatError(
            f"{table.source}: images of {', '.join(map(str, boxes))} pixels: "
            f"give --box with an even number up to {boxes[0]} to crop them to one box"
        )
    if box % 2 or box < 8:
        raise ParticleFormatError(
            f"{table.source}: a box of {box} pixels cannot be stored, boxes are even and at least 8: "
            f"give --box {max(8, box - box % 2)}"
        )
    if box > boxes[0]:
        raise ParticleFormatError(
            f"{table.source}: box {box} asked for, the images have {boxes[0]} pixels; images are cropped, "
            f"never enlarged: give --box with an even number up to {boxes[0]}"
        )
    return box


def check_diameter(table: ParticleTable, diameter_angstrom: float | None) -> None:
    """See that the particle leaves a background.

    Raises
    ------
    ParticleFormatError
        If its diameter is not positive or fills the box.
    """
    if diameter_angstrom is None:
        return
    field = min(group.box_size * group.pixel_size_angstrom for group in table.optics)
    if not 0 < diameter_angstrom < field:
        raise ParticleFormatError(
            f"{table.source}: particle diameter {diameter_angstrom:g} A, the box is {field:g} A wide and "
            "must leave background around the particle: give a smaller --particle-diameter"
        )


def normalise_images(
    table: ParticleTable, rows: NDArray[np.int64], normalisation: Normalisation
) -> Iterator[tuple[NDArray[np.int64], Float[Tensor, "block box box"]]]:
    """Read and normalise images block by block, each stack opened once, 16 MiB of source pixels at a time.

    Parameters
    ----------
    rows
        `(k,)` table rows.

    Yields
    ------
    positions, images
        Places in ``rows`` and the float32 images that belong there.

    Raises
    ------
    ParticleFormatError
        If an image has pixels that are not finite or a constant background: file and image number are named.
    """
    groups = np.stack([table.stack[rows], table.optics_group[rows]], axis=1)
    # Ascending image numbers read a stack from front to back.
    by_place = np.lexsort((table.stack_index[rows], groups[:, 1], groups[:, 0]))
    breaks = np.flatnonzero(np.any(np.diff(groups[by_place], axis=0) != 0, axis=1)) + 1
    opened, stack = -1, None
    for members in np.split(by_place, breaks):
        if not members.size:
            continue
        number, group = (int(value) for value in groups[members[0]])
        optics = table.optics[group]
        if stack is None or number != opened:
            opened, stack = number, open_stack(table.stack_paths[number])
        background = normalisation.background(optics.box_size, optics.pixel_size_angstrom)
        factor = normalisation.sign * normalisation.scale.get(optics.box_size, 1.0)
        per_block = max(1, _BLOCK_BYTES // (4 * optics.box_size**2))
        for start in range(0, len(members), per_block):
            block = members[start : start + per_block]
            pixels = torch.from_numpy(np.ascontiguousarray(stack.read(table.stack_index[rows[block]]), np.float32))
            normalised, bad = _normalise_block(pixels, background)
            if bad is not None:
                _refuse_image(table, int(rows[block[bad]]), pixels[bad])
            yield block, crop_images(normalised, normalisation.box_size) * factor


def measure_normalisation(
    table: ParticleTable, normalisation: Normalisation, contrast: ContrastChoice, seed: int
) -> tuple[Normalisation, Contrast]:
    """Find the contrast and the scale of each source box, from seeded samples of at most 2,000 and 1,000 images.

    Warns
    -----
    SmallSampleWarning
        If the contrast cannot be measured (too few particles, or no poses); light-on-dark is taken.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(table))
    boxes = np.array([group.box_size for group in table.optics])[table.optics_group[order]]
    scale = {
        box: _measure_scale(table, order[boxes == box][:_SCALE_SAMPLE], normalisation)
        for box in np.unique(boxes).tolist()
    }
    found = _decide_contrast(table.select(order[:_CONTRAST_SAMPLE]), normalisation, contrast)
    return replace(normalisation, sign=found.sign, scale=scale), found


def stored_pixel_size_angstrom(table: ParticleTable, box_size: int) -> list[float]:
    """Pixel size of each optics group after cropping, which keeps the field of view."""
    return [group.pixel_size_angstrom * group.box_size / box_size for group in table.optics]


def image_location(table: ParticleTable, row: int) -> str:
    """Name the file, number (from 1) and source row of an image."""
    stack, number = table.stack_paths[int(table.stack[row])], int(table.stack_index[row]) + 1
    return f"{stack}: image {number:06d} (row {int(table.source_row[row]) + 1} of {table.source})"


def _measure_scale(table: ParticleTable, rows: NDArray[np.int64], normalisation: Normalisation) -> float:
    """One over the standard deviation that the background of normalised images has, before they are scaled."""
    pixel_sizes = stored_pixel_size_angstrom(table, normalisation.box_size)
    variance = np.empty(len(rows))
    for positions, images in normalise_images(table, rows, normalisation):
        # A block holds one optics group.
        pixel_size = pixel_sizes[table.optics_group[rows[positions[0]]]]
        background = normalisation.background(normalisation.box_size, pixel_size)
        variance[positions] = images[:, background].double().var(dim=1, correction=0).numpy()
    return float(1 / np.sqrt(variance.mean()))


def _decide_contrast(sample: ParticleTable, normalisation: Normalisation, contrast: ContrastChoice) -> Contrast:
    """Contrast as given, as measured, or as assumed with a warning."""
    if contrast != "auto":
        return Contrast(1 if contrast == "light" else -1, 0.0, "given")
    if sample.rotation is None:
        _warn_uncertain(f"{sample.source}: no poses, so the contrast cannot be measured")
        return Contrast(1, 0.0, "assumed")
    box = min(normalisation.box_size, _CONTRAST_BOX)
    images = torch.empty(len(sample), box, box)
    for positions, block in normalise_images(sample, np.arange(len(sample)), normalisation):
        images[positions] = crop_images(block, box)
    pixel_sizes = np.array(stored_pixel_size_angstrom(sample, box), dtype=np.float32)
    pixel_size = torch.from_numpy(pixel_sizes[sample.optics_group])
    found = contrast_from_z_score(contrast_z_score(images, sample.pose(), sample.ctf_params(), pixel_size))
    if found.how == "uncertain":
        _warn_uncertain(
            f"{sample.source}: the contrast of {len(sample)} sampled particles is uncertain "
            f"({found.z_score:+.1f} standard errors; 3 are wanted)"
        )
    return found


def _warn_uncertain(finding: str) -> None:
    """Say that light-on-dark was taken without proof."""
    remedy = "taken as light-on-dark (protein bright); look at the images and give --contrast light or dark"
    warnings.warn(f"{finding}: {remedy}", SmallSampleWarning, stacklevel=4)


def _normalise_block(
    images: Float[Tensor, "block box box"], background: Bool[Tensor, "box box"]
) -> tuple[Float[Tensor, "block box box"], int | None]:
    """Background mean 0 and standard deviation 1, and the first image for which that is impossible."""
    outside = images[:, background].double()
    mean, deviation = outside.mean(dim=1), outside.std(dim=1, correction=0)
    # Rounding leaves a relative 1e-7 of a constant background.
    flat = deviation <= 1e-6 * mean.abs()
    bad = torch.nonzero(flat | ~torch.isfinite(images).all(dim=2).all(dim=1))
    normalised = (images - mean.float()[:, None, None]) / deviation.float()[:, None, None]
    return normalised, int(bad[0, 0]) if len(bad) else None


def _refuse_image(table: ParticleTable, row: int, pixels: Tensor) -> NoReturn:
    """Name the file and the number of an image that cannot be normalised."""
    place = image_location(table, row)
    if not bool(torch.isfinite(pixels).all()):
        raise ParticleFormatError(f"{place} has pixels that are not finite: leave it out or extract it again")
    raise ParticleFormatError(
        f"{place} has a constant background, so its noise cannot be measured: leave it out, or extract the "
        "particles unmasked; if only the corners are blank, give --particle-diameter"
    )
