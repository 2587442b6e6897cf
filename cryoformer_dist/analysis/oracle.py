"""How well the state of a single image can be known at all: an oracle with the true maps and the true poses.

Per-image errors of a run are read beside the oracle's: what the noise hides from it, nothing can see. The most probable
state errs wildly where an image says nothing; the mean state, which stays in the middle then, errs least on average.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline
from scipy.stats import mode

from cryoformer_dist.analysis.latent import (
    balanced_accuracy,
    circular_correlation,
    find_neighbours,
    predict_class,
    predict_coordinate,
    rank_correlation,
)
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.truth import Truth, state_distance
from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.fourier import comparable_frequencies, to_real_vectors
from cryoformer_dist.physics.grids import half_plane_weight
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.slices import SplineSlices
from cryoformer_dist.runs.scores import OracleScores, StateErrors
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


_Errors = tuple[StateErrors, StateErrors | None, StateErrors, StateErrors]
"""Of the most probable state, of the mean state, of our linear prediction, by neighbours in latent space."""


def find_likelihood(
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
    match, products = _multiply(sample, volumes, whole=not discrete and len(volumes) >= _FEWEST_TO_INTERPOLATE)
    if products.ndim == 2:
        return Likelihood(volume_state, _fit_amplitudes(match, products))
    grid, mixing = _interpolate(volume_state, period)
    power = np.einsum("fk,bkl,fl->bf", mixing, products, mixing, optimize=True)
    return Likelihood(grid, _fit_amplitudes(match @ mixing.T, power))


def _fit_amplitudes(match: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Half of what the best amplitude of each projection, none below zero, takes off the squared error."""
    gain: np.ndarray = np.square(np.maximum(match, 0.0)) / np.maximum(power, 1e-30)
    return gain / 2


def _multiply(sample: CroppedImages, volumes: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
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
            predicted = to_real_vectors((projected * (block.transfer * weight)[:, None]).flatten(-2))
            observed = to_real_vectors((block.coefficients * weight).flatten(-2))
            part_match.append(torch.einsum("bkf,bf->bk", predicted, observed))
            products_here = predicted @ predicted.mT if whole else predicted.square().sum(-1)
            part_products.append(products_here)
        match.append(torch.cat(part_match))
        products.append(torch.cat(part_products))
    return torch.cat(match, dim=1).double().numpy(), torch.cat(products, dim=1).double().numpy()


def _interpolate(volume_state: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
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


def score_oracle(
    store: ParticleStore,
    truth: Truth,
    latents: Float[np.ndarray, "particles latent"],
    rows: Int[np.ndarray, " particles"],
    particles: int = ORACLE_PARTICLES,
    seed: int = 0,
) -> OracleScores:
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
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:particles])
    sample = sample_images(store, rows[chosen], truth)
    box = sample.coefficients.shape[-2]
    volumes = np.stack([fit_box(voxels, box) for voxels in truth.volumes])
    found = find_likelihood(sample, volumes, truth.volume_state, truth.period, truth.discrete)
    state = truth.state[store.particles().source_row[rows]]
    if truth.discrete:
        oracle, posterior, ours, neighbours = _measure_classes(found, latents, state, chosen)
    else:
        oracle, posterior, ours, neighbours = _measure_coordinates(found, latents, state, chosen, truth.period)
    return OracleScores(
        particles=len(chosen),
        box_size=box,
        references=len(volumes),
        oracle=oracle,
        posterior=posterior,
        ours=ours,
        neighbours=neighbours,
        error_ratio=ours.error / oracle.error if oracle.error else None,
        neighbours_error_ratio=neighbours.error / oracle.error if oracle.error else None,
    )


def _measure_classes(found: Likelihood, latents: np.ndarray, label: np.ndarray, chosen: np.ndarray) -> _Errors:
    here = label[chosen]
    commonest = mode(label[find_neighbours(latents, chosen)], axis=1).mode
    named = (found.most_probable(), predict_class(latents, label)[chosen], commonest)
    oracle, ours, neighbours = (StateErrors(class_accuracy=balanced_accuracy(each, here)) for each in named)
    return oracle, None, ours, neighbours


def _measure_coordinates(
    found: Likelihood, latents: np.ndarray, state: np.ndarray, chosen: np.ndarray, period: float
) -> _Errors:
    estimates = (
        found.most_probable(),
        found.mean(period),
        predict_coordinate(latents, state, period).predicted[chosen],
        average_states(state[find_neighbours(latents, chosen)], period),
    )
    span = float(np.ptp(state))
    oracle, posterior, ours, neighbours = (measure_errors(each, state[chosen], period, span) for each in estimates)
    return oracle, posterior, ours, neighbours


def average_states(states: Float[np.ndarray, "particles several"], period: float) -> Float[np.ndarray, " particles"]:
    """Mean of several states of each particle, the circular one for a period."""
    if not period:
        plain: np.ndarray = states.mean(axis=1)
        return plain
    turn = 2 * np.pi / period
    around: np.ndarray = np.mod(np.angle(np.exp(1j * turn * states).mean(axis=1)) / turn, period)
    return around


def measure_errors(
    estimated: Float[np.ndarray, " particles"], true: Float[np.ndarray, " particles"], period: float, span: float
) -> StateErrors:
    """Rank correlation and error of estimated states: an angle for a period, else a fraction of the range ``span``."""
    error = state_distance(estimated, true, period)
    if period:
        turn = 2 * np.pi / period
        return StateErrors(
            rank_correlation=circular_correlation(turn * estimated, turn * true),
            angle_error_deg=float(error.mean() * 360 / period),
        )
    return StateErrors(
        rank_correlation=rank_correlation(estimated, true),
        mean_absolute_error=float(error.mean() / span) if span else 0.0,
    )
