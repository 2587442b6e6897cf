import numpy as np
import pytest
import torch
from support.noise import coloured, cut_noise, make_noise, plane, white

from cryoformer_dist.data.noise_background import FIELD, Background, background_of
from cryoformer_dist.data.noise_spectrum import (
    per_shell,
    windowed_power,
)
from cryoformer_dist.physics.fourier import crop_images

BOX = 32


@pytest.mark.parametrize("curve", [white, coloured])
def test_what_noise_shows_in_a_window_is_known(curve) -> None:  # type: ignore[no-untyped-def]
    background = Background.outside(BOX, 12.0)
    images = make_noise(curve, 6000, BOX)
    flat, _ = background.flatten(torch.from_numpy(images))
    power = curve(plane(BOX)) / curve(plane(BOX)).mean()
    for window in (background.weight, np.ones((BOX, BOX))):
        seen = per_shell(windowed_power(flat, window, BOX))[1:16]
        np.testing.assert_allclose(seen, per_shell(background.seen(power, window))[1:16], rtol=0.03)


def test_what_noise_cut_from_a_wider_field_shows_is_known() -> None:
    background, field = Background.outside(BOX, 12.0), FIELD * BOX
    images = cut_noise(coloured, 4000, BOX, FIELD)
    flat, _ = background.flatten(torch.from_numpy(images))
    power = coloured(plane(field) / FIELD)
    power /= power.mean()
    seen = windowed_power(flat, background.weight, field)
    # By half cycles over the box.
    np.testing.assert_allclose(per_shell(seen)[1:], per_shell(background.seen(power, background.weight))[1:], rtol=0.06)
    whole = per_shell(windowed_power(flat, np.ones((BOX, BOX)), BOX))[1:16]
    boxed = per_shell(background.boxed_power(power, 1.0))[1:16]
    np.testing.assert_allclose(whole, boxed, rtol=0.04)


def test_offsets_and_gradients_leave_no_trace_in_the_background() -> None:
    background = Background.outside(BOX, 12.0)
    images = torch.from_numpy(make_noise(coloured, 20, BOX))
    ramp = torch.linspace(-1, 1, BOX)
    tilted = images + 100 + 5 * ramp - 9 * ramp[:, None]
    assert torch.allclose(background.flatten(tilted)[0], background.flatten(images)[0], atol=1e-3)
    # Without a share of the gradient only the offset goes.
    kept, _ = background.flatten(tilted, gradient_share=0)
    assert float((kept - background.flatten(images, 0)[0]).std()) > 3


def test_the_variance_of_fitted_gradients_is_that_of_the_noise() -> None:
    background, power = Background.outside(BOX, 13.0), coloured(plane(BOX)) / coloured(plane(BOX)).mean()
    _, fitted = background.flatten(torch.from_numpy(make_noise(coloured, 6000, BOX)))
    np.testing.assert_allclose(fitted.var(dim=0)[1:], background.fitted_variance(power)[1:], rtol=0.06)


def test_a_fit_is_the_same_seen_after_cropping() -> None:
    # A smooth image, as cropping cuts off what is finer.
    smooth = torch.from_numpy(make_noise(lambda shell: np.exp(-((shell / 2) ** 2)), 5, 48))
    whole, small = Background.outside(48, 20.0), background_of(48, 20.0, 24)
    flat, fitted = whole.flatten(smooth)
    products = np.einsum("nyx,jyx->nj", crop_images(smooth, 24).double().numpy(), small.dual)
    np.testing.assert_allclose(products[:, 1:], fitted[:, 1:], atol=0.02 * float(fitted[:, 1:].abs().max()))
    assert small.weight.shape == (24, 24)
    assert float(flat.std()) > 0
