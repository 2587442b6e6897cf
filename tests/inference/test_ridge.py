import numpy as np
import pytest

from cryoformer_dist.inference.ridge import Ridge, with_products


def test_products_are_all_there_once():
    np.testing.assert_array_equal(with_products(np.array([[2.0, 3.0]])), [[2, 3, 4, 6, 9]])


def test_noise_is_not_predicted_however_many_features_there_are():
    rng = np.random.default_rng(0)
    explained = Ridge(rng.normal(size=(400, 60))).explain(rng.normal(size=(400, 3)))
    assert (explained < 0.05).all()


def test_what_features_hold_is_predicted_and_constant_ones_do_no_harm():
    rng = np.random.default_rng(1)
    features = np.concatenate([rng.normal(size=(500, 3)), np.full((500, 1), 1e6)], axis=1)
    targets = features[:, :2] @ rng.normal(size=(2, 2)) + 7 + 0.1 * rng.normal(size=(500, 2))
    assert Ridge(features).explain(targets) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(Ridge(features).predict(targets).mean(axis=0), targets.mean(axis=0), atol=0.05)
