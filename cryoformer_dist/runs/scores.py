"""The scores of a run, ``metrics.json``: what its maps, latents and poses are worth, in numbers.

Two kinds of file share the name: against a truth, with floor and ceiling, and what can be said without one. What was
not measured is left out.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from cryoformer_dist.runs.image_scores import Calibration, JunkFound, OracleScores, OtherCauses
from cryoformer_dist.runs.layout import SCORES
from cryoformer_dist.runs.manifest import SCHEMA_VERSION
from cryoformer_dist.runs.pose_scores import PoseErrors, PoseScores
from cryoformer_dist.storage.records import inline, read_record, write_record

MaskSource = Literal["truth", "given"]
"""Where a mask comes from: made from the true maps, or a file."""


@dataclass(frozen=True, slots=True)
class RegionScores:
    """How far a series of maps follows the states; every value ignores scale and offset of the maps.

    Attributes
    ----------
    difference_map_correlation
        Pooled correlation of (map - mean map) with (truth - mean truth); 0 when the maps do not vary.
    difference_map_amplitude
        Size of the variation relative to the mean map, divided by the same of the truth.
    fsc_area_own, fsc_area_distant, auc_gap
        Mean FSC over shells 1 .. box / 2 - 1: own state, the state half the range away, their difference.
    """

    difference_map_correlation: float
    difference_map_amplitude: float
    fsc_area_own: float
    fsc_area_distant: float
    auc_gap: float


@dataclass(frozen=True, slots=True)
class MapScores(RegionScores):
    """`RegionScores` of the whole box.

    Attributes
    ----------
    map_correlation
        Voxel correlation with the own state, mean over states.
    """

    map_correlation: float


@dataclass(frozen=True, slots=True)
class ResolvedMapScores(MapScores):
    """`MapScores` with a resolution.

    Attributes
    ----------
    resolution_angstrom
        FSC 0.5 against the truth, median over the states.
    """

    resolution_angstrom: float


@dataclass(frozen=True, slots=True)
class BoundedScores(MapScores):
    """The scores that have a floor and a ceiling.

    Attributes
    ----------
    latent_rank_correlation
        Of the true state with its linear prediction from the latents.
    """

    latent_rank_correlation: float


@dataclass(frozen=True, slots=True)
class LatentScores:
    """How well latents tell the states of their particles; one of the errors, as the states are.

    Attributes
    ----------
    latent_rank_correlation
        1 at best, about 0 for latents that have nothing to do with the states.
    angle_error_deg
        For a full turn: mean error of the predicted state; chance is 90.
    mean_absolute_error
        For a path: the same as a share of the range.
    class_accuracy, cluster_accuracy
        For classes: share named rightly by a linear classifier and by k-means, mean over the classes.
    """

    latent_rank_correlation: float
    angle_error_deg: float | None = None
    mean_absolute_error: float | None = None
    class_accuracy: float | None = None
    cluster_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Scores of the latents of particles that training never saw."""

    particles: int
    latents: LatentScores = field(metadata=inline())


@dataclass(frozen=True, slots=True)
class PerImageScores:
    """Areas under CryoBench's per-image FSC curves.

    Attributes
    ----------
    mean, std, median, masked_mean, masked_std, masked_median
        Over the sampled particles; masked: the mask multiplied into both maps.
    per_conformation_mean, per_conformation_std, per_conformation_masked_mean, per_conformation_masked_std
        CryoBench's older form: over the conformations, of the map at the mean latent of each.
    perfect
        What identical maps score.
    consensus_mean, consensus_masked_mean
        The consensus map in place of ours, against the same truths.
    still_mean, still_masked_mean
        The mean of our maps in place of each.
    maps
        Particles sampled.
    mask
        Where the mask comes from.
    """

    mean: float
    std: float
    median: float
    masked_mean: float
    masked_std: float
    masked_median: float
    per_conformation_mean: float
    per_conformation_std: float
    per_conformation_masked_mean: float
    per_conformation_masked_std: float
    perfect: float
    consensus_mean: float
    consensus_masked_mean: float
    still_mean: float
    still_masked_mean: float
    maps: int
    mask: MaskSource


@dataclass(frozen=True, slots=True)
class MovingRegion:
    """The scores where the truth moves, or inside a given mask.

    Attributes
    ----------
    scores
        Of the run.
    voxels, share_of_box
        Size of the region.
    mask
        Where the region comes from.
    consensus, ceiling
        Floor and ceiling.
    """

    scores: RegionScores = field(metadata=inline())
    voxels: int
    share_of_box: float
    mask: MaskSource
    consensus: RegionScores
    ceiling: RegionScores


@dataclass(frozen=True, slots=True)
class StateScores:
    """One state's map against the true one, and the consensus map in its place.

    Attributes
    ----------
    state
        Coordinate: degrees, fraction, or class.
    particles
        Whose mean latent was decoded.
    resolution_angstrom, resolution_0143_angstrom
        At FSC 0.5 and 0.143.
    """

    state: float
    particles: int
    map_correlation: float
    fsc_area_own: float
    fsc_area_distant: float
    resolution_angstrom: float
    resolution_0143_angstrom: float
    consensus_map_correlation: float
    consensus_fsc_area_own: float
    consensus_resolution_angstrom: float
    consensus_resolution_0143_angstrom: float


@dataclass(frozen=True, slots=True)
class ScoresAgainstTruth:
    """All scores of a run whose truth is known.

    Attributes
    ----------
    has_truth
        Tells this kind of file from the other.
    particles, latent_dimensions, explained_variance
        Of the latents judged; the last per principal axis.
    maps, latents
        Of the run.
    per_image_fsc_auc, moving_region
        More of its maps; no region where nothing moves.
    map_variation, true_map_variation
        Root-mean-square change of the maps and of the true ones, relative to their mean; where there is one true map,
        of the maps of a hundred particles.
    consensus, ceiling
        Floor and ceiling of maps and latents.
    still
        The run's own mean map in place of each of its maps.
    states, pose
        One by one; before and after.
    period, discrete
        Of the state's coordinate (0: none), and whether states are classes.
    voxel_size_angstrom, nyquist_angstrom, box_size
        Of the maps.
    oracle, held_out
        Where there were several true maps, and particles held out.
    junk
        Images the truth calls no particle; nothing above counts them. None where it does not say.
    junk_found
        How well weights name them, where there are weights and junk.
    calibration
        Of the latents' widths, where there are any and states have an order.
    other_causes
        What else than conformation explains the latents; ``None`` where they do not vary.
    """

    has_truth: Literal[True]
    particles: int
    latent_dimensions: int
    explained_variance: tuple[float, ...]
    maps: MapScores = field(metadata=inline())
    latents: LatentScores = field(metadata=inline())
    per_image_fsc_auc: PerImageScores
    moving_region: MovingRegion | None
    map_variation: float
    true_map_variation: float
    consensus: BoundedScores
    still: ResolvedMapScores
    ceiling: BoundedScores
    states: tuple[StateScores, ...]
    pose: PoseScores
    period: float
    discrete: bool
    voxel_size_angstrom: float
    nyquist_angstrom: float
    box_size: int
    oracle: OracleScores | None = None
    held_out: HeldOutScores | None = None
    junk: int | None = None
    junk_found: JunkFound | None = None
    calibration: Calibration | None = None
    other_causes: OtherCauses | None = None

    @property
    def bounded(self) -> BoundedScores:
        """The run's own scores of those that have a floor and a ceiling."""
        return BoundedScores(**asdict(self.maps), latent_rank_correlation=self.latents.latent_rank_correlation)


@dataclass(frozen=True, slots=True)
class ScoresAlone:
    """What can be said of a run without a truth.

    Attributes
    ----------
    has_truth, particles, latent_dimensions, explained_variance
        As in `ScoresAgainstTruth`.
    map_variation
        Root-mean-square change of the cluster centres' maps, relative to their mean.
    consensus_map_correlation
        Of these maps with the consensus map, mean.
    voxel_size_angstrom, nyquist_angstrom, box_size
        Of the maps.
    pose_change
        Of refined poses, against the given ones.
    other_causes
        As in `ScoresAgainstTruth`.
    """

    has_truth: Literal[False]
    particles: int
    latent_dimensions: int
    explained_variance: tuple[float, ...]
    map_variation: float
    consensus_map_correlation: float
    voxel_size_angstrom: float
    nyquist_angstrom: float
    box_size: int
    pose_change: PoseErrors | None
    other_causes: OtherCauses | None = None


Scores = ScoresAgainstTruth | ScoresAlone


def write_scores(run: Path, scores: Scores) -> Path:
    """Write ``metrics.json``."""
    return write_record(run / SCORES, scores, SCHEMA_VERSION)


def read_scores(run: Path) -> Scores | None:
    """Scores of a run; ``None`` before it has been judged.

    Raises
    ------
    CryoFormerError
        If the file is damaged or of another version.
    """
    path = run / SCORES
    if not path.is_file():
        return None
    return read_record(path, Scores, SCHEMA_VERSION, f"run `cryoformer-dist evaluate {run}` again")
