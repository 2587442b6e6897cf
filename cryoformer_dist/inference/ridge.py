"""Ridge regression in which every particle is predicted by the other ones, and how well."""

import numpy as np
from jaxtyping import Float

_FOLDS = 5
# In particles: features are standardised.
_PENALTY = 1.0


class Ridge:
    """Ridge regression on given features, ready for any targets.

    Parameters
    ----------
    features
        ``(particles, features)``: standardised here; those that do not vary predict nothing.
    """

    def __init__(self, features: Float[np.ndarray, "particles features"]) -> None:
        centred = features - features.mean(axis=0)
        spread = centred.std(axis=0)
        self._design = centred / np.where(spread > 1e-12, spread, np.inf)
        fold = np.random.default_rng(0).permutation(len(features)) % _FOLDS
        whole = self._design.T @ self._design
        penalty = _PENALTY * np.eye(whole.shape[0])
        self._members = [np.flatnonzero(fold == k) for k in range(_FOLDS)]
        parts = (self._design[rows] for rows in self._members)
        self._inverse = [np.linalg.inv(whole - part.T @ part + penalty) for part in parts]

    def predict(self, targets: Float[np.ndarray, "particles targets"]) -> Float[np.ndarray, "particles targets"]:
        """Each particle's targets as the fit to the other ones has them; means are fitted too."""
        predicted = np.empty(targets.shape)
        for rows, inverse in zip(self._members, self._inverse, strict=True):
            mean = (targets.sum(axis=0) - targets[rows].sum(axis=0)) / (len(targets) - len(rows))
            moment = self._design.T @ (targets - mean) - self._design[rows].T @ (targets[rows] - mean)
            predicted[rows] = mean + self._design[rows] @ (inverse @ moment)
        return predicted

    def explain(self, targets: Float[np.ndarray, "particles targets"]) -> Float[np.ndarray, " targets"]:
        """Share of each target's variance that is predicted; below 0 where the mean would have predicted better."""
        left = np.square(targets - self.predict(targets)).sum(axis=0)
        explained: np.ndarray = 1 - left / np.square(targets - targets.mean(axis=0)).sum(axis=0).clip(min=1e-30)
        return explained


def with_products(numbers: Float[np.ndarray, "particles numbers"]) -> Float[np.ndarray, "particles features"]:
    """The numbers, and the product of any two of them: a quadratic function is linear in these."""
    first, second = np.triu_indices(numbers.shape[1])
    return np.concatenate([numbers, numbers[:, first] * numbers[:, second]], axis=1)
