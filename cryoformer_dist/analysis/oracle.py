"""How well the state of a single image can be known at all: an oracle with the true maps and the true poses.

Per-image errors of a run are read beside the oracle's: what the noise hides from it, nothing can see. The most probable
state errs wildly where an image says nothing; the mean state, which stays in the middle then, errs least on average.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline
from scipy.stats import mode
from torch import Tensor

from cryoformer_dist.analysis.latent import (
    balanced_accuracy,
    circular_correlation,
    nearest_neighbours,
    predict_class,
    predict_coordinate,
    rank_correlation,
)
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.truth import Truth, state_distance
from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.fourier import comparable_frequencies
from cryoformer_dist.physics.grids import half_plane_weight
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.slices import SplineSlices
from cryoformer_dist.training.latent_search import LARGEST_BOX

ORACLE_PARTICLES = 500
_STEPS = 20
_FEWEST_TO_INTERPOLATE = 4
_BLOCK = 32
_STATES_AT_A_TIME = 16


def sample_images(store: ParticleStore, rows: Int[np.ndarray, " images"], truth: Truth) -> CroppedImages:
    """Images cropped to at most `LARGEST_BOX` pixels, at the poses they were made at."""
    source = store.particles().source_row[rows]
    pose = Pose(torch.from_numpy(truth.rotation[source]), torch.from_numpy(truth.shift_angstrom[source]))
    return CroppedImages.of(store, rows, min(store.box_size, LARGEST_BOX), pose)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-likelihood of each state for each image, on a grid of states.

    Attributes
    ----------
    state
        ``(states,)``: the references, or a fine grid between and half a bin beyond them.
    log_likelihood
        ``(images, states)``, up to a constant per image, for unit noise.
    """

    state: Float[np.ndarray, " states"]
    log_likelihood: Float[np.ndarray, "images states"]

    def most_probable(self) -> Float[np.ndarray, " images"]:
        """State of the highest likelihood."""
        best: np.ndarray = self.state[self.log_likelihood.argmax(axis=1)]
        return best

    def mean(self, period: float) -> Float[np.ndarray, " images"]:
        """Mean state under the likelihood (all states alike beforehand), the circular one for a period."""
        weight = np.exp(self.log_likelihood - self.log_likelihood.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        if not period:
            expected: np.ndarray = weight @ self.state
            return expected
        turn = 2 * np.pi / period
        around: np.ndarray = np.mod(np.angle(weight @ np.exp(1j * turn * self.state)) / turn, period)
        return around


def state_likelihood(
    sample: CroppedImages,
    volumes: Float[np.ndarray, "states box box box"],
    volume_state: Float[np.ndarray, " states"],
    period: float,
    discrete: bool,
) -> Likelihood:
    """Compare images with the projections of every reference map at the true pose.

    The error is the squared difference over the pixels of the real image (Parseval on the half plane, the weights of
    `mean_squared_error_half_plane` with `comparable_frequencies`). The amplitude of each image is fitted, as its
    normalisation depends on how much of the molecule lies on its background.

    Between references the maps follow cubic splines in the coordinate, so that the error there is known from the
    products of the references' projections; it is taken at `_STEPS` points per bin. On noise-free images of a hinge
    this leaves a fortieth of a bin where a parabola through the errors of three neighbours leaves a sixth. With fewer
    than four references, and for classes, only the references themselves are compared.
    """
    match, products = _products(sample, volumes, whole=not discrete and len(volumes) >= _FEWEST_TO_INTERPOLATE)
    if products.ndim == 2:
        return Likelihood(volume_state, _profile(match, products))
    grid, mixing = _interpolation(volume_state, period)
    power = np.einsum("fk,bkl,fl->bf", mixing, products, mixing, optimize=True)
    return Likelihood(grid, _profile(match @ mixing.T, power))


def _profile(match: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Half of what the best amplitude of each projection, none below zero, takes off the squared error."""
    gain: np.ndarray = np.square(np.maximum(match, 0.0)) / np.maximum(power, 1e-30)
    return gain / 2


def _products(sample: CroppedImages, volumes: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Products of images and projections, and of the projections with one another (or with themselves)."""
    box = sample.coefficients.shape[-2]
    weight = (comparable_frequencies(box) * half_plane_weight(box)).sqrt() / box
    step = len(volumes) if whole else _STATES_AT_A_TIME
    match, products = [], []
    for first in range(0, len(volumes), step):
        slices = SplineSlices(torch.from_numpy(volumes[first : first + step]))
        part_match, part_products = [], []
        for _, block in sample.blocks(_BLOCK):
            projected = slices.project(block.rotation, block.shift_pixels)
            predicted = _as_vectors(projected * (block.transfer * weight)[:, None])
            observed = _as_vectors(block.coefficients * weight)
            part_match.append(torch.einsum("bkf,bf->bk", predicted, observed))
            products_here = predicted @ predicted.mT if whole else predicted.square().sum(-1)
            part_products.append(products_here)
        match.append(torch.cat(part_match))
        products.append(torch.cat(part_products))
    return torch.cat(match, dim=1).double().numpy(), torch.cat(products, dim=1).double().numpy()


def _as_vectors(coefficients: Tensor) -> Tensor:
    return torch.view_as_real(coefficients).flatten(start_dim=-3)


def _interpolation(volume_state: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Fine grid of states, and the weights ``(fine, references)`` of the references at each."""
    order = np.argsort(volume_state)
    knots = volume_state[order]
    unit = np.eye(len(knots))
    if period:
        grid = knots[0] + np.arange(len(knots) * _STEPS) * period / (len(knots) * _STEPS)
        closed = np.append(knots, knots[0] + period)
        spline = CubicSpline(closed, np.vstack([unit, unit[:1]]), bc_type="periodic")
        mixing, grid = spline(grid), np.mod(grid, period)
    else:
        low, high = (knots[1] - knots[0]) / 2, (knots[-1] - knots[-2]) / 2
        grid = np.linspace(knots[0] - low, knots[-1] + high, len(knots) * _STEPS + 1)
        mixing = CubicSpline(knots, unit)(grid)
    return grid, mixing[:, np.argsort(order)]


def oracle_metrics(
    store: ParticleStore,
    truth: Truth,
    latents: Float[np.ndarray, "particles latent"],
    rows: Int[np.ndarray, " particles"],
    particles: int = ORACLE_PARTICLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Errors of the oracle and of a run's latents on the same sample of images.

    Parameters
    ----------
    store
        The images.
    truth
        Reference maps, states and poses.
    latents, rows
        One row per trained particle; ``rows`` are store rows.
    particles, seed
        Size and seed of the sample.

    Returns
    -------
    metrics
        ``rank_correlation`` with ``angle_error_deg`` (periodic) or ``mean_absolute_error`` (a fraction of the range),
        or ``class_accuracy``: of the most probable state; with the prefix ``posterior_`` of the mean state; with
        ``ours_`` of the cross-validated linear prediction from the latents; with ``neighbours_`` of the mean state (or
        the commonest class) of the particles nearest in latent space, which also sees a motion that runs along a
        curve. ``error_ratio`` and ``neighbours_error_ratio`` are these errors over that of the most probable state.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:particles])
    sample = sample_images(store, rows[chosen], truth)
    box = sample.coefficients.shape[-2]
    volumes = np.stack([fit_box(voxels, box) for voxels in truth.volumes])
    found = state_likelihood(sample, volumes, truth.volume_state, truth.period, truth.discrete)
    state = truth.state[store.particles().source_row[rows]]
    here = state[chosen]
    near = state[nearest_neighbours(latents, chosen)]
    if truth.discrete:
        estimates = {"": found.most_probable(), "ours_": predict_class(latents, state)[chosen]}
        estimates["neighbours_"] = mode(near, axis=1).mode
        scores = {prefix: {"class_accuracy": balanced_accuracy(named, here)} for prefix, named in estimates.items()}
        error = {prefix: 1 - scores[prefix]["class_accuracy"] for prefix in scores}
    else:
        estimates = {"": found.most_probable(), "posterior_": found.mean(truth.period)}
        estimates["ours_"] = predict_coordinate(latents, state, truth.period).predicted[chosen]
        estimates["neighbours_"] = mean_state(near, truth.period)
        span = float(np.ptp(state))
        scores = {
            prefix: coordinate_errors(estimated, here, truth.period, span) for prefix, estimated in estimates.items()
        }
        measure = "angle_error_deg" if truth.period else "mean_absolute_error"
        error = {prefix: scores[prefix][measure] for prefix in scores}
    ratios = {"error_ratio": "ours_", "neighbours_error_ratio": "neighbours_"}
    return {
        "particles": len(chosen),
        "box_size": box,
        "references": len(volumes),
        **{f"{prefix}{key}": value for prefix, scored in scores.items() for key, value in scored.items()},
        **{name: error[prefix] / error[""] if error[""] else None for name, prefix in ratios.items()},
    }


def mean_state(states: Float[np.ndarray, "particles several"], period: float) -> Float[np.ndarray, " particles"]:
    """Mean of several states of each particle, the circular one for a period."""
    if not period:
        plain: np.ndarray = states.mean(axis=1)
        return plain
    turn = 2 * np.pi / period
    around: np.ndarray = np.mod(np.angle(np.exp(1j * turn * states).mean(axis=1)) / turn, period)
    return around


def coordinate_errors(
    estimated: Float[np.ndarray, " particles"], true: Float[np.ndarray, " particles"], period: float, span: float
) -> dict[str, float]:
    """Rank correlation and error of estimated states: an angle for a period, else a fraction of the range ``span``."""
    error = state_distance(estimated, true, period)
    if period:
        turn = 2 * np.pi / period
        return {
            "rank_correlation": circular_correlation(turn * estimated, turn * true),
            "angle_error_deg": float(error.mean() * 360 / period),
        }
    return {
        "rank_correlation": rank_correlation(estimated, true),
        "mean_absolute_error": float(error.mean() / span) if span else 0.0,
    }
