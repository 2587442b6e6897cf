"""Part of a run's scores: what single images say, how surely, and what else than conformation shows in the latents."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryoformer_dist.storage.records import inline


@dataclass(frozen=True, slots=True)
class StateErrors:
    """How far estimated states of single images are off: a correlation and an error, or the accuracy of classes.

    Attributes
    ----------
    rank_correlation
        Of estimated and true states.
    angle_error_deg
        For a full turn.
    mean_absolute_error
        For a path, as a share of the range.
    class_accuracy
        Share of each class named rightly, mean over the classes.
    """

    rank_correlation: float | None = None
    angle_error_deg: float | None = None
    mean_absolute_error: float | None = None
    class_accuracy: float | None = None

    @property
    def error(self) -> float:
        """What is 0 at best."""
        if self.class_accuracy is not None:
            return 1 - self.class_accuracy
        error = self.angle_error_deg if self.mean_absolute_error is None else self.mean_absolute_error
        assert error is not None
        return error


@dataclass(frozen=True, slots=True)
class OracleScores:
    """What can be known of single images, found with the true maps, beside what the latents say of them.

    Attributes
    ----------
    particles, box_size, references
        Images asked, their size, and true maps they were compared with.
    nats
        What an image says about its state at its true pose, mean.
    oracle
        The most probable state, at the true pose.
    posterior
        The oracle's mean state; not for classes.
    marginal, marginal_nats
        The same for an oracle that knows the poses as they are given and by how much such poses err, and sums over
        them; ``None`` where that is more than such a sum can bridge.
    marginal_z
        Root mean square of its errors over the widths of its posterior: 1 where it knows what it knows.
    given_pose_error_deg, given_pose_error_angstrom
        Standard deviation of the given poses' errors, about and along each axis.
    ours
        The cross-validated linear prediction from the latents.
    neighbours
        The mean state (or commonest class) of the particles nearest in latent space.
    error_ratio, neighbours_error_ratio
        Errors of ``ours`` and ``neighbours`` over that of the oracle; ``None`` where that makes none.
    """

    particles: int
    box_size: int
    references: int
    nats: float
    oracle: StateErrors = field(metadata=inline())
    posterior: StateErrors | None = field(metadata=inline("posterior_"))
    marginal: StateErrors | None = field(metadata=inline("marginal_"))
    marginal_nats: float | None
    marginal_z: float | None
    given_pose_error_deg: float
    given_pose_error_angstrom: float
    ours: StateErrors = field(metadata=inline("ours_"))
    neighbours: StateErrors = field(metadata=inline("neighbours_"))
    error_ratio: float | None
    neighbours_error_ratio: float | None


@dataclass(frozen=True, slots=True)
class OtherCause:
    """Something about an image that is not its conformation, and how far it goes with the latents.

    Attributes
    ----------
    name
        One of `inference.other_causes.Cause`.
    explained
        Share of the latents' variance that it predicts in particles left out of the fit; 0 at least.
    floor
        What chance explains: the most of 20 random deals of it among the particles.
    axis, axis_explained
        Principal axis of the latents, from 1, that it predicts best of those that hold a hundredth of the variance or
        more, and the share of that axis' variance.
    told
        The other way round: share of its own variance that the latents predict; ``None`` where it is a name.
    """

    name: str
    explained: float
    floor: float
    axis: int
    axis_explained: float
    told: float | None


@dataclass(frozen=True, slots=True)
class OtherCauses:
    """What else than conformation explains the latents.

    Attributes
    ----------
    particles
        So many were looked at.
    causes
        One by one.
    true_contrast
        Share of the variance of the true log contrast that the latents predict; ``None`` where the truth has none.
    """

    particles: int
    causes: tuple[OtherCause, ...]
    true_contrast: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether latents are as well known as the run says.

    Attributes
    ----------
    particles
        Looked at.
    z
        Root mean square of (predicted state - true one) / width of the prediction: 1 is calibrated, above it the run
        is surer than it may be.
    within_width
        Share of the particles whose error is no larger than the width: .68 is calibrated.
    width, error
        Median width and error, in units of the state.
    nats_claimed
        What the run says an image says about its conformation, at its last search; ``None`` where there was none.
    """

    particles: int
    z: float
    within_width: float
    width: float
    error: float
    nats_claimed: float | None


@dataclass(frozen=True, slots=True)
class JunkFound:
    """How well the weights tell particles from what the truth calls junk.

    Attributes
    ----------
    share
        Sum of (1 - weight) over the number of images.
    true_share
        Junk among them.
    roc_auc
        For each kind of junk there is: chance that one such image has a lower weight than a particle; of overlapping
        neighbours, that it is less probably a particle alone.
    """

    share: float
    true_share: float
    roc_auc: Mapping[str, float]
