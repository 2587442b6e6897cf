"""The sum over poses and amplitudes is a formula: against Gaussian densities and conditional means written out."""

import pytest
import torch

from cryoformer_dist.inference.comparison import Comparison, Spread, explain, fit_spread

PARTICLES, CONFORMATIONS, NUMBERS = 6, 4, 40
CPU = torch.device("cpu")


class _Scene:
    """Predictions and their slopes, and images of some of them."""

    def __init__(self, spread: Spread, particles: int = PARTICLES, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.maps = 2 * torch.randn(particles, CONFORMATIONS, NUMBERS, generator=draw)
        self.slopes = torch.randn(particles, CONFORMATIONS, 5, NUMBERS, generator=draw)
        # Radians count for more than angstrom.
        self.slopes[:, :, :3] *= 20
        self.given = torch.randn(particles, 5, generator=draw) * torch.tensor([0.02] * 3 + [0.3] * 2)
        deviation = torch.tensor([spread.rotation_rad] * 3 + [spread.shift_angstrom] * 2)
        error = self.given + deviation * torch.randn(particles, 5, generator=draw)
        amplitude = 1 + spread.amplitude * torch.randn(particles, 1, generator=draw)
        self.state = torch.randint(CONFORMATIONS, (particles,), generator=draw)
        one = torch.arange(particles)
        moved = torch.einsum("bj,bjk->bk", error, self.slopes[one, self.state])
        noise = torch.randn(particles, NUMBERS, generator=draw)
        self.images = amplitude * self.maps[one, self.state] + moved + noise
        self.log_share = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    def compared(self) -> Comparison:
        flat = self.slopes
        return Comparison(
            log_share=self.log_share.expand(len(self.images), -1),
            match=torch.einsum("bck,bk->bc", self.maps, self.images),
            energy=self.maps.square().sum(-1),
            slope_match=torch.einsum("bcjk,bk->bcj", flat, self.images),
            slope_cross=torch.einsum("bcjk,bck->bcj", flat, self.maps),
            slope_energy=flat @ flat.mT,
            given=self.given,
        )


SPREAD = Spread(rotation_rad=0.03, shift_angstrom=0.4, amplitude=0.3)


def test_the_likelihood_is_that_of_a_gaussian_with_the_spread_in_its_covariance() -> None:
    scene = _Scene(SPREAD)
    found = explain(scene.compared(), SPREAD).log_likelihood
    variance = torch.tensor([SPREAD.rotation_rad] * 3 + [SPREAD.shift_angstrom] * 2).square()
    for particle in range(PARTICLES):
        nothing = torch.distributions.MultivariateNormal(torch.zeros(NUMBERS), torch.eye(NUMBERS))
        for state in range(CONFORMATIONS):
            map_, slopes = scene.maps[particle, state], scene.slopes[particle, state]
            mean = map_ + scene.given[particle] @ slopes
            covariance = torch.eye(NUMBERS) + SPREAD.amplitude**2 * torch.outer(map_, map_)
            covariance = covariance + slopes.T @ (variance[:, None] * slopes)
            there = torch.distributions.MultivariateNormal(mean.double(), covariance.double())
            image = scene.images[particle]
            expected = there.log_prob(image.double()) - nothing.log_prob(image)
            assert float(found[particle, state]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_amplitude_and_offset_are_conditional_means() -> None:
    scene = _Scene(SPREAD)
    found = explain(scene.compared(), SPREAD)
    assert found.offset is not None
    deviation = torch.tensor([SPREAD.amplitude] + [SPREAD.rotation_rad] * 3 + [SPREAD.shift_angstrom] * 2)
    for particle in range(PARTICLES):
        for state in range(CONFORMATIONS):
            design = torch.cat([scene.maps[particle, state][None], scene.slopes[particle, state]])
            prior = torch.cat([torch.ones(1), scene.given[particle]])
            curved = design @ design.T + torch.diag(deviation.square().reciprocal())
            mean = prior + torch.linalg.solve(curved, design @ (scene.images[particle] - prior @ design))
            seen = torch.cat([found.amplitude[particle, state][None], found.offset[particle, state]])
            torch.testing.assert_close(seen, mean, rtol=1e-3, atol=1e-4)


def test_where_nothing_departs_from_what_is_given_the_likelihood_is_the_plain_one_there() -> None:
    scene = _Scene(Spread())
    scene.given.zero_()
    compared = scene.compared()
    plain = explain(Comparison(compared.log_share, compared.match, compared.energy), Spread())
    torch.testing.assert_close(plain.log_likelihood, compared.match - compared.energy / 2)
    assert plain.offset is None
    assert torch.equal(plain.amplitude, torch.ones_like(plain.amplitude))
    found = explain(compared, Spread())
    torch.testing.assert_close(found.log_likelihood, plain.log_likelihood, rtol=1e-3, atol=1e-2)
    assert found.offset is not None
    assert float(found.offset.abs().max()) < 1e-6


@pytest.mark.parametrize(
    "true", [Spread(), SPREAD, Spread(amplitude=0.2), Spread(rotation_rad=0.05), Spread(shift_angstrom=1.0)]
)
def test_the_spread_is_found_under_which_images_are_most_probable(true: Spread) -> None:
    scene = _Scene(true, particles=400, seed=3)
    wanted = Spread(0.02, 1.0, 0.1)
    found = fit_spread([scene.compared().keep_likely(wanted, 4)], 4.0, wanted, CPU)
    for name in ("rotation_rad", "shift_angstrom", "amplitude"):
        # Candidates lie a factor of 1.4 apart.
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.3, abs=0.006)


def test_what_is_not_asked_for_stays_exact() -> None:
    scene = _Scene(SPREAD, particles=100)
    found = fit_spread([scene.compared()], 4.0, Spread(amplitude=0.1), CPU)
    assert not found.moves_poses
    assert found.amplitude > 0


def test_likely_conformations_keep_what_belongs_to_them() -> None:
    compared = _Scene(SPREAD).compared()
    kept = compared.keep_likely(SPREAD, 2)
    whole, some = (explain(each, SPREAD) for each in (compared, kept))
    best = (whole.log_likelihood + compared.log_share).topk(2, dim=1).values
    torch.testing.assert_close(some.log_likelihood + kept.log_share, best)
