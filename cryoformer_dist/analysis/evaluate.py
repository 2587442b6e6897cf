"""Verdict on a run: maps, latents and poses against the truth, with the consensus map as the floor.

At small boxes FSC = 0.5 cannot see motion (the mean of all states reaches Nyquist), so the verdict rests on
what maps that do not move cannot score: difference maps, and the FSC area between own and distant state.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from cryoformer_dist.analysis.cryobench import score_images
from cryoformer_dist.analysis.latent import find_principal_axes, score_latents
from cryoformer_dist.analysis.map_scores import (
    centre,
    compare_own_and_distant,
    cosine,
    fit_box,
    map_variation,
    score_maps,
    score_region,
)
from cryoformer_dist.analysis.masks import SIZE_TOLERANCE, find_moving_voxels, make_solvent_mask, soften
from cryoformer_dist.analysis.particle_scores import Poses, measure_pose_errors, score_poses
from cryoformer_dist.analysis.truth import Truth, choose_particles
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import StoreError
from cryoformer_dist.physics.fourier import FSC_HALF_MAPS, FSC_REFERENCE, FSCCurve
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.scores import (
    BoundedScores,
    MaskSource,
    MovingRegion,
    ResolvedMapScores,
    Scores,
    ScoresAgainstTruth,
    ScoresAlone,
    StateScores,
)

Decode = Callable[[Float[np.ndarray, "states latent"]], Float[np.ndarray, "states box box box"]]
"""Latents to maps in density units, `[z, y, x]`."""

# Particles whose maps are compared where the truth has one state.
_SAMPLE = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run claims about its particles, rows in store order.

    Attributes
    ----------
    latents
        ``(particles, latent)``.
    source_row
        ``(particles,)`` row of each in the particle file.
    stored_rotation, stored_shift_angstrom
        Poses the training started from.
    rotation, shift_angstrom
        Refined poses; None when they were kept as given.
    """

    latents: Float[np.ndarray, "particles latent"]
    source_row: Int[np.ndarray, " particles"]
    stored_rotation: Float[np.ndarray, "particles 3 3"]
    stored_shift_angstrom: Float[np.ndarray, "particles 2"]
    rotation: Float[np.ndarray, "particles 3 3"] | None = None
    shift_angstrom: Float[np.ndarray, "particles 2"] | None = None

    @property
    def given_poses(self) -> Poses:
        """Poses the training started from."""
        return self.stored_rotation, self.stored_shift_angstrom

    @property
    def refined_poses(self) -> Poses | None:
        """Refined poses, where there are any."""
        if self.rotation is None or self.shift_angstrom is None:
            return None
        return self.rotation, self.shift_angstrom

    def select(self, kept: Bool[np.ndarray, " particles"]) -> "Estimate":
        """What is claimed about some of the particles."""
        refined = self.refined_poses
        return Estimate(
            self.latents[kept],
            self.source_row[kept],
            self.stored_rotation[kept],
            self.stored_shift_angstrom[kept],
            *((refined[0][kept], refined[1][kept]) if refined else ()),
        )


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks in place of those made from the truth, at the box of the maps.

    Attributes
    ----------
    solvent
        For the masked per-image FSC; else everything that any reference map shows.
    region
        For the region-local scores; else where the reference maps differ.
    """

    solvent: Float[np.ndarray, "box box box"] | None = None
    region: Float[np.ndarray, "box box box"] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything `evaluation_files.write_evaluation` puts into the run directory.

    Attributes
    ----------
    scores
        Contents of metrics.json.
    volumes, voxel_size_angstrom
        ``(states, box, box, box)`` map of each state, or of each cluster when no truth is known.
    own, distant, consensus
        FSC of each state's map with its own and a distant state, and of the consensus map with the state.
    """

    scores: Scores
    volumes: Float[np.ndarray, "states box box box"]
    voxel_size_angstrom: float
    own: tuple[FSCCurve, ...] = ()
    distant: tuple[FSCCurve, ...] = ()
    consensus: tuple[FSCCurve, ...] = ()


def evaluate(
    decode: Decode,
    estimate: Estimate,
    consensus: Volume,
    truth: Truth,
    masks: Masks | None = None,
) -> Evaluation:
    """Judge a run against the truth, with the consensus as floor.

    What the truth calls junk has no state and is not judged.

    Raises
    ------
    StoreError
        If the truth has fewer rows than the store points to, smaller maps or another field of view: give this
        simulation's truth.
    """
    if estimate.source_row.max() >= len(truth.state):
        raise StoreError(
            f"the store points to row {estimate.source_row.max()} of its particle file, the truth has "
            f"{len(truth.state)} rows: give the truth folder of the same simulation"
        )
    _refuse_other_field(truth, consensus)
    return _evaluate_against(truth, decode, estimate, consensus, masks or Masks())


def _refuse_other_field(truth: Truth, consensus: Volume) -> None:
    """Maps of another field of view would be compared at another scale."""
    ours = consensus.voxel_size_angstrom * consensus.voxels.shape[-1]
    if abs(truth.box_angstrom - ours) > SIZE_TOLERANCE * ours:
        raise StoreError(
            f"the truth's maps are {truth.box_angstrom:g} Å wide ({truth.volumes.shape[-1]} voxels of "
            f"{truth.voxel_size_angstrom:g} Å), the run's {ours:g} Å: give maps of the same field of view; if only the "
            "voxel size in their headers is wrong, correct it there"
        )


@dataclass(frozen=True, slots=True)
class _StateMaps:
    """Maps of the states that have particles.

    Attributes
    ----------
    index
        Number of each state among those of the truth.
    state, particles
        Its coordinate, and how many particles stand for it.
    volumes, references
        The map of their mean latent, and the true one at the same box.
    """

    index: list[int]
    state: list[float]
    particles: list[int]
    volumes: np.ndarray
    references: np.ndarray


def _decode_states(decode: Decode, latents: np.ndarray, state: np.ndarray, truth: Truth) -> _StateMaps:
    chosen = choose_particles(state, truth)
    seen = [index for index, rows in enumerate(chosen) if len(rows)]
    means = np.stack([latents[chosen[index]].mean(axis=0) for index in seen])
    volumes = decode(means.astype(latents.dtype))
    return _StateMaps(
        index=seen,
        state=[float(truth.volume_state[index]) for index in seen],
        particles=[len(chosen[index]) for index in seen],
        volumes=volumes,
        references=np.stack([fit_box(truth.volumes[index], volumes.shape[-1]) for index in seen]),
    )


def _evaluate_against(truth: Truth, decode: Decode, estimate: Estimate, consensus: Volume, masks: Masks) -> Evaluation:
    """Put the maps of the states beside the true ones."""
    kept = truth.shows_particle(estimate.source_row)
    estimate = estimate.select(kept)
    latents, source_row = estimate.latents, estimate.source_row
    state = truth.state[source_row]
    maps = _decode_states(decode, latents, state, truth)
    volumes, references, box = maps.volumes, maps.references, maps.volumes.shape[-1]
    rigid = fit_box(consensus.voxels.numpy(), box)
    floor = np.stack([rigid] * len(volumes))
    voxel_size = truth.box_angstrom / box
    own, distant = compare_own_and_distant(volumes, references, voxel_size)
    consensus_own, _ = compare_own_and_distant(floor, references, voxel_size)
    solvent = make_solvent_mask(references) if masks.solvent is None else masks.solvent
    of_states = (np.array(maps.index), volumes)
    true_poses = (truth.rotation[source_row], truth.shift_angstrom[source_row])
    scores = ScoresAgainstTruth(
        has_truth=True,
        particles=len(latents),
        latent_dimensions=latents.shape[1],
        explained_variance=_explain_variance(latents),
        maps=score_maps(volumes, references),
        latents=score_latents(latents, state, truth.period, truth.discrete),
        per_image_fsc_auc=score_images(
            decode, latents, source_row, truth, rigid, solvent, _name_source(masks.solvent), of_states
        ),
        moving_region=_score_moving_region(volumes, floor, references, masks.region),
        # Of a molecule with one state a single map would show nothing of what was invented.
        map_variation=map_variation(volumes if len(volumes) > 1 else decode(_take_some(latents))),
        true_map_variation=map_variation(references),
        consensus=BoundedScores(**asdict(score_maps(floor, references)), latent_rank_correlation=0.0),
        still=_score_standing_still(volumes, references, voxel_size),
        ceiling=BoundedScores(**asdict(score_maps(references, references)), latent_rank_correlation=1.0),
        states=_score_states(maps, floor, (own, distant, consensus_own)),
        pose=score_poses(estimate.given_poses, estimate.refined_poses, true_poses, truth.box_angstrom),
        period=truth.period,
        discrete=truth.discrete,
        voxel_size_angstrom=voxel_size,
        nyquist_angstrom=2 * voxel_size,
        box_size=box,
        junk=None if truth.junk is None else int((~kept).sum()),
    )
    return Evaluation(scores, volumes, voxel_size, own, distant, consensus_own)


def _explain_variance(latents: np.ndarray) -> tuple[float, ...]:
    """Share of the latents' variance along each principal axis."""
    return tuple(find_principal_axes(latents).explained_variance.tolist())


def _name_source(mask: np.ndarray | None) -> MaskSource:
    return "truth" if mask is None else "given"


def _score_standing_still(volumes: np.ndarray, references: np.ndarray, voxel_size: float) -> ResolvedMapScores:
    """What the run's own maps would score if they did not move: their mean in place of each.

    The consensus is not that: it is not masked, its noise is not filtered out, and it is made at the poses that
    training starts from.
    """
    return _score_with_resolution(np.stack([volumes.mean(axis=0)] * len(volumes)), references, voxel_size)


def _score_with_resolution(volumes: np.ndarray, references: np.ndarray, voxel_size: float) -> ResolvedMapScores:
    own, _ = compare_own_and_distant(volumes, references, voxel_size)
    resolution = float(np.median([curve.resolution_angstrom(FSC_REFERENCE) for curve in own]))
    return ResolvedMapScores(**asdict(score_maps(volumes, references)), resolution_angstrom=resolution)


def score_quickly(
    decode: Decode,
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " particles"],
    truth: Truth,
) -> ResolvedMapScores:
    """Those scores of `evaluate` that need a map per state and nothing else."""
    kept = truth.shows_particle(source_row)
    maps = _decode_states(decode, latents[kept], truth.state[source_row[kept]], truth)
    return _score_with_resolution(maps.volumes, maps.references, truth.box_angstrom / maps.volumes.shape[-1])


def _score_moving_region(
    volumes: np.ndarray, floor: np.ndarray, references: np.ndarray, given: np.ndarray | None
) -> MovingRegion | None:
    """Scores where the truth moves, or inside a given mask; None where nothing moves."""
    inside = find_moving_voxels(references) if given is None else given > 0.5
    if not inside.any():
        return None
    mask = soften(inside) if given is None else given
    ours, consensus, ceiling = (score_region(maps, references, inside, mask) for maps in (volumes, floor, references))
    return MovingRegion(ours, int(inside.sum()), float(inside.mean()), _name_source(given), consensus, ceiling)


def _score_states(
    maps: _StateMaps, floor: np.ndarray, curves: tuple[Sequence[FSCCurve], Sequence[FSCCurve], Sequence[FSCCurve]]
) -> tuple[StateScores, ...]:
    """State by state: maps, and FSC with the truth of the own and a distant map and of the consensus."""
    each = zip(maps.state, maps.particles, maps.volumes, floor, maps.references, *curves, strict=True)
    return tuple(
        StateScores(
            state=state,
            particles=particles,
            map_correlation=cosine(centre(ours), centre(true)),
            fsc_area_own=own.area,
            fsc_area_distant=distant.area,
            resolution_angstrom=own.resolution_angstrom(FSC_REFERENCE),
            resolution_0143_angstrom=own.resolution_angstrom(FSC_HALF_MAPS),
            consensus_map_correlation=cosine(centre(rigid), centre(true)),
            consensus_fsc_area_own=consensus.area,
            consensus_resolution_angstrom=consensus.resolution_angstrom(FSC_REFERENCE),
            consensus_resolution_0143_angstrom=consensus.resolution_angstrom(FSC_HALF_MAPS),
        )
        for state, particles, ours, rigid, true, own, distant, consensus in each
    )


def _take_some(latents: Float[np.ndarray, "particles dimensions"]) -> Float[np.ndarray, "some dimensions"]:
    taken: np.ndarray = latents[:: stride_for(len(latents), _SAMPLE)]
    return taken


def evaluate_alone(
    volumes: Float[np.ndarray, "clusters box box box"], estimate: Estimate, consensus: Volume
) -> Evaluation:
    """Say what needs no truth: how much the maps of the clusters differ, and how far the poses moved."""
    box = volumes.shape[-1]
    box_angstrom = consensus.voxel_size_angstrom * consensus.voxels.shape[-1]
    reference = centre(fit_box(consensus.voxels.numpy(), box))
    refined = estimate.refined_poses
    scores = ScoresAlone(
        has_truth=False,
        particles=len(estimate.latents),
        latent_dimensions=estimate.latents.shape[1],
        explained_variance=_explain_variance(estimate.latents),
        map_variation=map_variation(volumes),
        consensus_map_correlation=float(np.mean([cosine(centre(map_), reference) for map_ in volumes])),
        voxel_size_angstrom=box_angstrom / box,
        nyquist_angstrom=2 * (box_angstrom / box),
        box_size=box,
        pose_change=measure_pose_errors(refined, estimate.given_poses, box_angstrom) if refined else None,
    )
    return Evaluation(scores, volumes, box_angstrom / box)
