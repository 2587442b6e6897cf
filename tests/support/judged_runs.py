"""Scores of a run against a truth with only what a test cares about named."""

from dataclasses import replace

from cryoformer_dist.runs.pose_scores import Histogram, PoseErrors, PoseScores
from cryoformer_dist.runs.scores import (
    BoundedScores,
    LatentScores,
    MapScores,
    PerImageScores,
    ResolvedMapScores,
    ScoresAgainstTruth,
    ScoresAlone,
    StateScores,
)

STATE = StateScores(
    state=0.0,
    particles=50,
    map_correlation=0.9,
    fsc_area_own=0.9,
    fsc_area_distant=0.7,
    resolution_angstrom=14.4,
    resolution_0143_angstrom=14.4,
    consensus_map_correlation=0.8,
    consensus_fsc_area_own=0.8,
    consensus_resolution_angstrom=14.4,
    consensus_resolution_0143_angstrom=14.4,
)
POSE_ERRORS = PoseErrors(
    squared_frobenius_mean=0.2,
    squared_frobenius_median=0.1,
    angle_deg_median=9.0,
    shift_angstrom_mean=3.0,
    shift_angstrom_median=2.0,
    shift_box_fraction_mean=0.01,
)
HISTOGRAM = Histogram(edges=(0.0, 1.0, 2.0), before=(3, 4), after=(6, 1))
POSE = PoseScores(
    before=POSE_ERRORS,
    after=None,
    after_in_true_frame=None,
    angle_deg_histogram=replace(HISTOGRAM, after=None),
    shift_angstrom_histogram=replace(HISTOGRAM, after=None),
)
PER_IMAGE = PerImageScores(
    mean=0.4,
    std=0.02,
    median=0.4,
    masked_mean=0.42,
    masked_std=0.01,
    masked_median=0.42,
    per_conformation_mean=0.41,
    per_conformation_std=0.01,
    per_conformation_masked_mean=0.43,
    per_conformation_masked_std=0.01,
    perfect=0.469,
    consensus_mean=0.38,
    consensus_masked_mean=0.41,
    still_mean=0.37,
    still_masked_mean=0.4,
    maps=100,
    mask="truth",
)
ALONE = ScoresAlone(
    has_truth=False,
    particles=100,
    latent_dimensions=2,
    explained_variance=(0.5, 0.2),
    map_variation=0.1,
    consensus_map_correlation=0.98,
    voxel_size_angstrom=7.2,
    nyquist_angstrom=14.4,
    box_size=32,
    pose_change=None,
)


def judged(score: float, gap: float, **changes: object) -> ScoresAgainstTruth:
    """Scores of a run of given difference-map and latent correlation, and of a given gap in FSC area."""
    maps = MapScores(
        difference_map_correlation=score,
        difference_map_amplitude=0.9,
        fsc_area_own=0.9,
        fsc_area_distant=0.9 - gap,
        auc_gap=gap,
        map_correlation=0.95,
    )
    scores = ScoresAgainstTruth(
        has_truth=True,
        particles=100,
        latent_dimensions=2,
        explained_variance=(0.5, 0.2),
        maps=maps,
        latents=LatentScores(latent_rank_correlation=score),
        per_image_fsc_auc=PER_IMAGE,
        moving_region=None,
        map_variation=0.3,
        true_map_variation=0.3,
        consensus=BoundedScores(0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0),
        still=ResolvedMapScores(0.0, 0.0, 0.9, 0.9, 0.0, 0.9, 14.4),
        ceiling=BoundedScores(1.0, 1.0, 1.0, 1.0, 0.3, 1.0, 1.0),
        states=(STATE, STATE),
        pose=POSE,
        period=0.0,
        discrete=False,
        voxel_size_angstrom=7.2,
        nyquist_angstrom=14.4,
        box_size=32,
    )
    return replace(scores, **changes)  # type: ignore[arg-type]
