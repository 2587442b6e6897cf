"""Part of a run's scores: how far its poses are off."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoseErrors:
    """Distance of poses to the true ones (or to the given ones, where no truth is known)."""

    squared_frobenius_mean: float
    squared_frobenius_median: float
    angle_deg_median: float
    shift_angstrom_mean: float
    shift_angstrom_median: float
    shift_box_fraction_mean: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Particles per bin, before and after a refinement.

    Attributes
    ----------
    edges
        One more than there are bins.
    before, after
        Counts; ``after`` where poses were refined.
    """

    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PoseScores:
    """Given poses, and refined ones where there are any, against the true ones.

    Attributes
    ----------
    before, after
        In the frame of the truth as it is.
    after_in_true_frame
        Less what all particles share: a map and its poses may turn together unpunished.
    angle_deg_histogram, shift_angstrom_histogram
        Of the single particles.
    """

    before: PoseErrors
    after: PoseErrors | None
    after_in_true_frame: PoseErrors | None
    angle_deg_histogram: Histogram
    shift_angstrom_histogram: Histogram

    @property
    def final(self) -> PoseErrors:
        """Of the poses at the end."""
        return self.after or self.before
