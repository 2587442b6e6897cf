import numpy as np
import pytest

from cryoformer_dist.inference.width import find_width, predict_state

PARTICLES = 1500


def bend(state: np.ndarray) -> np.ndarray:
    """A curve in eight dimensions."""
    waves = [0.3 * np.sin(state * (number + 1) + number) for number in range(6)]
    return np.stack([np.cos(2.5 * state), np.sin(2.5 * state), *waves], axis=1)


def turn(state: np.ndarray) -> np.ndarray:
    """A circle for states from 0 to 1."""
    return np.stack([np.cos(2 * np.pi * state), np.sin(2 * np.pi * state)], axis=1)


def look(state: np.ndarray, curve: np.ndarray, period: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and widths of latents on a curve, each dimension by itself, from noisy looks at states."""
    grid = np.linspace(0, 1, 400)
    apart = grid - (state + noise * np.random.default_rng(1).normal(size=len(state)))[:, None]
    if period:
        apart = (apart + 0.5) % 1 - 0.5
    probability = np.exp(-((apart / noise) ** 2) / 2)
    probability /= probability.sum(axis=1, keepdims=True)
    mean = probability @ curve
    return mean, np.sqrt((probability @ curve**2 - mean**2).clip(min=0))


@pytest.mark.parametrize(
    ("path", "period", "noise"),
    [(bend, 0.0, 0.02), (bend, 0.0, 0.05), (bend, 0.0, 0.1), (turn, 1.0, 0.02), (turn, 1.0, 0.05)],
)
def test_errors_are_as_large_as_widths_say(path, period, noise):
    """Dimension by dimension the curve's widths are a third of what they are along it."""
    state = np.random.default_rng(0).uniform(0, 1, PARTICLES)
    mean, deviation = look(state, path(np.linspace(0, 1, 400)), period, noise)
    standardised = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    predicted = predict_state(standardised, state, period)
    error = np.abs(predicted - state)
    error = np.minimum(error, 1 - error) if period else error
    width = find_width(mean, deviation, predicted, period)
    assert np.sqrt(np.square(error / width).mean()) == pytest.approx(1, abs=0.2)
    wider = find_width(mean, 2 * deviation, predicted, period)
    assert np.median(wider / width) == pytest.approx(2, abs=0.25)


def test_what_is_known_well_of_one_motion_is_not_spoilt_by_another():
    rng = np.random.default_rng(2)
    latents = rng.uniform(0, 1, (PARTICLES, 2))
    first = find_width(latents, np.full_like(latents, [0.05, 0.3]), latents[:, 0], 0.0)
    second = find_width(latents, np.full_like(latents, [0.05, 0.3]), latents[:, 1], 0.0)
    assert np.median(second) > 2.5 * np.median(first)


def test_a_particle_of_which_nothing_is_known_may_be_in_any_state():
    latents = np.random.default_rng(3).uniform(0, 1, (PARTICLES, 1))
    width = find_width(latents, np.full_like(latents, 50.0), latents[:, 0], 0.0)
    np.testing.assert_allclose(width, latents.std(), rtol=1e-3)
