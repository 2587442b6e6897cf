"""The noise of simulated images.

The signal-to-noise ratio is var(signal) / var(noise) of whole CTF-applied images at ``snr_box`` (the mean variance of
the first images, up to 1,000); cropping to a smaller box afterwards raises it, as in CryoBench. The noise is white and
equally strong in every image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.fourier import crop_images


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """Factor on the signal, and standard deviation of the scaled noise, both at the simulated box."""

    signal: float
    noise: float


def measure_noise_scale(config: SimulationConfig, images: Tensor) -> NoiseScale:
    """Units in which the noise of the written images is 1; without noise, the signal's variance.

    Parameters
    ----------
    config
        Names the signal-to-noise ratio.
    images
        ``(images, box, box)`` without noise, with the CTF, at the simulated box.

    Raises
    ------
    ConfigError
        If there is no signal.
    """
    variance = float(images.double().var(dim=(1, 2), correction=0).mean())
    if variance == 0:
        raise ConfigError("source: every image is empty; give a molecule or maps with density inside the box")
    if config.snr is None:
        return NoiseScale(signal=variance**-0.5, noise=0.0)
    # Cropping in Fourier space averages pixels: white noise weakens by the ratio of the boxes.
    noise = config.simulated_box / config.box_size
    return NoiseScale(signal=noise * (config.snr / variance) ** 0.5, noise=noise)


def add_noise(signal: Tensor, scale: NoiseScale, box: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Images as they are written: scaled, noisy, and then cropped to the box."""
    images = signal * scale.signal
    if scale.noise:
        images += torch.from_numpy(generator.standard_normal(images.shape, dtype=np.float32)) * scale.noise
    return crop_images(images, box).numpy()
