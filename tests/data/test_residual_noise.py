import numpy as np
import pytest
import torch
from support.noise import make_noise, white

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.residual_noise import ResidualNoise
from cryoformer_dist.physics.ctf import CTFParams, NoiseFilter
from cryoformer_dist.physics.fourier import crop_half_plane, image_to_fourier
from cryoformer_dist.physics.pose import Pose

BOX, IMAGES = 24, 3000


def _batch(images: np.ndarray, filtered: bool) -> ParticleBatch:
    """Two optics groups by turns, if images were filtered."""
    count = len(images)
    noise = NoiseFilter(torch.arange(count) % 2, torch.ones(2, 18), torch.full((2,), 48.0)) if filtered else None
    ctf = CTFParams(*torch.ones(7, count), noise_filter=noise)
    pose = Pose(torch.eye(3).expand(count, 3, 3), torch.zeros(count, 2))
    return ParticleBatch(torch.from_numpy(images), torch.arange(count), pose, ctf, torch.full((count,), 2.0), 0)


@pytest.mark.parametrize("box", [BOX, 12])
def test_noise_that_is_as_assumed_departs_by_chance_alone(box: int) -> None:
    batch, noise = _batch(make_noise(white, IMAGES, BOX), filtered=False), ResidualNoise(BOX)
    for part in torch.arange(IMAGES).split(1000):
        noise.add(batch[part], crop_half_plane(image_to_fourier(batch[part].images), box))
    assert noise.power().shape == (1, box // 2 - 1)
    np.testing.assert_allclose(noise.power(), 1, atol=0.03)
    # Not a shell departs by more than chance.
    assert noise.departure().power == 1


def test_each_optics_group_is_measured_by_itself_at_each_frequency() -> None:
    images = make_noise(white, IMAGES, BOX)
    wave = np.cos(2 * np.pi * 4 * np.arange(BOX) / BOX, dtype=np.float32)
    images[1::2] += 0.5 * wave
    noise, batch = ResidualNoise(BOX), _batch(images, filtered=True)
    noise.add(batch, image_to_fourier(batch.images))
    power = noise.power()
    np.testing.assert_allclose(power[0], 1, atol=0.04)
    assert int(power[1].argmax()) == 3
    # A wave of amplitude a has a^2 box^2 / 2 in all, two coefficients of the shell's.
    assert float(power[1, 3]) > 1.5
    departure = noise.departure()
    assert (departure.group, departure.cycles, departure.power) == (1, 4, float(power[1, 3]))
    assert departure.size == pytest.approx(float(power[1, 3]) - 1)


def test_what_few_images_scatter_by_is_no_departure() -> None:
    images = make_noise(white, 12, BOX)
    noise, batch = ResidualNoise(BOX), _batch(images, filtered=False)
    noise.add(batch, image_to_fourier(batch.images))
    assert float((noise.power() - 1).abs().max()) > 0.1
    assert noise.departure().size == 0
