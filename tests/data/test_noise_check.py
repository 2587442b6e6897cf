import numpy as np
import torch
from support.noise import make_noise, white
from support.store_attributes import store_attributes
from support.stored_images import stored_images

from cryoformer_dist.data.noise_check import StoredNoise, describe_noise, look_at_noise
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.pose import Pose

BOX, IMAGES = 32, 400


def _looked_at(images: np.ndarray) -> StoredNoise:
    ones = torch.ones(IMAGES)
    ctf = CTFParams(10000 * ones, 10000 * ones, 0 * ones, 0 * ones, 300 * ones, 2.7 * ones, 0.1 * ones)
    pose = Pose(torch.eye(3).expand(IMAGES, 3, 3), torch.zeros(IMAGES, 2))
    store: ParticleStore = stored_images(torch.from_numpy(images).half(), pose, ctf, 1.5 * ones)
    store.attributes = store_attributes(BOX)
    return look_at_noise(store, np.arange(IMAGES))


def test_white_noise_passes() -> None:
    noise = _looked_at(make_noise(white, IMAGES, BOX))
    assert noise.problems() == []
    np.testing.assert_allclose(noise.power, 1, atol=0.1)
    assert noise.anisotropy.max() < 0.1
    assert noise.hot_images == 0


def test_streaks_are_told_by_their_frequency() -> None:
    images = make_noise(white, IMAGES, BOX)
    phase = np.random.default_rng(1).uniform(0, 2 * np.pi, IMAGES)
    wave = np.cos(2 * np.pi * 5 * np.arange(BOX)[None] / BOX + phase[:, None])
    noise = _looked_at((images + 0.3 * wave[:, None, :]).astype(np.float32))
    (problem,) = noise.problems()
    assert "not the same in all directions" in problem
    assert "at 5 cycles" in problem


def test_hot_pixels_are_counted() -> None:
    images = make_noise(white, IMAGES, BOX)
    images[::20, 0, 3] = 40
    noise = _looked_at(images)
    assert noise.hot_images == 0.05
    assert any("5% of the images have pixels" in problem for problem in noise.problems())


def test_what_was_measured_is_said_in_a_line_for_all_groups() -> None:
    lines = describe_noise(store_attributes(BOX), _looked_at(make_noise(white, IMAGES, BOX)))
    assert lines[0].startswith("noise white in 1 of 2 optics groups; coloured: power 1.97 times the mean")
    assert lines[-1].startswith("noise as stored has a power of 0.9")
