import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.simulation.nuisances import Junk, draw_blobs, draw_brightness, draw_junk, put_beside


def configured(**nuisances) -> SimulationConfig:
    return SimulationConfig.model_validate({"particles": 4000, "box_size": 24, "nuisances": nuisances})


def test_contrast_is_log_normal_of_mean_one_and_the_asked_spread():
    amplitude = draw_brightness(configured(brightness={"contrast_sd": 0.3})).amplitude
    assert amplitude.mean() == pytest.approx(1, abs=0.02)
    assert amplitude.std() == pytest.approx(0.3, rel=0.06)
    logarithm = np.log(amplitude)
    assert ((logarithm - logarithm.mean()) ** 3).mean() / logarithm.std() ** 3 == pytest.approx(0, abs=0.12)


def test_background_is_a_plane_of_the_asked_spread():
    brightness = draw_brightness(configured(brightness={"offset_sd": 0.5, "gradient_sd": 0.2}))
    images = brightness.background(slice(0, 4000), 24).double()
    assert images[:, 12, 12].std().item() == pytest.approx(0.5, rel=0.05)
    edge = images[:, 12, 0] - images[:, 12, 12]
    assert edge.std().item() == pytest.approx(0.2, rel=0.05)
    assert (images[:, 0, 12] - images[:, 12, 12]).std().item() == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(
        images[:, 5, 7] - images[:, 5, 6], images[:, 20, 2] - images[:, 20, 1], atol=1e-6, rtol=0
    )
    assert brightness.amplitude.tolist() == [1.0] * 4000


def test_junk_comes_in_the_asked_numbers_and_random_order():
    kind = draw_junk(configured(junk={"empty": 0.05, "neighbours": 0.1, "blobs": 0.02})).kind
    assert np.bincount(kind, minlength=4).tolist() == [3320, 200, 400, 80]
    assert np.bincount(kind[:2000], minlength=4)[Junk.NEIGHBOURS] == pytest.approx(200, abs=40)
    assert not draw_junk(configured()).kind.any()


def test_blobs_hold_their_weight_and_lie_inside():
    junk = draw_junk(configured(junk={"blobs": 0.5}))
    rows = np.arange(50)
    transform = draw_blobs(junk, rows, 24)
    np.testing.assert_allclose(transform[:, 0, 0].real, junk.blob_weight[rows].sum(1), rtol=1e-5)
    # Lumps are featureless: nothing is left of them near Nyquist but what the narrowest have.
    assert transform[:, 0, -1].abs().max() < 0.4 * transform[:, 0, 0].abs().max()


def test_what_is_put_beside_moves_by_whole_pixels_and_is_cut_by_the_edge():
    image = torch.arange(64.0).reshape(1, 8, 8)
    moved = put_beside(image, np.asarray([[0.25, -0.125]], np.float32))[0]
    torch.testing.assert_close(moved[:7, 2:], image[0, 1:, :6])
    assert moved[7].abs().sum() == 0
    assert moved[:, :2].abs().sum() == 0
