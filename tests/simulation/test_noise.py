import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.simulation.noise import add_noise, measure_noise_scale


def _signal(box: int, images: int = 200) -> torch.Tensor:
    return 3 * torch.randn(images, box, box, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("snr", [0.1, 2.0])
def test_written_noise_is_one_and_the_signal_as_strong_as_asked(snr: float) -> None:
    config = SimulationConfig(particles=200, box_size=16, snr=snr)
    signal = _signal(16)
    scale = measure_noise_scale(config, signal)
    written = torch.from_numpy(add_noise(signal, scale, 16, np.random.default_rng(1)))
    noise = written - signal * scale.signal
    assert noise.std() == pytest.approx(1, rel=0.02)
    assert (signal * scale.signal).var() == pytest.approx(snr, rel=0.02)


def test_without_noise_the_signal_has_unit_variance() -> None:
    config = SimulationConfig(particles=200, box_size=16, snr=None)
    signal = _signal(16)
    written = add_noise(signal, measure_noise_scale(config, signal), 16, np.random.default_rng(1))
    assert written.var() == pytest.approx(1, rel=0.02)


def test_images_without_signal_are_refused() -> None:
    with pytest.raises(ConfigError, match="every image is empty"):
        measure_noise_scale(SimulationConfig(particles=4, box_size=16), torch.zeros(4, 16, 16))
