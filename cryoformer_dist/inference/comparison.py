"""Images against the maps of many conformations, amplitude and small errors of the pose integrated out.

With x an image, y_c the prediction of conformation c at the pose at hand, J_c its slopes in five directions of the pose
(a rotation about each axis, a shift along two), a the particle's amplitude and theta the error of its pose,

    x = a (y_c + J_c theta) + noise,    a ~ N(1, s_a^2),    theta ~ N(given pose - pose at hand, diag(s^2)),

the noise white and of unit variance. All is linear and Gaussian, so the sum over amplitudes and poses is a formula. It
holds to first order in theta: the pose at hand moves to its posterior mean at every search, and the slopes are taken
there next time. Taking the best pose instead of the sum would follow the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.ranks import sum_over_ranks

DIRECTIONS = 5
"""In which a pose errs: rotations about x, y and z of the image, shifts along x and y."""
# Where the search for spreads begins.
_FIRST_ROTATION_RAD, _FIRST_SHIFT_PIXELS, _FIRST_AMPLITUDE = 0.02, 0.3, 0.1


@dataclass(frozen=True, slots=True)
class Spread:
    """How far particles depart from what is given, as standard deviations; 0: not at all.

    Attributes
    ----------
    rotation_rad
        Of the rotation about each axis, in radians.
    shift_angstrom
        Of the shift along each axis, in angstrom.
    amplitude
        Of the amplitude about 1.
    """

    rotation_rad: float = 0.0
    shift_angstrom: float = 0.0
    amplitude: float = 0.0

    @staticmethod
    def to_begin(pixel_size_angstrom: float, poses_err: bool, amplitudes_differ: bool) -> "Spread":
        """Where a search for spreads begins; 0 where nothing is looked for."""
        return Spread(
            rotation_rad=_FIRST_ROTATION_RAD if poses_err else 0.0,
            shift_angstrom=_FIRST_SHIFT_PIXELS * pixel_size_angstrom if poses_err else 0.0,
            amplitude=_FIRST_AMPLITUDE if amplitudes_differ else 0.0,
        )

    @property
    def moves_poses(self) -> bool:
        """Whether poses are in error at all."""
        return self.rotation_rad > 0 or self.shift_angstrom > 0

    def pose_precision(self, like: Tensor) -> Float[Tensor, " 5"]:
        """One over the variance in each direction of the pose, at most a number that fixes it."""
        deviation = torch.tensor([self.rotation_rad] * 3 + [self.shift_angstrom] * 2).to(like)
        return deviation.clamp_min(1e-6).square().reciprocal()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scalar products that decide how well each conformation explains each image, in units of the noise.

    Attributes
    ----------
    log_share
        ``(particles, conformations)``: of the particles, whatever the image.
    match, energy
        ``(particles, conformations)``: ``<x, y>`` and ``<y, y>``.
    slope_match, slope_cross
        ``(particles, conformations, 5)``: ``<J, x>`` and ``<J, y>``.
    slope_energy
        ``(particles, conformations, 5, 5)``: ``<J, J>``.
    given
        ``(particles, 5)``: the given pose as seen from the pose at hand.
    """

    log_share: Float[Tensor, "particles conformations"]
    match: Float[Tensor, "particles conformations"]
    energy: Float[Tensor, "particles conformations"]
    slope_match: Float[Tensor, "particles conformations 5"] | None = None
    slope_cross: Float[Tensor, "particles conformations 5"] | None = None
    slope_energy: Float[Tensor, "particles conformations 5 5"] | None = None
    given: Float[Tensor, "particles 5"] | None = None

    def keep_likely(self, spread: Spread, most: int) -> "Comparison":
        """The same with the most probable conformations of each image only."""
        explanation = explain(self, spread)
        best = (explanation.log_likelihood + self.log_share).topk(min(most, self.match.shape[1]), dim=1).indices
        kept = {}
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name != "given" and values is not None:
                index = best.reshape(*best.shape, *[1] * (values.ndim - 2))
                values = values.take_along_dim(index.expand(-1, -1, *values.shape[2:]), 1)
            kept[field.name] = values
        return Comparison(**kept)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How each conformation explains each image.

    Attributes
    ----------
    log_likelihood
        Up to a constant of each image, summed over amplitudes and poses.
    amplitude
        Posterior mean in that conformation.
    offset
        ``(particles, conformations, 5)``: posterior mean of the pose's error, from the pose at hand; ``None`` where
        poses were not to move.
    """

    log_likelihood: Float[Tensor, "particles conformations"]
    amplitude: Float[Tensor, "particles conformations"]
    offset: Float[Tensor, "particles conformations 5"] | None


def explain(comparison: Comparison, spread: Spread) -> Explanation:
    """Integrate over poses, then over amplitudes.

    Parameters
    ----------
    comparison
        Of images with conformations; without slopes the pose at hand is the particle's.
    spread
        Of poses and amplitudes.
    """
    match, energy, constant = comparison.match, comparison.energy, torch.zeros_like(comparison.match)
    if comparison.slope_energy is None:
        log_likelihood, amplitude = _integrate_amplitude(match, energy, spread.amplitude)
        return Explanation(log_likelihood, amplitude, None)
    slope_match, slope_cross, given = comparison.slope_match, comparison.slope_cross, comparison.given
    assert slope_match is not None
    assert slope_cross is not None
    assert given is not None
    precision = spread.pose_precision(match)
    # Seen from the given pose, the error has mean zero.
    moved = (comparison.slope_energy @ given[:, None, :, None])[..., 0]
    constant = constant + ((slope_match - moved / 2) * given[:, None]).sum(-1)
    match = match - (slope_cross * given[:, None]).sum(-1)
    slope_match = slope_match - moved
    factor = torch.linalg.cholesky_ex(comparison.slope_energy + torch.diag(precision))[0]
    both = torch.cholesky_solve(torch.stack([slope_match, slope_cross], dim=-1), factor)
    # What slopes explain is taken off everything else.
    constant = constant + (slope_match * both[..., 0]).sum(-1) / 2
    constant = constant - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + precision.log().sum() / 2
    match, energy = match - (slope_cross * both[..., 0]).sum(-1), energy - (slope_cross * both[..., 1]).sum(-1)
    log_likelihood, amplitude = _integrate_amplitude(match, energy, spread.amplitude)
    offset = given[:, None] + both[..., 0] - amplitude[..., None] * both[..., 1]
    return Explanation(log_likelihood + constant, amplitude, offset)


def _integrate_amplitude(match: Tensor, energy: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Log-likelihood with the amplitude integrated out, and its posterior mean."""
    fixed = match - energy / 2
    if not deviation:
        return fixed, torch.ones_like(fixed)
    variance = deviation**2
    sharpness = 1 + variance * energy
    gained = variance * (match - energy).square() / (2 * sharpness) - sharpness.log() / 2
    return fixed + gained, (variance * match + 1) / sharpness


# Candidates of the search for spreads: none, then steps of a factor of about 1.4.
_ROTATIONS_DEG = (0.0, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.1, 1.5, 2.1, 3.0, 4.2, 6.0, 8.0)
_SHIFTS_PIXELS = (0.0, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.6, 2.2)
_AMPLITUDES = (0.0, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25, 0.3, 0.4, 0.5)
_ROUNDS = 2
_CHANCE_NATS = 3.0
# Conformations of an image that are looked at: the others share next to nothing of its probability.
LIKELY = 16


def fit_spread(
    comparisons: Sequence[Comparison], pixel_size_angstrom: float, wanted: Spread, device: torch.device
) -> Spread:
    """The spread under which the images of all ranks together are most probable: see `find_spread`.

    Parameters
    ----------
    comparisons
        Of this rank's part of a sample, with slopes where poses may err; a rank may have none.
    pixel_size_angstrom, wanted
        As of `find_spread`.
    device
        Where ranks exchange sums.
    """
    return find_spread(lambda spread: _sum_evidence(comparisons, spread, device), pixel_size_angstrom, wanted)


def find_spread(
    evidence_of: Callable[[Spread], Float[Tensor, ""]], pixel_size_angstrom: float, wanted: Spread
) -> Spread:
    """The most probable spread, one of its three after the other.

    Parameters
    ----------
    evidence_of
        Log probability of this rank's images under a spread.
    pixel_size_angstrom
        Of the images.
    wanted
        What is to be found, and where to begin: where it is 0, 0 stays.
    """
    grids = {
        "rotation_rad": [value * torch.pi / 180 for value in _ROTATIONS_DEG],
        "shift_angstrom": [value * pixel_size_angstrom for value in _SHIFTS_PIXELS],
        "amplitude": list(_AMPLITUDES),
    }
    found = wanted
    for _ in range(_ROUNDS):
        for name, grid in grids.items():
            if getattr(wanted, name):
                tried = [replace(found, **{name: value}) for value in grid]
                evidence = sum_over_ranks(torch.stack([evidence_of(each) for each in tried]))
                # Of what is exact, chance alone would find some small spread every other time.
                evidence[0] += _CHANCE_NATS
                found = tried[int(evidence.argmax())]
    return found


def _sum_evidence(comparisons: Sequence[Comparison], spread: Spread, device: torch.device) -> Float[Tensor, ""]:
    total = torch.zeros((), dtype=torch.float64, device=device)
    for comparison in comparisons:
        explained = explain(comparison, spread).log_likelihood + comparison.log_share
        total += explained.logsumexp(dim=1).double().sum()
    return total
