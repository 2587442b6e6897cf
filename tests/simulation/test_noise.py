import numpy as np
import pytest
import torch

from cryoformer_dist.config.nuisances import NoiseConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.fourier import image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight
from cryoformer_dist.simulation.noise import measure_noise_scale, mix_colour

BOX, PIXEL = 32, 7.0
NYQUIST = 1 / (2 * PIXEL)


def _signal(box: int, images: int = 200) -> torch.Tensor:
    return 3 * torch.randn(images, box, box, generator=torch.Generator().manual_seed(0))


def _spectrum(images: torch.Tensor) -> torch.Tensor:
    """Mean power in each shell, 0 to Nyquist."""
    box = images.shape[-1]
    shell = (frequency_grid(box).norm(dim=-1) * box).round().long()
    power = image_to_fourier(images).abs().square().mean(0) / box**2
    weight = half_plane_weight(box).expand_as(power)
    total = torch.zeros(box).index_add(0, shell.ravel(), (power * weight).ravel())
    return (total / torch.zeros(box).index_add(0, shell.ravel(), weight.ravel()))[: box // 2 + 1]


@pytest.mark.parametrize("snr", [0.1, 2.0])
def test_the_signal_is_as_strong_as_asked_where_the_noise_is_one(snr: float) -> None:
    signal = _signal(16)
    scale = measure_noise_scale(snr, 1.0, signal)
    assert scale.noise == 1
    assert (signal * scale.signal).var() == pytest.approx(snr, rel=0.02)


def test_without_noise_the_signal_has_unit_variance() -> None:
    signal = _signal(16)
    scale = measure_noise_scale(None, 2.0, signal)
    assert scale.noise == 0
    assert (signal * scale.signal).var() == pytest.approx(1, rel=0.02)


def test_images_without_signal_are_refused() -> None:
    with pytest.raises(ConfigError, match="every image is empty"):
        measure_noise_scale(0.1, 1.0, torch.zeros(4, 16, 16))


def test_noise_without_a_colour_is_the_generators_own():
    noise = mix_colour(NoiseConfig(), BOX, BOX * PIXEL, NYQUIST).shot(5, BOX, np.random.default_rng(3))
    drawn = np.random.default_rng(3).standard_normal((5, BOX, BOX), dtype=np.float32)
    np.testing.assert_array_equal(noise.numpy(), drawn)


@pytest.mark.parametrize("ratio", [3.9, 21.0])
def test_power_law_falls_by_the_ratio_from_the_first_shell_to_nyquist(ratio: float) -> None:
    colour = mix_colour(NoiseConfig(ratio=ratio, shape="power_law"), BOX, BOX * PIXEL, NYQUIST)
    noise = colour.shot(3000, BOX, np.random.default_rng(0))
    measured, asked = _spectrum(noise), _spectrum_of(colour.power)
    torch.testing.assert_close(measured, asked, rtol=0.05, atol=0)
    assert noise.var() == pytest.approx(1, rel=0.02)
    radius = frequency_grid(BOX).norm(dim=-1) * BOX
    law = (radius.clamp_min(1) / 16) ** (-np.log(ratio) / np.log(16))
    torch.testing.assert_close(colour.power / colour.power[0, 16], law, rtol=1e-4, atol=1e-5)
    assert colour.power[0, 1] / colour.power[0, 16] == pytest.approx(ratio, rel=1e-4)


def _spectrum_of(power: torch.Tensor) -> torch.Tensor:
    shell = (frequency_grid(BOX).norm(dim=-1) * BOX).round().long()
    weight = half_plane_weight(BOX).expand_as(power)
    total = torch.zeros(BOX).index_add(0, shell.ravel(), (power * weight).ravel())
    return (total / torch.zeros(BOX).index_add(0, shell.ravel(), weight.ravel()))[: BOX // 2 + 1]


def test_measured_shape_has_the_variances_of_empiar_10076():
    box, pixel = 128, 2.0
    colour = mix_colour(NoiseConfig(ratio=3.9), box, box * pixel, 1 / (2 * pixel))
    along_x = colour.power[0] / colour.power[0, -1]
    resolution = box * pixel / torch.arange(box // 2 + 1).clamp_min(1)
    at = {angstrom: along_x[(resolution - angstrom).abs().argmin()].item() for angstrom in (200, 26, 21, 12, 5)}
    assert at[200] == pytest.approx(3.9, rel=0.1)
    assert at[26] == pytest.approx(2.9, rel=0.1)
    assert at[21] == pytest.approx(1.4, rel=0.1)
    assert (at[12], at[5]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_ice_noise_has_the_ctf_and_its_share_of_the_variance():
    transfer = torch.cos(40 * frequency_grid(BOX).square().sum(-1)).expand(2000, -1, -1)
    colour = mix_colour(NoiseConfig(ice_share=0.4), BOX, BOX * PIXEL, NYQUIST)
    ice = colour.ice(transfer, np.random.default_rng(1))
    assert ice.var() == pytest.approx(0.4, rel=0.02)
    assert colour.shot(2000, BOX, np.random.default_rng(0)).var() == pytest.approx(0.6, rel=0.02)
    passed = _spectrum_of(transfer[0].square())
    measured = _spectrum(ice)
    torch.testing.assert_close(measured / measured.sum(), passed / passed.sum(), atol=0.004, rtol=0.06)
    assert passed.min() < 0.2 * passed.max()
