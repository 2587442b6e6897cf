from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import write_set

from cryoformer_dist.analysis.latent import score_latents
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.training.linear_start import linear_latents
from cryoformer_dist.training.occupancy import sphere


@pytest.fixture(scope="module")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleStore, np.ndarray]:
    """A store of the molecule with the swinging arm, and the arm's angle of each store row."""
    source = {"kind": "phantom", "arc_deg": 100}
    path = write_set(tmp_path_factory.mktemp("linear"), particles=600, source=source, snr=1.0)
    store = ParticleStore.open(path)
    with np.load(path.parent / "particles" / "truth" / "truth.npz") as truth:
        state = truth["state"][store.particles().source_row]
    return store, state


def test_coordinates_follow_the_motion_and_are_white(swinging: tuple[ParticleStore, np.ndarray]) -> None:
    store, state = swinging
    calls: list[tuple[int, int]] = []
    latent = linear_latents(store, np.arange(600), sphere(16), 3, 0, lambda *call: calls.append(call))
    assert score_latents(latent.numpy(), state, 0.0, False)["latent_rank_correlation"] > 0.8
    torch.testing.assert_close(latent.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.T @ latent / 600, torch.eye(3), atol=1e-3, rtol=0)
    assert calls[-1][0] == calls[-1][1]


def test_shuffled_states_are_not_predicted(swinging: tuple[ParticleStore, np.ndarray]) -> None:
    store, state = swinging
    latent = linear_latents(store, np.arange(600), sphere(16), 3, 0).numpy()
    shuffled = np.random.default_rng(0).permutation(state)
    assert score_latents(latent, shuffled, 0.0, False)["latent_rank_correlation"] < 0.15


def test_the_seed_hardly_matters_and_the_same_seed_not_at_all(swinging: tuple[ParticleStore, np.ndarray]) -> None:
    store, _ = swinging
    one, same, other = (linear_latents(store, np.arange(600), sphere(16), 2, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    # Axes may turn into one another; the space they span is that of the motion.
    shared = torch.linalg.svdvals(one.T @ other / 600)
    assert shared.max() > 0.8
