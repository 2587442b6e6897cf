import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cryoformer_dist.exploration.mixture import Mixture, choose_mixture

MEANS = np.array([[-3.0, 0, 0], [0, 0, 4], [3, 0, 0]])
WIDTHS = np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.3], [0.5, 0.5, 0.5]])
SHARES = np.array([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Latents of three Gaussians, and which of them each is of."""
    rng = np.random.default_rng(0)
    group = rng.choice(3, 3000, p=SHARES)
    return (MEANS[group] + WIDTHS[group] * rng.normal(size=(3000, 3))).astype(np.float32), group


def test_gaussians_are_found_again_and_counted_by_the_data(drawn) -> None:
    latents, group = drawn
    found = choose_mixture(latents, 5)
    assert len(found.criterion) == 5
    assert len(found.best) == 3
    np.testing.assert_allclose(found.best.mean, MEANS, atol=0.12)
    np.testing.assert_allclose(found.best.share, SHARES, atol=0.03)
    np.testing.assert_allclose(np.sqrt(np.diagonal(found.best.covariance, axis1=1, axis2=2)), WIDTHS, rtol=0.12)
    label, probability = found.best.assign(latents)
    assert (label == group).mean() > 0.98
    # Who is surely of a group is rarely of another; who is not sure is between two.
    assert (label == group)[probability > 0.99].mean() > 0.995
    assert ((probability >= 1 / 3) & (probability <= 1)).all()


def test_one_cloud_is_one_gaussian() -> None:
    latents = np.random.default_rng(1).normal(size=(2000, 2)).astype(np.float32)
    assert len(choose_mixture(latents, 4).best) == 1


def test_the_density_is_that_of_the_textbook() -> None:
    covariance = np.array([[[2.0, 0.5], [0.5, 1.0]]])
    mixture = Mixture(np.array([1.0]), np.array([[1.0, -1.0]]), covariance)
    places = np.random.default_rng(2).normal(size=(7, 2))
    expected = multivariate_normal([1.0, -1.0], covariance[0]).logpdf(places)
    np.testing.assert_allclose(mixture.log_density(places)[:, 0], expected)


def test_few_or_equal_latents_do_no_harm() -> None:
    assert len(choose_mixture(np.zeros((40, 2), dtype=np.float32), 3).best) == 1
    assert len(choose_mixture(np.ones((1, 2), dtype=np.float32), 3).best) == 1
    with pytest.raises(ValueError, match="at least 1"):
        choose_mixture(np.ones((0, 2), dtype=np.float32), 3)
