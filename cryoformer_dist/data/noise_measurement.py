"""What the noise of an optics group's images is: spectrum, strength, gradients; measured on a sample at conversion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.noise_background import FIELD, Background
from cryoformer_dist.data.noise_spectrum import Spectrum, fit_spectrum, mean_over_plane, settle_power, windowed_power
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid

_ROUNDS = 2
# What the sample's own scatter may feign, in its standard errors.
_SIGNIFICANT = 3.0
# An image whose deviation is so many standard errors off is another kind of image: it is believed.
_OUTLYING = 6.0
# Mean square in a background, in units of the image's own deviation, beyond which there is more than noise.
_STRANGE = 4.0
_NORMAL_BY_MEDIAN = 1.4826
_EMPTY = 0.5
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class GroupNoise:
    """Noise of one optics group.

    Attributes
    ----------
    power
        At 0, 1, 2, ... cycles over the stored box, after cropping and before whitening; of mean 1.
    error
        Relative standard error of each.
    white
        Whether it was taken as white, since it could not be told from that.
    deviation
        Of the source's noise: root of its mean power after cropping, in the source's units.
    background_deviation
        What an image's background shows of that: of its pixels, after whitening.
    deviation_share
        How much of an image's own deviation is believed, of what sets it apart from its group's: 0 where they scatter
        as those of equal images would.
    gradient_share
        How much of an image's own gradient is taken off: 0 where noise explains them.
    images
        How many were looked at.
    """

    power: tuple[float, ...]
    error: tuple[float, ...]
    white: bool
    deviation: float
    background_deviation: float
    deviation_share: float
    gradient_share: float
    images: int

    def __str__(self) -> str:
        departure = max(abs(power - 1) for power in self.power)
        if self.white:
            return f"white (shells depart by up to {departure:.0%}, as they would by chance)"
        low, high = self.power[1], min(self.power)
        return f"coloured: power {low:.3g} times the mean in the lowest shell, {high:.3g} at the least; whitened"

    @property
    def gain(self) -> Float[Tensor, " shells"]:
        """What whitens: one over the root of the power, at the same frequencies."""
        power = torch.tensor(self.power)
        return torch.ones_like(power) if self.white else power.rsqrt()

    def image_deviation(
        self, whitened: Float[Tensor, "images box box"], background: Background
    ) -> Float[Tensor, " images"]:
        """Deviation by which each image is to be divided, of whitened images in source units."""
        excess = log_deviations(whitened, background) - np.log(self.background_deviation)
        believed = believed_excess(excess, self.deviation_share, background)
        return torch.from_numpy(self.deviation * np.exp(believed)).float()


def summarise_noise(groups: Sequence[GroupNoise]) -> str:
    """Noise of all optics groups in one line, the most coloured named."""
    most = max(groups, key=lambda group: 0.0 if group.white else max(group.power) / min(group.power))
    white = sum(group.white for group in groups)
    return str(most) if len(groups) == 1 else f"white in {white} of {len(groups)} optics groups; {most}"


def whiten_images(
    images: Float[Tensor, "images box box"], gain: Float[Tensor, " shells"]
) -> Float[Tensor, "images box box"]:
    """Multiply each frequency by what its shell has, straight lines between shells."""
    box = images.shape[-1]
    radius = frequency_grid(box).square().sum(-1).sqrt() * box
    factor = torch.from_numpy(np.interp(radius.numpy(), np.arange(len(gain)), gain.numpy())).to(images.dtype)
    return fourier_to_image(image_to_fourier(images) * factor, box)


def log_deviations(whitened: Float[Tensor, "images box box"], background: Background) -> NDArray[np.float64]:
    """Logarithm of the root mean square of each image's background."""
    weight = torch.from_numpy(background.weight).flatten()
    square = whitened.flatten(1).double().square() @ (weight / weight.sum())
    deviations: NDArray[np.float64] = square.clamp_min(1e-300).log().numpy() / 2
    return deviations


def believed_excess(excess: NDArray[np.float64], share: float, background: Background) -> NDArray[np.float64]:
    """What is believed of how much an image's logarithmic deviation exceeds its group's: all, where it is far off."""
    outlying = np.abs(excess) > _OUTLYING * sampling_variance(background) ** 0.5
    believed: NDArray[np.float64] = np.where(outlying, excess, share * excess)
    return believed


def sampling_variance(background: Background) -> float:
    """Variance of the logarithm of a deviation that is measured on a background."""
    return float(np.square(background.weight).sum() / np.square(background.weight.sum()) / 2)


def measure_noise(
    images: Float[Tensor, "images box box"],
    fitted: Float[NDArray[np.float64], "images 3"],
    background: Background,
) -> GroupNoise:
    """Noise of one optics group.

    Parameters
    ----------
    images
        A sample, cropped, in source units, without offset and gradient.
    fitted
        What was taken off each.
    background
        Where the particle is not, as cropped images have it.
    """
    gain, deviation = torch.ones(2), np.exp(log_deviations(images, background))
    for _ in range(_ROUNDS):
        spectrum = _fit(images, deviation, background)
        gain = torch.ones(2) if spectrum.is_white else torch.from_numpy(spectrum.power).float().rsqrt()
        own = log_deviations(whiten_images(images, gain), background)
        middle, share = float(np.median(own)), _believe_deviations(own, sampling_variance(background))
        deviation = np.exp(middle + believed_excess(own - middle, share, background))
    spectrum = _fit(images, deviation, background)
    strength = spectrum.mean**0.5
    gradients = fitted[:, 1:] / (deviation * strength)[:, None]
    gradient_share = _believe_gradients(gradients, spectrum, background)
    power = _as_stored(spectrum, gradients, gradient_share, background)
    return GroupNoise(
        power=tuple(_round(each) for each in power),
        error=tuple(_round(each) for each in spectrum.error),
        white=spectrum.is_white,
        deviation=_round(np.exp(middle) * strength),
        background_deviation=_round(np.exp(middle)),
        deviation_share=_round(share),
        gradient_share=_round(gradient_share),
        images=len(images),
    )


def _round(value: float) -> float:
    """To four digits: beyond, a busy machine may add up in another order, and a store is the same byte for byte."""
    return float(f"{value:.4g}")


def _fit(images: Tensor, deviation: NDArray[np.float64], background: Background) -> Spectrum:
    """Spectrum of images in units of their deviations, without those that something else than noise is in."""
    box, weight = images.shape[-1], torch.from_numpy(background.weight)
    seen, whole, kept = np.zeros((FIELD * box, FIELD * box)), np.zeros((box, box)), 0
    for start in range(0, len(images), _BLOCK):
        part = slice(start, start + _BLOCK)
        unit = images[part] / torch.from_numpy(deviation[part, None, None]).float()
        unit = unit[(unit.square() * weight).sum((1, 2)) / weight.sum() < _STRANGE]
        if not len(unit):
            continue
        seen += windowed_power(unit, background.weight, FIELD * box) * len(unit)
        whole += windowed_power(unit, np.ones((box, box)), box) * len(unit)
        kept += len(unit)
    count = max(kept, 1)
    return fit_spectrum(seen / count, count, background, band_limited=_is_band_limited(whole))


def _is_band_limited(power: NDArray[np.float64]) -> bool:
    """Whether cropping, ours or somebody else's, has emptied the Nyquist lines."""
    line, beside = (float(power[row].mean()) for row in (len(power) // 2, len(power) // 2 - 1))
    return line < _EMPTY * beside


def _believe_deviations(own: NDArray[np.float64], sampling: float) -> float:
    """How much of an image's own difference from its group's deviation is more than chance; outliers do not count."""
    observed = float(_NORMAL_BY_MEDIAN * np.median(np.abs(own - np.median(own)))) ** 2
    by_chance = sampling * (1 + _SIGNIFICANT * (2 / len(own)) ** 0.5)
    return 1 - sampling / observed if observed > by_chance else 0.0


def _believe_gradients(gradients: NDArray[np.float64], spectrum: Spectrum, background: Background) -> float:
    """How much of the gradients' power is more than noise of the spectrum makes."""
    expected = float(background.fitted_variance(spectrum.field)[1:].sum())
    observed = float(np.square(gradients).mean(0).sum())
    by_chance = expected * (1 + spectrum.error[1]) * (1 + _SIGNIFICANT * len(gradients) ** -0.5)
    return 1 - expected / observed if observed > by_chance else 0.0


def _as_stored(
    spectrum: Spectrum, gradients: NDArray[np.float64], share: float, background: Background
) -> NDArray[np.float64]:
    """Power per shell after a share of the gradients has been taken off: of noise, and of what is left of them."""
    if not share:
        return spectrum.power
    box = background.weight.shape[-1]
    # Of the gradients themselves their share was true, and this much of them stays.
    true = share * (1 - share) ** 2 * np.square(gradients).mean(0)
    waves = np.square(np.abs(np.fft.fft2(background.basis[1:]))) / box**2
    left = background.boxed_power(spectrum.field, share) + np.einsum("j,jyx->yx", true, waves)
    power = settle_power(spectrum.power, left)
    stored: NDArray[np.float64] = power / mean_over_plane(power, box)
    return stored
