"""What the latents say: principal axes, clusters, paths, and how well they order a known coordinate."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from cryoformer_dist.initialization.clustering import find_clusters
from cryoformer_dist.physics.grids import CPU
from cryoformer_dist.runs.scores import LatentScores

PREDICTION_DIMENSIONS = 10
"""Linear prediction uses at most this many principal coordinates, so that wide latents do not overfit."""
NEIGHBOURS = 20
"""Particles whose states stand for that of one in their midst."""
_FOLDS = 5
_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class PrincipalAxes:
    """The principal axes of a latent cloud.

    Attributes
    ----------
    mean
        ``(latent,)``.
    axes
        ``(axes, latent)`` orthonormal rows, largest variance first, their largest entry positive.
    explained_variance
        ``(axes,)`` share of the total variance, all zero when the latents do not vary.
    """

    mean: Float[np.ndarray, " latent"]
    axes: Float[np.ndarray, "axes latent"]
    explained_variance: Float[np.ndarray, " axes"]

    def project(self, latents: Float[np.ndarray, "particles latent"]) -> Float[np.ndarray, "particles axes"]:
        """Coordinates of the latents along the axes, in latent units."""
        coordinates: np.ndarray = (latents - self.mean) @ self.axes.T
        return coordinates

    def lift(self, coordinates: Float[np.ndarray, "points axes"]) -> Float[np.ndarray, "points latent"]:
        """Latents at given coordinates; inverse of `project` on the plane of the axes."""
        latents: np.ndarray = self.mean + coordinates @ self.axes
        return latents


@dataclass(frozen=True, slots=True)
class Clusters:
    """K-means clusters, numbered along the first principal axis.

    Attributes
    ----------
    centres
        ``(clusters, latent)`` the latents of real particles, each the nearest to its cluster's mean.
    centre_row
        ``(clusters,)`` rows of those particles.
    label
        ``(particles,)`` cluster of every particle.
    """

    centres: Float[np.ndarray, "clusters latent"]
    centre_row: Int[np.ndarray, " clusters"]
    label: Int[np.ndarray, " particles"]


@dataclass(frozen=True, slots=True)
class CoordinatePrediction:
    """How well a linear map of the latents predicts a coordinate in particles it was not fitted to.

    Attributes
    ----------
    predicted
        ``(particles,)`` in the coordinate's unit.
    rank_correlation
        Spearman's; for a periodic coordinate the circular correlation of `circular_correlation`.
    angle_error_deg
        Mean absolute error as an angle, chance = 90; None for a coordinate that is not periodic.
    """

    predicted: Float[np.ndarray, " particles"]
    rank_correlation: float
    angle_error_deg: float | None


def find_principal_axes(latents: Float[np.ndarray, "particles latent"], count: int | None = None) -> PrincipalAxes:
    """Principal axes of the latents, the same for any order of the particles.

    Raises
    ------
    ValueError
        If a latent is not finite (the training diverged: resume from an earlier checkpoint) or there is none.
    """
    if not len(latents) or not np.isfinite(latents).all():
        raise ValueError("latents are empty or not finite: resume the training from an earlier checkpoint")
    mean = latents.mean(axis=0, dtype=np.float64)
    centred = latents - mean
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(latents))
    order = np.argsort(variance)[::-1][:count]
    axes = vectors.T[order]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    total = variance.clip(min=0).sum()
    share = variance[order].clip(min=0) / total if total > 0 else np.zeros(len(order))
    return PrincipalAxes(mean, axes, share)


def kmeans(
    latents: Float[np.ndarray, "particles latent"], count: int, seed: int = 0, device: torch.device = CPU
) -> Clusters:
    """K-means (k-means++ start, fixed seed, on a device) whose centres are real particles.

    Fewer clusters come back when there are fewer distinct latents than asked for.

    Raises
    ------
    ValueError
        If ``count`` is below 1 or the latents are not finite.
    """
    if count < 1:
        raise ValueError(f"cannot make {count} clusters: ask for at least 1")
    axis = find_principal_axes(latents, 1)
    distinct = len(np.unique(latents, axis=0))
    label: np.ndarray
    if distinct <= count:
        _, rows, label = np.unique(latents, axis=0, return_index=True, return_inverse=True)
    else:
        found = find_clusters(torch.from_numpy(latents.astype(np.float64)).to(device), count, seed, _ROUNDS)
        means, (names, label) = found.centre.cpu().numpy(), np.unique(found.label.cpu().numpy(), return_inverse=True)
        rows = np.array([_find_nearest_member(latents, label == k, means[name]) for k, name in enumerate(names)])
    order = np.argsort(axis.project(latents[rows])[:, 0], kind="stable")
    renumbered = np.empty(len(order), dtype=np.int64)
    renumbered[order] = np.arange(len(order))
    return Clusters(latents[rows[order]], rows[order], renumbered[label.ravel()])


def _find_nearest_member(latents: np.ndarray, member: np.ndarray, mean: np.ndarray) -> int:
    rows = np.flatnonzero(member)
    return int(rows[np.square(latents[rows] - mean).sum(axis=1).argmin()])


def walk_axis(
    latents: Float[np.ndarray, "particles latent"], axes: PrincipalAxes, axis: int, count: int
) -> Float[np.ndarray, "count latent"]:
    """Latents evenly spaced along a principal axis through the mean, from the 5th to the 95th percentile."""
    along = axes.project(latents)[:, axis]
    low, high = np.percentile(along, (5.0, 95.0))
    coordinates = np.zeros((count, len(axes.axes)))
    coordinates[:, axis] = np.linspace(low, high, count)
    return axes.lift(coordinates).astype(latents.dtype)


def circular_correlation(
    first_radians: Float[np.ndarray, " samples"], second_radians: Float[np.ndarray, " samples"]
) -> float:
    """Correlation of two angles: 1 when equal up to a constant, -1 when mirrored, about 0 when independent.

    Notes
    -----
    The signed root of Fisher and Lee's coefficient (Biometrika 70, 1983), which needs no mean direction and
    so is defined on the full circle; the root puts it on the scale of a linear correlation. For uniform
    angles it is the length of ``mean exp(i (first - second))``.
    """
    difference = np.abs(np.exp(1j * (first_radians - second_radians)).mean()) ** 2
    total = np.abs(np.exp(1j * (first_radians + second_radians)).mean()) ** 2
    spread_first = 1 - np.abs(np.exp(2j * first_radians).mean()) ** 2
    spread_second = 1 - np.abs(np.exp(2j * second_radians).mean()) ** 2
    scale = np.sqrt(spread_first * spread_second)
    # Below this the angles agree to single precision and there is nothing to correlate.
    if scale < 1e-12:
        return 0.0
    squared = float((difference - total) / scale)
    return float(np.sign(squared) * np.sqrt(min(abs(squared), 1.0)))


def correlation(first: Real[np.ndarray, " samples"], second: Real[np.ndarray, " samples"]) -> float:
    """Pearson's; 0 when either side does not vary or is empty."""
    if not len(first):
        return 0.0
    a, b = first - first.mean(dtype=np.float64), second - second.mean(dtype=np.float64)
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-12 else 0.0


def rank_correlation(first: Real[np.ndarray, " samples"], second: Real[np.ndarray, " samples"]) -> float:
    """Spearman's rank correlation; 0 when either side does not vary or is empty."""
    return correlation(rankdata(first), rankdata(second))


def predict_coordinate(
    latents: Float[np.ndarray, "particles latent"],
    coordinate: Real[np.ndarray, " particles"],
    period: float = 0.0,
) -> CoordinatePrediction:
    """Cross-validated linear prediction of a coordinate: 1 for latents linear in it, about 0 for unrelated.

    Parameters
    ----------
    latents, coordinate
        One row and one value per particle.
    period
        0 for a line; else the coordinate's period, and cosine and sine are predicted.
    """
    if not period:
        predicted = _predict_out_of_fold(latents, coordinate[:, None].astype(np.float64))[:, 0]
        return CoordinatePrediction(predicted, rank_correlation(predicted, coordinate), None)
    angle = coordinate.astype(np.float64) * (2 * np.pi / period)
    fitted = _predict_out_of_fold(latents, np.stack([np.cos(angle), np.sin(angle)], axis=1))
    predicted = np.arctan2(fitted[:, 1], fitted[:, 0])
    error = np.abs(np.angle(np.exp(1j * (predicted - angle))))
    return CoordinatePrediction(
        np.mod(predicted, 2 * np.pi) * (period / (2 * np.pi)),
        circular_correlation(predicted, angle),
        float(np.rad2deg(error.mean())),
    )


def standardise(latents: np.ndarray) -> np.ndarray:
    """At most `PREDICTION_DIMENSIONS` principal coordinates of unit variance, those left out that do not vary."""
    coordinates = find_principal_axes(latents, PREDICTION_DIMENSIONS).project(latents)
    spread = coordinates.std(axis=0)
    keep = spread > 1e-6 * max(float(spread.max()), 1e-30)
    standardised: np.ndarray = coordinates[:, keep] / spread[keep]
    return standardised


def _predict_out_of_fold(latents: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares on standardised principal coordinates, every particle predicted by the other, random folds."""
    design = np.concatenate([standardise(latents), np.ones((len(latents), 1))], axis=1)
    fold = np.random.default_rng(0).permutation(len(latents)) % _FOLDS
    predicted = np.zeros_like(target)
    for k in range(_FOLDS):
        weights = np.linalg.lstsq(design[fold != k], target[fold != k], rcond=None)[0]
        predicted[fold == k] = design[fold == k] @ weights
    return predicted


def find_neighbours(
    latents: Float[np.ndarray, "particles latent"], rows: Int[np.ndarray, " chosen"], count: int = NEIGHBOURS
) -> Int[np.ndarray, "chosen neighbours"]:
    """Rows of the particles whose latents lie nearest to those of some rows, these themselves left out.

    Distances are taken between standardised principal coordinates, as many as the linear prediction uses.
    """
    design = standardise(latents)
    if not design.shape[1]:
        design = np.zeros((len(latents), 1))
    count = min(count, len(latents) - 1)
    found = np.asarray(cKDTree(design).query(design[rows], k=count + 1)[1])
    others = found != rows[:, None]
    # Where latents coincide, a particle need not be the nearest to itself.
    others[others.all(axis=1), -1] = False
    nearest: np.ndarray = found[others].reshape(len(rows), count)
    return nearest


def balanced_accuracy(named: Real[np.ndarray, " particles"], label: Real[np.ndarray, " particles"]) -> float:
    """Share of each class's particles that are named rightly, mean over the classes.

    Chance is 1 / classes however unequally they are filled; plain shares reward naming everything as the largest.
    """
    return float(np.mean([(named[label == value] == value).mean() for value in np.unique(label)]))


def predict_class(
    latents: Float[np.ndarray, "particles latent"], label: Real[np.ndarray, " particles"]
) -> Real[np.ndarray, " particles"]:
    """Class that a linear classifier fitted to the other folds names for each particle, no class expected more."""
    classes, index, count = np.unique(label, return_inverse=True, return_counts=True)
    score = _predict_out_of_fold(latents, (np.eye(len(classes)) / count)[index])
    named: np.ndarray = classes[score.argmax(axis=1)]
    return named


def cluster_class_accuracy(cluster: Int[np.ndarray, " particles"], label: Int[np.ndarray, " particles"]) -> float:
    """`balanced_accuracy` under the best one-to-one mapping of clusters to classes."""
    _, rows = np.unique(cluster, return_inverse=True)
    classes, columns, count = np.unique(label, return_inverse=True, return_counts=True)
    table = np.zeros((rows.max() + 1, len(classes)))
    np.add.at(table, (rows, columns), 1)
    shares = table / count
    return float(shares[linear_sum_assignment(shares, maximize=True)].sum() / len(classes))


def score_latents(
    latents: Float[np.ndarray, "particles latent"],
    state: Float[np.ndarray, " particles"],
    period: float,
    discrete: bool,
) -> LatentScores:
    """How well the latents order the states.

    Classes have no order; there it is the cross-validated accuracy of naming the class, rescaled to chance 0.
    """
    if discrete:
        _, label = np.unique(state, return_inverse=True)
        classes = int(label.max()) + 1
        accuracy = balanced_accuracy(predict_class(latents, label), label)
        return LatentScores(
            latent_rank_correlation=(accuracy * classes - 1) / max(classes - 1, 1),
            class_accuracy=accuracy,
            cluster_accuracy=cluster_class_accuracy(kmeans(latents, classes).label, label),
        )
    prediction = predict_coordinate(latents, state, period)
    if prediction.angle_error_deg is not None:
        return LatentScores(prediction.rank_correlation, angle_error_deg=prediction.angle_error_deg)
    span = float(np.ptp(state))
    error = float(np.abs(prediction.predicted - state).mean())
    return LatentScores(prediction.rank_correlation, mean_absolute_error=error / span if span else 0.0)
