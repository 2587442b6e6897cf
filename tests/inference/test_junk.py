"""Images of particles, of nothing and of something else are told apart."""

import pytest
import torch

from cryoformer_dist.inference.conformations import Views
from cryoformer_dist.inference.junk import JunkModel, Kind, PowerSum

NUMBERS, EACH = 300, 200
SHELL = torch.arange(NUMBERS) // 20
# Of the low shells most.
POWER = 4.0 / (1 + SHELL) ** 2


def _views() -> tuple[Views, torch.Tensor]:
    """As many images of each kind, beside the particle's own; and that."""
    draw = torch.Generator().manual_seed(0)
    passed = 0.2 + torch.rand(4 * EACH, NUMBERS, generator=draw)
    scale = (POWER * passed).sqrt()
    particle = scale * torch.randn(NUMBERS, generator=draw)
    other = scale * torch.randn(4 * EACH, NUMBERS, generator=draw)
    kind = torch.arange(4).repeat_interleave(EACH)[:, None]
    shown = particle * ((kind == Kind.PARTICLE) | (kind == Kind.PARTICLE_AND_MORE))
    shown = shown + other * ((kind == Kind.SOMETHING_ELSE) | (kind == Kind.PARTICLE_AND_MORE))
    images = shown + torch.randn(4 * EACH, NUMBERS, generator=draw)
    return Views(images, particle[:, None], passed, None, torch.zeros(4 * EACH, 5)), particle


def _likelihoods(model: JunkModel, views: Views, particle: torch.Tensor) -> torch.Tensor:
    evidence = (views.images * particle - particle.square() / 2).sum(1)
    return model.compare(views, evidence, particle)


def test_the_power_of_all_images_beyond_the_noise_is_found() -> None:
    views, _ = _views()
    power = PowerSum(SHELL)
    power.add(views)
    found = power.finish().power
    # On average an image of these shows one thing: none, one, one, two.
    torch.testing.assert_close(found[:100], POWER[:100], rtol=0.25, atol=0.02)


def test_each_image_is_taken_for_what_it_shows() -> None:
    views, particle = _views()
    model = JunkModel(POWER, torch.full((4,), 0.25))
    posterior = model.posterior(_likelihoods(model, views, particle))
    kind = torch.arange(4).repeat_interleave(EACH)
    assert float((posterior.argmax(1) == kind).float().mean()) > 0.97


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1, 0.1), (1.0, 0.0, 0.0, 0.0)])
def test_the_shares_of_the_kinds_are_found(shares: tuple[float, ...]) -> None:
    views, particle = _views()
    model = JunkModel(POWER, torch.tensor([0.91, 0.03, 0.03, 0.03]))
    likelihoods = _likelihoods(model, views, particle)
    counted = [likelihoods[number * EACH :][: round(share * EACH)] for number, share in enumerate(shares)]
    found = model.with_shares_of(counted).share
    torch.testing.assert_close(found, torch.tensor(shares), rtol=0, atol=0.03)
