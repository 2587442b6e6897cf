from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import Consensus, back_project
from cryoformer_dist.initialization.occupancy import find_occupied, sphere
from cryoformer_dist.physics.fourier import weighted_shells


def test_the_consensus_is_that_of_the_rows_asked_for(swinging: Path) -> None:
    store = ParticleStore.open(swinging)
    some, others, again = (
        back_project(store, rows).voxels for rows in (np.arange(200), np.arange(200, 400), np.arange(200))
    )
    assert torch.equal(some, again)
    inside = find_occupied(some, 230 / 32)
    correlation = torch.corrcoef(torch.stack([some[inside], others[inside]]))[0, 1]
    assert 0.5 < correlation < 0.999


@pytest.mark.parametrize("particles", [300, 257])
def test_the_halves_are_of_every_other_particle(swinging: Path, particles: int) -> None:
    store = ParticleStore.open(swinging)
    whole = back_project(store, np.arange(particles))
    for half, voxels in enumerate(whole.halves):
        torch.testing.assert_close(voxels, back_project(store, np.arange(half, particles, 2)).voxels)


def _white(seed: int) -> torch.Tensor:
    return torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(seed))


def _halves(noise: float) -> Consensus:
    """A white molecule in the ball, seen twice through noise of this variance."""
    signal = _white(0) * sphere(32)
    first, second = (signal + noise**0.5 * _white(seed) for seed in (1, 2))
    return Consensus((first + second) / 2, (first, second))


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_shells_count_for_what_of_them_is_signal(noise: float) -> None:
    # The whole has half the noise of its halves.
    weight = _halves(noise).shell_weight(sphere(32), 7.0)
    expected = 1 / (1 + noise / 2)
    assert weight.shape == (16,)
    assert float(weight[6:].mean()) == pytest.approx(expected, rel=0.03)
    # Weighting so is what brings the whole nearest to the signal: less and more of it are further away.
    errors = []
    for power in (0.5, 1.0, 2.0):
        filtered = weighted_shells(_halves(noise).voxels * sphere(32), weight**power)
        errors.append(float((filtered - weighted_shells(_white(0) * sphere(32), torch.ones(16))).square().sum()))
    assert errors[1] < min(errors[0], errors[2])


def test_a_sample_speaks_for_all_particles() -> None:
    """Of a quarter of the particles the noise is four times that of all of them."""
    of_all = _halves(0.5).shell_weight(sphere(32), 7.0)
    of_a_quarter = _halves(2.0).shell_weight(sphere(32), 7.0, share=0.25)
    torch.testing.assert_close(of_a_quarter[6:].mean(), of_all[6:].mean(), rtol=0.03, atol=0)


def test_halves_without_noise_count_whole_and_without_signal_not_at_all() -> None:
    same = Consensus(_white(0), (_white(0), _white(0)))
    torch.testing.assert_close(same.shell_weight(sphere(32), 7.0), torch.ones(16), rtol=1e-5, atol=0)
    other = Consensus(_white(0), (_white(0), _white(1)))
    weight = other.shell_weight(sphere(32), 7.0)
    assert float(weight[0]) == 1
    assert float(weight[6:].max()) < 0.15


def test_noisier_images_count_for_less_in_fine_shells(swinging: Path) -> None:
    store = ParticleStore.open(swinging)
    few, many = (back_project(store, np.arange(rows)) for rows in (100, 1000))
    weights = [maps.shell_weight(sphere(32), store.pixel_size_angstrom) for maps in (few, many)]
    assert (weights[0][5:] < weights[1][5:]).float().mean() > 0.8
