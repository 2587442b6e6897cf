import numpy as np
import pytest
import torch
from tiny_runs import write_set

from cryoformer_dist.analysis.latent import score_latents
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.training.linear_start import linear_latents

SMALL = radius_grid(16, 3) <= 6


@pytest.fixture(scope="module")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleStore, np.ndarray]:
    """A store of the molecule with the swinging arm, and the arm's angle of each store row."""
    source = {"kind": "phantom", "arc_deg": 100}
    path = write_set(tmp_path_factory.mktemp("linear"), particles=400, source=source, snr=1.0)
    store = ParticleStore.open(path)
    with np.load(path.parent / "particles" / "truth" / "truth.npz") as truth:
        state = truth["state"][store.particles().source_row]
    return store, state


@pytest.fixture(scope="module")
def latent(swinging: tuple[ParticleStore, np.ndarray]) -> torch.Tensor:
    return linear_latents(swinging[0], np.arange(400), SMALL, 2, 0)


def test_coordinates_follow_the_motion(swinging: tuple[ParticleStore, np.ndarray], latent: torch.Tensor) -> None:
    state = swinging[1]
    assert score_latents(latent.numpy(), state, 0.0, False)["latent_rank_correlation"] > 0.8
    shuffled = np.random.default_rng(0).permutation(state)
    assert score_latents(latent.numpy(), shuffled, 0.0, False)["latent_rank_correlation"] < 0.15


def test_coordinates_are_white(latent: torch.Tensor) -> None:
    torch.testing.assert_close(latent.mean(0), torch.zeros(2), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(latent.T @ latent / 400, torch.eye(2), atol=1e-3, rtol=0.0)


def test_another_seed_finds_the_same_motion(swinging: tuple[ParticleStore, np.ndarray], latent: torch.Tensor) -> None:
    calls: list[tuple[int, int]] = []
    other = linear_latents(swinging[0], np.arange(400), SMALL, 2, 1, lambda *call: calls.append(call))
    # Axes may turn into one another; the space they span is that of the motion.
    assert torch.linalg.svdvals(latent.T @ other / 400).max() > 0.8
    assert calls[-1][0] == calls[-1][1]
