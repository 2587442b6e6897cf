import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.exploration import embedding
from cryoformer_dist.exploration.embedding import embed, place_among


def test_without_umap_it_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'cryoformer-dist\[umap\]'"):
        embed(np.zeros((5, 2), dtype=np.float32))


def test_a_sample_is_fitted_and_all_are_placed(monkeypatch) -> None:
    """A stand-in whose embedding is known: the first two dimensions, doubled."""
    seen = []

    class Stand:
        def __init__(self, random_state: int) -> None:
            self.seed = random_state

        def fit_transform(self, latents: np.ndarray) -> np.ndarray:
            seen.append(len(latents))
            return 2 * latents[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Stand))
    monkeypatch.setattr(embedding, "FITTED", 2000)
    latents = np.random.default_rng(0).uniform(size=(5000, 2)).astype(np.float32)
    placed = embed(latents)
    assert seen == [2000]
    np.testing.assert_allclose(placed, 2 * latents, atol=0.12)
    assert np.abs(placed - 2 * latents).mean() < 0.02


def test_those_that_were_fitted_stay_and_equal_latents_lie_together() -> None:
    latents = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    fitted = np.arange(8, dtype=np.float32).reshape(4, 2)
    placed = place_among(latents, np.array([0, 3, 6, 9]), fitted)
    np.testing.assert_allclose(placed, np.repeat(fitted, 3, axis=0), atol=0.01)


def test_real_umap_keeps_groups_apart() -> None:
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    group = np.arange(300) % 3
    latents = (10 * np.eye(3)[group] + rng.normal(size=(300, 3))).astype(np.float32)
    placed = embed(latents)
    middles = np.stack([placed[group == each].mean(axis=0) for each in range(3)])
    nearest = np.linalg.norm(placed[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == group).mean() > 0.98
