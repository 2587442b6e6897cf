"""Verdict on a run: maps, latents and poses against the truth, with the consensus map as the floor.

At small boxes FSC = 0.5 cannot see motion (the mean of all states reaches Nyquist), so the verdict rests on
what maps that do not move cannot score: difference maps, and the FSC area between own and distant state.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.analysis.cryobench import per_image_fsc
from cryoformer_dist.analysis.latent import kmeans, principal_axes, score_latents
from cryoformer_dist.analysis.map_scores import (
    centred,
    cosine,
    fit_box,
    fsc_own_and_distant,
    map_variation,
    score_maps,
    score_region,
)
from cryoformer_dist.analysis.masks import SIZE_TOLERANCE, moving_voxels, soften, solvent_mask
from cryoformer_dist.analysis.truth import Truth, particles_of_states
from cryoformer_dist.errors import StoreError
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.fourier import FSC_HALF_MAPS, FSC_REFERENCE, FSCCurve
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, squared_frobenius
from cryoformer_dist.physics.volume import Volume

Decode = Callable[[Float[np.ndarray, "states latent"]], Float[np.ndarray, "states box box box"]]
"""Latents to maps in density units, `[z, y, x]`."""


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
class PoseErrors:
    """Distance of poses to the true ones (or to the given ones, where no truth is known)."""

    squared_frobenius_mean: float
    squared_frobenius_median: float
    angle_deg_median: float
    shift_angstrom_mean: float
    shift_angstrom_median: float
    shift_box_fraction_mean: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything `evaluation_files.write_evaluation` puts into the run directory.

    Attributes
    ----------
    metrics
        Contents of metrics.json.
    volumes, voxel_size_angstrom
        ``(states, box, box, box)`` map of each state, or of each k-means centre when no truth is known.
    own, distant, consensus
        FSC of each state's map with its own and a distant state, and of the consensus map with the state.
    """

    metrics: dict[str, Any]
    volumes: Float[np.ndarray, "states box box box"]
    voxel_size_angstrom: float
    own: tuple[FSCCurve, ...] = ()
    distant: tuple[FSCCurve, ...] = ()
    consensus: tuple[FSCCurve, ...] = ()


def pose_errors(
    rotation: Float[np.ndarray, "particles 3 3"],
    shift_angstrom: Float[np.ndarray, "particles 2"],
    true_rotation: Float[np.ndarray, "particles 3 3"],
    true_shift_angstrom: Float[np.ndarray, "particles 2"],
    box_angstrom: float,
) -> PoseErrors:
    """Rotation and shift errors without any alignment of frames; ``box_angstrom`` is the side of an image."""
    squared, angle, shift = _pose_distances(rotation, shift_angstrom, true_rotation, true_shift_angstrom)
    return PoseErrors(
        squared_frobenius_mean=float(squared.mean()),
        squared_frobenius_median=float(np.median(squared)),
        angle_deg_median=float(np.median(angle)),
        shift_angstrom_mean=float(shift.mean()),
        shift_angstrom_median=float(np.median(shift)),
        shift_box_fraction_mean=float(shift.mean() / box_angstrom),
    )


def _pose_distances(
    rotation: np.ndarray, shift: np.ndarray, other_rotation: np.ndarray, other_shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared Frobenius distance, angle in degrees and shift distance in angstrom per particle."""
    first, second = (torch.from_numpy(each.astype(np.float64)) for each in (rotation, other_rotation))
    distance = np.linalg.norm(shift.astype(np.float64) - other_shift, axis=1)
    return squared_frobenius(first, second).numpy(), rotation_angle_deg(first, second).numpy(), distance


def evaluate(
    decode: Decode,
    estimate: Estimate,
    consensus: Volume,
    truth: Truth | None = None,
    masks: Masks | None = None,
) -> Evaluation:
    """Judge a run: against the truth with the consensus as floor, or by what can be said without a truth.

    Raises
    ------
    StoreError
        If the truth has fewer rows than the store points to, smaller maps or another field of view: give this
        simulation's truth.
    """
    common = {
        "has_truth": truth is not None,
        "particles": len(estimate.latents),
        "latent_dimensions": estimate.latents.shape[1],
        "explained_variance": principal_axes(estimate.latents).explained_variance.tolist(),
    }
    if truth is None:
        return _evaluate_alone(decode, estimate, consensus, common)
    if estimate.source_row.max() >= len(truth.state):
        raise StoreError(
            f"the store points to row {estimate.source_row.max()} of its particle file, the truth has "
            f"{len(truth.state)} rows: give the truth folder of the same simulation"
        )
    _refuse_other_field(truth, consensus)
    return _evaluate_against(truth, decode, estimate, consensus, masks or Masks(), common)


def _refuse_other_field(truth: Truth, consensus: Volume) -> None:
    """Maps of another field of view would be compared at another scale."""
    ours = consensus.voxel_size_angstrom * consensus.voxels.shape[-1]
    if abs(truth.box_angstrom - ours) > SIZE_TOLERANCE * ours:
        raise StoreError(
            f"the truth's maps are {truth.box_angstrom:g} Å wide ({truth.volumes.shape[-1]} voxels of "
            f"{truth.voxel_size_angstrom:g} Å), the run's {ours:g} Å: give maps of the same field of view; if only the "
            "voxel size in their headers is wrong, correct it there"
        )


def _evaluate_against(
    truth: Truth,
    decode: Decode,
    estimate: Estimate,
    consensus: Volume,
    masks: Masks,
    common: dict[str, Any],
) -> Evaluation:
    """Put the maps of the states beside the true ones."""
    state = truth.state[estimate.source_row]
    chosen = particles_of_states(state, truth)
    seen, volumes, references = _maps_of_states(decode, estimate.latents, chosen, truth)
    box = volumes.shape[-1]
    rigid = fit_box(consensus.voxels.numpy(), box)
    floor = np.stack([rigid] * len(seen))
    voxel_size = truth.box_angstrom / box
    own, distant = fsc_own_and_distant(volumes, references, voxel_size)
    consensus_own, _ = fsc_own_and_distant(floor, references, voxel_size)
    table = _state_table((volumes, floor, references), (own, distant, consensus_own))
    names = [{"state": float(truth.volume_state[i]), "particles": len(chosen[i])} for i in seen]
    solvent = solvent_mask(references) if masks.solvent is None else masks.solvent
    of_states = (np.array(seen), volumes)
    per_image = per_image_fsc(decode, estimate.latents, estimate.source_row, truth, rigid, solvent, of_states)
    metrics = {
        **common,
        **asdict(score_maps(volumes, references)),
        **score_latents(estimate.latents, state, truth.period, truth.discrete),
        "per_image_fsc_auc": {**asdict(per_image), "mask": "truth" if masks.solvent is None else "given"},
        **_region_metrics(volumes, floor, references, masks.region),
        "map_variation": map_variation(volumes),
        "true_map_variation": map_variation(references),
        "consensus": {**asdict(score_maps(floor, references)), "latent_rank_correlation": 0.0},
        "still": _still_scores(volumes, references, voxel_size),
        "ceiling": {**asdict(score_maps(references, references)), "latent_rank_correlation": 1.0},
        "states": [{**name, **row} for name, row in zip(names, table, strict=True)],
        "pose": _pose_metrics(estimate, truth),
        "period": truth.period,
        "discrete": truth.discrete,
        **_scale(voxel_size, box),
    }
    return Evaluation(metrics, volumes, voxel_size, own, distant, consensus_own)


def _still_scores(volumes: np.ndarray, references: np.ndarray, voxel_size: float) -> dict[str, float]:
    """What the run's own maps would score if they did not move: their mean in place of each.

    The consensus is not that: it is not masked, its noise is not filtered out, and of a large set it is made from a
    sample, at the poses that training starts from.
    """
    still = np.stack([volumes.mean(axis=0)] * len(volumes))
    curves, _ = fsc_own_and_distant(still, references, voxel_size)
    return {**asdict(score_maps(still, references)), "resolution_angstrom": _median_resolution(curves)}


def _median_resolution(curves: Sequence[FSCCurve]) -> float:
    """In angstrom, over states compared with the truth."""
    return float(np.median([curve.resolution_angstrom(FSC_REFERENCE) for curve in curves]))


def _maps_of_states(
    decode: Decode, latents: Float[np.ndarray, "particles latent"], chosen: list[np.ndarray], truth: Truth
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """States that have particles, the map of each one's mean latent, and the true ones at the same box."""
    seen = [index for index, rows in enumerate(chosen) if len(rows)]
    means = np.stack([latents[chosen[i]].mean(axis=0) for i in seen])
    volumes = decode(means.astype(latents.dtype))
    return seen, volumes, np.stack([fit_box(truth.volumes[i], volumes.shape[-1]) for i in seen])


def quick_scores(
    decode: Decode,
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " particles"],
    truth: Truth,
) -> dict[str, float]:
    """Those scores of `evaluate` that need a map per state and nothing else; resolution is the states' median."""
    chosen = particles_of_states(truth.state[source_row], truth)
    _, volumes, references = _maps_of_states(decode, latents, chosen, truth)
    voxel_size = truth.box_angstrom / volumes.shape[-1]
    own, _ = fsc_own_and_distant(volumes, references, voxel_size)
    return {**asdict(score_maps(volumes, references)), "resolution_angstrom": _median_resolution(own)}


def _region_metrics(
    volumes: np.ndarray, floor: np.ndarray, references: np.ndarray, given: np.ndarray | None
) -> dict[str, Any]:
    """Scores where the truth moves, or inside a given mask; nothing where nothing moves."""
    inside = moving_voxels(references) if given is None else given > 0.5
    if not inside.any():
        return {}
    mask = soften(inside) if given is None else given
    ours, still, best = (asdict(score_region(maps, references, inside, mask)) for maps in (volumes, floor, references))
    size = {"voxels": int(inside.sum()), "share_of_box": float(inside.mean())}
    source = "truth" if given is None else "given"
    return {"moving_region": {**ours, **size, "mask": source, "consensus": still, "ceiling": best}}


def _scale(voxel_size: float, box: int) -> dict[str, float]:
    return {"voxel_size_angstrom": voxel_size, "nyquist_angstrom": 2 * voxel_size, "box_size": box}


def _state_table(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray], curves: tuple[tuple[FSCCurve, ...], ...]
) -> list[dict[str, float]]:
    """One row per state of (ours, consensus, truth) and their FSC (own, distant, consensus)."""
    return [
        {
            "map_correlation": cosine(centred(ours), centred(truth)),
            "fsc_area_own": own.area,
            "fsc_area_distant": distant.area,
            "resolution_angstrom": own.resolution_angstrom(FSC_REFERENCE),
            "resolution_0143_angstrom": own.resolution_angstrom(FSC_HALF_MAPS),
            "consensus_map_correlation": cosine(centred(floor), centred(truth)),
            "consensus_fsc_area_own": consensus.area,
            "consensus_resolution_angstrom": consensus.resolution_angstrom(FSC_REFERENCE),
            "consensus_resolution_0143_angstrom": consensus.resolution_angstrom(FSC_HALF_MAPS),
        }
        for ours, floor, truth, own, distant, consensus in zip(*maps, *curves, strict=True)
    ]


def _evaluate_alone(decode: Decode, estimate: Estimate, consensus: Volume, common: dict[str, Any]) -> Evaluation:
    """Say what needs no truth: how much the maps of the clusters differ, and how far the poses moved."""
    volumes = decode(kmeans(estimate.latents, 10).centres)
    box = volumes.shape[-1]
    box_angstrom = consensus.voxel_size_angstrom * consensus.voxels.shape[-1]
    reference = centred(fit_box(consensus.voxels.numpy(), box))
    metrics: dict[str, Any] = {
        **common,
        "map_variation": map_variation(volumes),
        "consensus_map_correlation": float(np.mean([cosine(centred(map_), reference) for map_ in volumes])),
        **_scale(box_angstrom / box, box),
    }
    if estimate.rotation is not None and estimate.shift_angstrom is not None:
        stored = (estimate.stored_rotation, estimate.stored_shift_angstrom)
        change = pose_errors(estimate.rotation, estimate.shift_angstrom, *stored, box_angstrom)
        metrics["pose_change"] = asdict(change)
    return Evaluation(metrics, volumes, box_angstrom / box)


def _pose_metrics(estimate: Estimate, truth: Truth) -> dict[str, Any]:
    """Errors and histograms of the given poses and, when refined, of the refined ones.

    ``after_in_true_frame`` are errors less what all particles share: a map and its poses may turn together unpunished.
    """
    true = (truth.rotation[estimate.source_row], truth.shift_angstrom[estimate.source_row])
    poses = {"before": (estimate.stored_rotation, estimate.stored_shift_angstrom)}
    if estimate.rotation is not None and estimate.shift_angstrom is not None:
        poses["after"] = (estimate.rotation, estimate.shift_angstrom)
    errors = {name: pose_errors(*pose, *true, truth.box_angstrom) for name, pose in poses.items()}
    if "after" in poses:
        aligned = align_frame(_as_pose(*true), _as_pose(*poses["after"]))
        found = (aligned.rotation.numpy(), aligned.shift_angstrom.numpy())
        errors["after_in_true_frame"] = pose_errors(*found, *true, truth.box_angstrom)
    result: dict[str, Any] = {name: asdict(error) for name, error in errors.items()}
    distances = {name: _pose_distances(*pose, *true)[1:] for name, pose in poses.items()}
    for index, key in enumerate(("angle_deg", "shift_angstrom")):
        top = max(float(np.percentile(values[index], 99)) for values in distances.values())
        edges = np.linspace(0, max(top, 1e-3), 41)
        counts = {name: np.histogram(values[index], edges)[0].tolist() for name, values in distances.items()}
        result[f"{key}_histogram"] = {"edges": edges.tolist(), **counts}
    return result


def _as_pose(rotation: np.ndarray, shift_angstrom: np.ndarray) -> Pose:
    return Pose(*(torch.from_numpy(np.asarray(each, dtype=np.float32)) for each in (rotation, shift_angstrom)))
