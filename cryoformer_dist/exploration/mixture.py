"""A mixture of Gaussians: groups of latents of any width that may overlap, and how surely each particle is of one.

Expectation and maximisation, from k-means centres, with full covariances; their number by the Bayesian information
criterion. A library for it would be the largest dependency of the program.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from cryoformer_dist.analysis.latent import find_principal_axes
from cryoformer_dist.initialization.clustering import find_clusters

FITTED = 20_000
"""So many latents, drawn at random, are fitted to; all are then given their probabilities."""
_ROUNDS, _TOLERANCE_NATS = 200, 1e-4
_START_ROUNDS = 20
# Of the whole cloud's variance, the least of a component: no component shrinks onto one particle.
_LEAST_VARIANCE = 1e-3
_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Mixture:
    """Gaussians, numbered along the first principal axis, as clusters are.

    Attributes
    ----------
    share
        ``(components,)`` of all particles.
    mean, covariance
        ``(components, latent)`` and ``(components, latent, latent)``.
    """

    share: Float[np.ndarray, " components"]
    mean: Float[np.ndarray, "components latent"]
    covariance: Float[np.ndarray, "components latent latent"]

    def __len__(self) -> int:
        return int(self.share.size)

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""
        width: int = self.mean.shape[1]
        return len(self) * (1 + width + width * (width + 1) // 2) - 1

    def width_along(self, axes: Float[np.ndarray, "axes latent"]) -> Float[np.ndarray, " axes"]:
        """Standard deviation within a component along some directions, over all components."""
        within = np.einsum("c,cij->ij", self.share, self.covariance)
        width: np.ndarray = np.sqrt(np.einsum("ai,ij,aj->a", axes, within, axes))
        return width

    def log_density(self, latents: Float[np.ndarray, "particles latent"]) -> Float[np.ndarray, "particles components"]:
        """Logarithm of each component's share of the density at some latents."""
        parts = []
        for share, mean, covariance in zip(self.share, self.mean, self.covariance, strict=True):
            root = np.linalg.cholesky(covariance)
            away = solve_triangular(root, (latents - mean).T, lower=True, check_finite=False)
            scale = np.log(np.diag(root)).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            parts.append(np.log(share) - scale - 0.5 * np.square(away).sum(axis=0))
        return np.stack(parts, axis=1)

    def assign(
        self, latents: Float[np.ndarray, "particles latent"]
    ) -> tuple[Int[np.ndarray, " particles"], Float[np.ndarray, " particles"]]:
        """The component each particle is most probably of, and that probability."""
        label, probability = np.empty(len(latents), dtype=np.int64), np.empty(len(latents), dtype=np.float32)
        for start in range(0, len(latents), _BLOCK):
            part = slice(start, start + _BLOCK)
            log = self.log_density(latents[part].astype(np.float64))
            label[part] = log.argmax(axis=1)
            probability[part] = np.exp(log.max(axis=1) - logsumexp(log, axis=1))
        return label, probability


@dataclass(frozen=True, slots=True)
class MixtureChoice:
    """Mixtures of one Gaussian, of two, and so on, and the one that the latents ask for.

    Attributes
    ----------
    best
        Of the least criterion.
    criterion
        ``(tried,)`` Bayesian information criterion per particle, nats: less is better.
    """

    best: Mixture
    criterion: Float[np.ndarray, " tried"]


def choose_mixture(latents: Float[np.ndarray, "particles latent"], most: int, seed: int = 0) -> MixtureChoice:
    """Fit mixtures of 1 to ``most`` Gaussians to at most `FITTED` latents, and choose by the information criterion.

    Raises
    ------
    ValueError
        If there is no latent, or ``most`` is below 1.
    """
    if most < 1 or not len(latents):
        raise ValueError(f"cannot fit {most} Gaussians to {len(latents)} latents: ask for at least 1, of at least 1")
    drawn = np.random.default_rng(seed).permutation(len(latents))[:FITTED]
    points = latents[drawn].astype(np.float64)
    # No more than there are particles to tell their covariances apart.
    counts = range(1, max(1, min(most, len(points) // (2 * points.shape[1] + 2))) + 1)
    fits = [_fit(points, count, seed) for count in counts]
    criterion = np.array([_criterion(mixture, points) for mixture in fits])
    return MixtureChoice(fits[int(criterion.argmin())], criterion)


def _criterion(mixture: Mixture, points: np.ndarray) -> float:
    log_likelihood = float(logsumexp(mixture.log_density(points), axis=1).sum())
    return (mixture.parameters * float(np.log(len(points))) / 2 - log_likelihood) / len(points)


def _fit(points: np.ndarray, count: int, seed: int) -> Mixture:
    """The mixture at which expectation and maximisation stand still."""
    found = find_clusters(torch.from_numpy(points), count, seed, _START_ROUNDS)
    floor = _LEAST_VARIANCE * max(float(points.var(axis=0).mean()), 1e-12) * np.eye(points.shape[1])
    mixture, reached = _maximise(points, np.eye(count)[found.label.numpy()], floor), -np.inf
    for _ in range(_ROUNDS):
        log = mixture.log_density(points)
        total = logsumexp(log, axis=1)
        if total.mean() - reached < _TOLERANCE_NATS:
            break
        reached = float(total.mean())
        mixture = _maximise(points, np.exp(log - total[:, None]), floor)
    order = np.argsort(find_principal_axes(points, 1).project(mixture.mean)[:, 0])
    return Mixture(mixture.share[order], mixture.mean[order], mixture.covariance[order])


def _maximise(points: np.ndarray, member: np.ndarray, floor: np.ndarray) -> Mixture:
    """Share, mean and covariance of each component, given how far each particle is of it."""
    weight = member.sum(axis=0).clip(min=1e-9)
    mean = member.T @ points / weight[:, None]
    covariance = np.empty((len(weight), *floor.shape))
    for number in range(len(weight)):
        away = points - mean[number]
        covariance[number] = (away * member[:, number : number + 1]).T @ away / weight[number] + floor
    return Mixture(weight / weight.sum(), mean, covariance)
