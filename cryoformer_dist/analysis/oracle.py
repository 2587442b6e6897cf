"""How well the state of a single image can be known at all: an oracle with the true maps and the true poses.

Per-image errors of a run are read beside the oracle's: what the noise hides from it, nothing can see. The most probable
state errs wildly where an image says nothing; the mean state, which stays in the middle then, errs least on average.

Nobody has the true poses. The marginal oracle has the given ones and the truth about how far such poses err, and sums
over all that they may be: that is what a run can reach.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline
from scipy.special import rel_entr
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
from cryoformer_dist.analysis.truth import Truth, measure_spread, state_distance
from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.inference.marginal import find_posterior, fit_scale, mix_maps
from cryoformer_dist.physics.fourier import comparable_frequencies, to_real_vectors
from cryoformer_dist.physics.grids import half_plane_weight
from cryoformer_dist.physics.slices import SplineSlices
from cryoformer_dist.runs.image_scores import OracleScores, StateErrors
from cryoformer_dist.training.latent_search import LARGEST_BOX

ORACLE_PARTICLES = 500
_STEPS = 20
_FEWEST_TO_INTERPOLATE = 4
_BLOCK = 32
_STATES_AT_A_TIME = 16
_BATCH = 64
# Particles that say how states are shared.
_COUNTED = 20_000
# Poses off by more: a sum over what is near the given ones would miss the right ones.
_FARTHEST_RAD, _FARTHEST_PIXELS = 0.14, 3.0


def sample_images(store: ParticleStore, rows: Int[np.ndarray, " images"], truth: Truth) -> CroppedImages:
    """Images cropped to at most `LARGEST_BOX` pixels, at the poses they were made at."""
    source = store.particles().source_row[rows]
    return CroppedImages.of(store, rows, min(store.box_size, LARGEST_BOX), truth.pose(source))


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-likelihood of each state for each image, on a grid of states.

    Attributes
    ----------
    state
        ``(states,)``: the references, or a fine grid between and half a bin beyond them.
    log_likelihood
        ``(images, states)``, up to a constant per image, for unit noise.
    share
        ``(states,)``: of the particles in each; ``None``: all alike.
    """

    state: Float[np.ndarray, " states"]
    log_likelihood: Float[np.ndarray, "images states"]
    share: Float[np.ndarray, " states"] | None = None

    @property
    def probability(self) -> Float[np.ndarray, "images states"]:
        """Of each state, given the image and how many particles are in each."""
        relative = np.exp(self.log_likelihood - self.log_likelihood.max(axis=1, keepdims=True))
        relative *= 1.0 if self.share is None else self.share
        probability: np.ndarray = relative / relative.sum(axis=1, keepdims=True)
        return probability

    @property
    def nats(self) -> float:
        """What an image says about its state, mean over them."""
        share = np.full(len(self.state), 1 / len(self.state)) if self.share is None else self.share
        return float(rel_entr(self.probability, share).sum(axis=1).mean())

    def most_probable(self) -> Float[np.ndarray, " images"]:
        """State of the highest likelihood."""
        best: np.ndarray = self.state[self.log_likelihood.argmax(axis=1)]
        return best

    def mean(self, period: float) -> Float[np.ndarray, " images"]:
        """Mean state, the circular one for a period."""
        if not period:
            expected: np.ndarray = self.probability @ self.state
            return expected
        turn = 2 * np.pi / period
        around: np.ndarray = np.mod(np.angle(self.probability @ np.exp(1j * turn * self.state)) / turn, period)
        return around

    def width(self, period: float) -> Float[np.ndarray, " images"]:
        """Root mean squared distance of the states from their mean."""
        apart = state_distance(self.state, self.mean(period)[:, None], period)
        width: np.ndarray = np.sqrt((self.probability * np.square(apart)).sum(axis=1))
        return width


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
    between = _lie_between(volume_state, discrete)
    match, products = _multiply(sample, volumes, whole=between)
    if not between:
        return Likelihood(volume_state, _fit_amplitudes(match, products))
    grid, mixing = _interpolate(volume_state, period)
    power = np.einsum("fk,bkl,fl->bf", mixing, products, mixing, optimize=True)
    return Likelihood(grid, _fit_amplitudes(match @ mixing.T, power))


def _lie_between(volume_state: np.ndarray, discrete: bool) -> bool:
    """Whether states are taken to lie between the references too."""
    return not discrete and len(volume_state) >= _FEWEST_TO_INTERPOLATE


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
    found = replace(found, share=find_shares(found.state, state, truth.period, truth.discrete))
    measure = _measure_classes if truth.discrete else _measure_coordinates
    oracle, posterior, ours, neighbours = measure(found, latents, state, chosen, truth.period)
    spread = measure_spread(truth, store.particles(), rows)
    marginal = (
        None if _go_too_far(spread, store) else sum_over_poses(store, truth, rows[chosen], volumes, found, spread)
    )
    return OracleScores(
        particles=len(chosen),
        box_size=box,
        references=len(volumes),
        nats=found.nats,
        oracle=oracle,
        posterior=posterior,
        marginal=None if marginal is None else _measure_marginal(marginal, state, chosen, truth),
        marginal_nats=None if marginal is None else marginal.nats,
        marginal_z=None if marginal is None or truth.discrete else _measure_z(marginal, state[chosen], truth.period),
        given_pose_error_deg=float(np.rad2deg(spread.rotation_rad)),
        given_pose_error_angstrom=spread.shift_angstrom,
        ours=ours,
        neighbours=neighbours,
        error_ratio=ours.error / oracle.error if oracle.error else None,
        neighbours_error_ratio=neighbours.error / oracle.error if oracle.error else None,
    )


def find_shares(
    grid: Float[np.ndarray, " states"], state: Float[np.ndarray, " particles"], period: float, discrete: bool
) -> Float[np.ndarray, " states"]:
    """Share of the particles in each state of a grid; none of it is empty."""
    some = state[:: stride_for(len(state), _COUNTED)]
    nearest = state_distance(some[:, None], grid[None], period).argmin(axis=1)
    count = np.bincount(nearest, minlength=len(grid)).astype(np.float64)
    if not discrete and len(grid) > _STEPS:
        # As fine as the grid, chance alone would leave gaps.
        padded = np.pad(count, _STEPS, mode="wrap" if period else "symmetric")
        count = np.convolve(padded, np.ones(_STEPS) / _STEPS, mode="same")[_STEPS:-_STEPS]
    count += 1e-3 * count.mean()
    share: np.ndarray = count / count.sum()
    return share


def _go_too_far(spread: Spread, store: ParticleStore) -> bool:
    """Whether poses err by more than slopes of images at them can tell."""
    return spread.rotation_rad > _FARTHEST_RAD or spread.shift_angstrom > _FARTHEST_PIXELS * store.pixel_size_angstrom


def sum_over_poses(
    store: ParticleStore,
    truth: Truth,
    rows: Int[np.ndarray, " images"],
    volumes: Float[np.ndarray, "states box box box"],
    known: Likelihood,
    spread: Spread,
) -> Likelihood:
    """What images say with poses as given, all that these may be summed over.

    Parameters
    ----------
    store, truth, rows
        Images, and what is true of them.
    volumes
        References at the box that is compared.
    known
        The grid of states, and their shares.
    spread
        Of poses and amplitudes.
    """
    count = len(known.state)
    mixing = _interpolate(truth.volume_state, truth.period)[1] if count > len(volumes) else np.eye(count)
    assert known.share is not None
    make = partial(
        mix_maps,
        mixing=torch.from_numpy(mixing).float(),
        share=torch.from_numpy(known.share).float(),
        pixel_size_angstrom=store.pixel_size_angstrom,
        box=store.box_size,
    )
    maps = torch.from_numpy(volumes)
    source = store.particles().source_row[rows]
    right = store.with_pose(rows, truth.pose(source))
    shown = state_distance(truth.state[source][:, None], known.state[None], truth.period).argmin(axis=1)
    parts = (torch.from_numpy(shown[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
    scale = fit_scale(make(maps), _read_batches(right, rows), parts)
    found = find_posterior(make(maps * scale), _read_batches(store, rows), spread)
    # Shares are in it.
    log_likelihood = found.clamp_min(1e-30).double().log().numpy() - np.log(known.share)
    return Likelihood(known.state, log_likelihood, known.share)


def _read_batches(store: ParticleStore, rows: np.ndarray) -> Iterator[ParticleBatch]:
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        yield make_batch(ImageBlock(store.read_images(some), some, np.zeros_like(some)), store.particles())


def _measure_marginal(found: Likelihood, state: np.ndarray, chosen: np.ndarray, truth: Truth) -> StateErrors:
    if truth.discrete:
        named = found.state[found.probability.argmax(axis=1)]
        return StateErrors(class_accuracy=balanced_accuracy(named, state[chosen]))
    return measure_errors(found.mean(truth.period), state[chosen], truth.period, float(np.ptp(state)))


def _measure_z(found: Likelihood, state: np.ndarray, period: float) -> float:
    error = state_distance(found.mean(period), state, period)
    return float(np.sqrt(np.square(error / found.width(period).clip(min=1e-12)).mean()))


def _measure_classes(
    found: Likelihood, latents: np.ndarray, label: np.ndarray, chosen: np.ndarray, _: float
) -> _Errors:
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
