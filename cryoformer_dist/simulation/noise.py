"""The noise of simulated images.

The signal-to-noise ratio is var(signal) / var(noise) of whole CTF-applied images at ``snr_box``: the mean variance of
the first images of the optics group, up to 1,000, each a whole particle at contrast 1, over the mean power of the noise
at all frequencies. Cropping to a smaller box afterwards raises it, as in CryoBench. The noise is Gaussian, equally
strong in every image, and white unless it is given a colour; a part of it may lie in the ice, under the CTF.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.config.nuisances import NoiseConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight

# EMPIAR-10076: frequency in 1/angstrom, and the logarithm of the noise's variance, relative to that of fine shells.
_MEASURED_FREQUENCY = (0.0, 1 / 26, 1 / 21, 1 / 13)
_MEASURED_LOG_POWER = np.log((3.9, 2.9, 1.4, 1.0))


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """Factor on the signal, and standard deviation of the scaled noise, both at the simulated box."""

    signal: float
    noise: float


def measure_noise_scale(snr: float | None, crop: float, images: Float[Tensor, "images box box"]) -> NoiseScale:
    """Units in which the noise of the written images is 1; without noise, the signal's variance.

    Parameters
    ----------
    snr
        The signal-to-noise ratio, None for no noise.
    crop
        The simulated box over the written one.
    images
        Without noise, with the CTF, at the simulated box.

    Raises
    ------
    ConfigError
        If there is no signal.
    """
    variance = float(images.double().var(dim=(1, 2), correction=0).mean())
    if variance == 0:
        raise ConfigError("source: every image is empty; give a molecule or maps with density inside the box")
    if snr is None:
        return NoiseScale(signal=variance**-0.5, noise=0.0)
    # Cropping in Fourier space averages pixels: white noise weakens by the ratio of the boxes.
    return NoiseScale(signal=crop * (snr / variance) ** 0.5, noise=crop)


@dataclass(frozen=True, slots=True)
class Colour:
    """What becomes of white noise.

    Attributes
    ----------
    power
        `(box, half)` on the half plane, 1 on average over the plane; None for white.
    ice_share
        Part of the variance that goes through the CTF.
    """

    power: Float[Tensor, "box half"] | None
    ice_share: float

    def shot(self, images: int, box: int, generator: np.random.Generator) -> Float[Tensor, "images box box"]:
        """Noise that does not go through the CTF; with the ice's it has unit variance."""
        noise = _draw_white(images, box, generator)
        if self.power is not None:
            noise = _filter(noise, self.power.sqrt())
        return noise * math.sqrt(1 - self.ice_share)

    def ice(
        self, transfer: Float[Tensor, "images box half"], generator: np.random.Generator
    ) -> Float[Tensor, "images box box"]:
        """Noise that goes through these CTFs, equally strong in every image."""
        passed = transfer * (self.ice_share / _mean_power(transfer.square())).sqrt()[:, None, None]
        return _filter(_draw_white(len(transfer), transfer.shape[-2], generator), passed)


def mix_colour(config: NoiseConfig, box: int, box_length_angstrom: float, nyquist_per_angstrom: float) -> Colour:
    """Find the colour of noise for images of a box; ``nyquist_per_angstrom`` is that of the written images."""
    if config.ratio == 1:
        return Colour(None, config.ice_share)
    frequency = frequency_grid(box).double().norm(dim=-1) * (box / box_length_angstrom)
    power = torch.exp(_log_power(config, frequency, 1 / box_length_angstrom, nyquist_per_angstrom))
    return Colour((power / _mean_power(power)).float(), config.ice_share)


def _log_power(config: NoiseConfig, frequency: Tensor, first: float, nyquist: float) -> Tensor:
    """Logarithm of the power, relative to the finest shell's."""
    if config.shape == "power_law":
        exponent = math.log(config.ratio) / math.log(nyquist / first)
        return -exponent * torch.log(frequency.clamp_min(first) / nyquist)
    fall = np.interp(frequency.numpy(), _MEASURED_FREQUENCY, _MEASURED_LOG_POWER / _MEASURED_LOG_POWER[0])
    return torch.from_numpy(fall * math.log(config.ratio))


def _mean_power(power: Float[Tensor, "*batch box half"]) -> Float[Tensor, "*batch"]:
    """Mean over the whole plane, of which half is given."""
    box = power.shape[-2]
    mean: Tensor = (power * half_plane_weight(box)).sum(dim=(-2, -1)) / box**2
    return mean


def _draw_white(images: int, box: int, generator: np.random.Generator) -> Tensor:
    return torch.from_numpy(generator.standard_normal((images, box, box), dtype=np.float32))


def _filter(images: Tensor, transfer: Tensor) -> Tensor:
    return fourier_to_image(image_to_fourier(images) * transfer, images.shape[-1])
