"""Whether the noise of stored images is what all assume: white, of unit variance, the same in all directions."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from cryoformer_dist.data.noise_background import Background, background_of
from cryoformer_dist.data.noise_measurement import summarise_noise
from cryoformer_dist.data.noise_spectrum import per_shell, plane_radius, windowed_power, without_nyquist_lines
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.store_attributes import StoreAttributes

# Beyond these, somebody should look.
_MUCH_ANISOTROPY, _HOT_DEVIATIONS, _MUCH_HOT, _MUCH_GRADIENT = 0.25, 10.0, 0.01, 0.5
_SIGNIFICANT = 4.0
# Weight of pixels that surely show no particle.
_OUTSIDE = 0.99


@dataclass(frozen=True, slots=True)
class StoredNoise:
    """What noise is in stored images.

    Attributes
    ----------
    images
        How many were looked at.
    power
        ``(shells,)``: of the first whole shells, in units of what white unit noise shows; from 1.
    anisotropy
        ``(shells,)``: by what part of it the power varies with direction, more than chance makes it.
    hot_images
        Share of the images with a pixel of their background more than ten deviations away.
    """

    images: int
    power: Float[NDArray[np.float64], " shells"]
    anisotropy: Float[NDArray[np.float64], " shells"]
    hot_images: float

    def problems(self) -> list[str]:
        """What is wrong with it, in sentences."""
        found = []
        if self.anisotropy.max() > _MUCH_ANISOTROPY:
            shell = int(self.anisotropy.argmax()) + 1
            found.append(
                f"the noise is not the same in all directions (power at {shell} cycles over the box varies by "
                f"{self.anisotropy.max():.0%}): look for streaks, and for lines of a detector's gain; it cannot be "
                "whitened by a radial spectrum"
            )
        if self.hot_images > _MUCH_HOT:
            found.append(
                f"{self.hot_images:.0%} of the images have pixels more than {_HOT_DEVIATIONS:g} deviations away: "
                "remove hot pixels and extract the particles again"
            )
        return found


def look_at_noise(store: ParticleStore, rows: Rows) -> StoredNoise:
    """Noise in the backgrounds of some images of a store.

    Parameters
    ----------
    store, rows
        Which.
    """
    box, group = store.box_size, store.particles().optics_group[rows]
    seen, wanted, hot = np.zeros((box, box)), np.zeros((box, box)), 0
    for number in np.unique(group).tolist():
        images = store.read_images(rows[group == number]).astype(np.float64)
        background = _background(store.attributes, number)
        outside = images[:, background.weight > _OUTSIDE]
        hot += int((np.abs(outside).max(axis=1) > _HOT_DEVIATIONS).sum())
        flat, _ = background.flatten(torch.from_numpy(images).float())
        seen += windowed_power(flat, background.weight, box) * len(images)
        wanted += background.seen(without_nyquist_lines(box), background.weight) * len(images)
    ratio = seen / wanted.clip(1e-300)
    return StoredNoise(
        images=len(rows),
        power=per_shell(ratio)[1 : box // 2],
        anisotropy=_anisotropy(ratio, len(rows)),
        hot_images=hot / len(rows),
    )


def _background(attributes: StoreAttributes, group: int) -> Background:
    """Background of an optics group's images as the conversion took it."""
    optics, diameter = attributes.optics[group], attributes.conversion.particle_diameter_angstrom
    radius = optics.source_box_size / 2 - 1
    if diameter is not None:
        radius = diameter / 2 / optics.source_pixel_size_angstrom
    return background_of(optics.source_box_size, radius, optics.box_size)


def _anisotropy(ratio: Float[NDArray[np.float64], "box box"], images: int) -> NDArray[np.float64]:
    """Relative standard deviation over the directions of each whole shell, that of the sample taken off."""
    box = len(ratio)
    shell, compared = np.rint(plane_radius(box)).astype(int), without_nyquist_lines(box) > 0
    found = np.zeros(box // 2 - 1)
    for number in range(1, box // 2):
        values = ratio[(shell == number) & compared]
        # Of each pair +-k both are there, and power scatters by as much as it is, over the root of the images.
        excess = (values / values.mean()).var() - 1 / images
        chance = _SIGNIFICANT / images * (4 / len(values)) ** 0.5
        found[number - 1] = max(excess, 0.0) ** 0.5 if excess > chance else 0.0
    return found


def describe_noise(attributes: StoreAttributes, noise: StoredNoise) -> list[str]:
    """What was measured at conversion and is left in the store, in sentences."""
    lines = [f"noise {summarise_noise(attributes.noise)}"]
    if max(group.gradient_share for group in attributes.noise) > _MUCH_GRADIENT:
        lines.append("backgrounds have gradients beyond their noise (taken off): look at the ice and the illumination")
    low, high = noise.power.min(), noise.power.max()
    return [*lines, f"noise as stored has a power of {low:.2f} to {high:.2f} in its shells (wanted 1)"]
