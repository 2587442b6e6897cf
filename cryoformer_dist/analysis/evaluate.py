"""Verdict on a run: maps, latents and poses against the truth, with the consensus map as the floor.

At small boxes FSC = 0.5 cannot see motion (the mean of all states reaches Nyquist), so the verdict rests on
what maps that do not move cannot score: difference maps, and the FSC area between own and distant state.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.analysis.latent import kmeans, principal_axes, score_latents
from cryoformer_dist.errors import SmallSampleWarning, StoreError, StoreNotFoundError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import FSCCurve, crop_volume, fourier_shell_correlation
from cryoformer_dist.physics.pose import rotation_angle_deg, squared_frobenius
from cryoformer_dist.physics.volume import Volume

Decode = Callable[[Float[np.ndarray, "states latent"]], Float[np.ndarray, "states box box box"]]
"""Latents to maps in density units, `[z, y, x]`."""

WINDOW_SHARE = 0.6
"""Part of a state's half bin width from which its particles are taken."""
FEWEST_PARTICLES = 5


@dataclass(frozen=True, slots=True)
class Truth:
    """What a simulated data set was made from; rows as in the particle file.

    Attributes
    ----------
    state
        ``(particles,)`` coordinate (degrees, fraction, or class index).
    rotation, shift_angstrom
        ``(particles, 3, 3)`` and ``(particles, 2)`` poses before any perturbation.
    volume_state, volumes, voxel_size_angstrom
        ``(states,)`` coordinates of the reference maps ``(states, box, box, box)``.
    period
        Of the coordinate; 0 for a line.
    discrete
        Whether the states are classes.
    """

    state: Float[np.ndarray, " particles"]
    rotation: Float[np.ndarray, "particles 3 3"]
    shift_angstrom: Float[np.ndarray, "particles 2"]
    volume_state: Float[np.ndarray, " states"]
    volumes: Float[np.ndarray, "states box box box"]
    voxel_size_angstrom: float
    period: float
    discrete: bool


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
class MapScores:
    """How far a series of maps follows the states; every value ignores scale and offset of the maps.

    Attributes
    ----------
    difference_map_correlation
        Pooled correlation of (map - mean map) with (truth - mean truth); 0 when the maps do not vary.
    difference_map_amplitude
        Size of the variation relative to the mean map, divided by the same of the truth.
    map_correlation
        Voxel correlation with the own state, mean over states.
    fsc_area_own, fsc_area_distant, auc_gap
        Mean FSC over shells 1 .. box / 2 - 1: own state, the state half the range away, their difference.
    """

    difference_map_correlation: float
    difference_map_amplitude: float
    map_correlation: float
    fsc_area_own: float
    fsc_area_distant: float
    auc_gap: float


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
    """Everything `reconstruct.write_evaluation` puts into the run directory.

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


def read_truth(folder: Path) -> Truth:
    """Read the truth folder a simulation leaves beside its particles.

    Raises
    ------
    StoreNotFoundError
        If ``truth.npz`` or a reference map is missing: name the folder written by ``simulate``.
    """
    table = folder / "truth.npz"
    if not table.is_file():
        raise StoreNotFoundError(f"no {table}: give the truth folder that `simulate` wrote, or leave it out")
    with np.load(table, allow_pickle=False) as fields:
        data = {name: fields[name] for name in fields.files}
    paths = [folder / f"volume_{index:03d}.mrc" for index in range(len(data["volume_state"]))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise StoreNotFoundError(f"{folder} lacks {', '.join(missing)}: simulate the set again")
    volumes = [read_volume(path) for path in paths]
    return Truth(
        state=data["state"].astype(np.float64),
        rotation=data["rotation"].astype(np.float32),
        shift_angstrom=data["shift_angstrom"].astype(np.float32),
        volume_state=data["volume_state"].astype(np.float64),
        volumes=np.stack([volume.voxels.numpy() for volume in volumes]),
        voxel_size_angstrom=volumes[0].voxel_size_angstrom,
        period=float(data["period"]),
        discrete=bool(data["discrete"]),
    )


def particles_of_states(state: Float[np.ndarray, " particles"], truth: Truth) -> list[Int[np.ndarray, " chosen"]]:
    """Rows of the particles that stand for each reference map: its class, or a window about its coordinate.

    The window is `WINDOW_SHARE` of half the references' spacing to either side; one with fewer than
    `FEWEST_PARTICLES` is widened to the nearest that many, with a warning.
    """
    if truth.discrete:
        return [np.flatnonzero(state == value) for value in truth.volume_state]
    gaps = np.diff(np.unique(truth.volume_state))
    spacing = float(np.median(gaps)) if len(gaps) else np.inf
    chosen = []
    for value in truth.volume_state:
        distance = np.abs(state - value)
        if truth.period:
            distance = np.minimum(distance % truth.period, -distance % truth.period)
        rows = np.flatnonzero(distance <= WINDOW_SHARE * spacing / 2)
        if len(rows) < FEWEST_PARTICLES:
            message = f"only {len(rows)} particles near state {value:g}; taking the nearest {FEWEST_PARTICLES}"
            warnings.warn(message, SmallSampleWarning, stacklevel=2)
            rows = np.argsort(distance, kind="stable")[:FEWEST_PARTICLES]
        chosen.append(rows)
    return chosen


def score_maps(
    volumes: Float[np.ndarray, "states box box box"], references: Float[np.ndarray, "states box box box"]
) -> MapScores:
    """Compare a map per state with the true one of that state.

    Maps that do not move score difference correlation 0, amplitude 0 and gap 0; the truth scores 1 in both.
    """
    ours, truth = _centred(volumes), _centred(references)
    ours_change, truth_change = ours - ours.mean(axis=0), truth - truth.mean(axis=0)
    own, distant = fsc_own_and_distant(volumes, references, 1.0)
    area_own = float(np.mean([curve.area for curve in own]))
    area_distant = float(np.mean([curve.area for curve in distant]))
    motion, true_motion = map_variation(volumes), map_variation(references)
    moves = motion > 1e-6
    return MapScores(
        difference_map_correlation=_cosine(ours_change, truth_change) if moves else 0.0,
        difference_map_amplitude=motion / true_motion if moves and true_motion > 1e-6 else 0.0,
        map_correlation=float(np.mean([_cosine(v, t) for v, t in zip(ours, truth, strict=True)])),
        fsc_area_own=area_own,
        fsc_area_distant=area_distant,
        auc_gap=area_own - area_distant,
    )


def map_variation(volumes: Float[np.ndarray, "states box box box"]) -> float:
    """Root-mean-square change of the maps about their mean, relative to that of the mean map."""
    centred = _centred(volumes)
    mean = centred.mean(axis=0)
    scale = float(np.square(mean).mean())
    return float(np.sqrt(np.square(centred - mean).mean() / scale)) if scale > 0 else 0.0


def _centred(volumes: np.ndarray) -> np.ndarray:
    """Subtract each map's own mean, which the forward model does not see; double precision."""
    wide: np.ndarray = volumes.astype(np.float64)
    centred: np.ndarray = wide - wide.mean(axis=(-3, -2, -1), keepdims=True)
    return centred


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    scale = np.sqrt(np.square(first).sum() * np.square(second).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0


def fsc_own_and_distant(
    volumes: Float[np.ndarray, "states box box box"],
    references: Float[np.ndarray, "states box box box"],
    voxel_size_angstrom: float,
) -> tuple[tuple[FSCCurve, ...], tuple[FSCCurve, ...]]:
    """FSC of each map against its own reference, and against the one half the range of states away."""
    count = len(references)
    maps = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in volumes]
    truth = [torch.from_numpy(np.ascontiguousarray(t, dtype=np.float32)) for t in references]
    curve = fourier_shell_correlation
    own = tuple(curve(maps[i], truth[i], voxel_size_angstrom) for i in range(count))
    far = [(i + count // 2) % count for i in range(count)]
    return own, tuple(curve(maps[i], truth[far[i]], voxel_size_angstrom) for i in range(count))


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
    first, second = torch.from_numpy(rotation).double(), torch.from_numpy(other_rotation).double()
    distance = np.linalg.norm(shift.astype(np.float64) - other_shift, axis=1)
    return squared_frobenius(first, second).numpy(), rotation_angle_deg(first, second).numpy(), distance


def evaluate(decode: Decode, estimate: Estimate, consensus: Volume, truth: Truth | None = None) -> Evaluation:
    """Judge a run: against the truth with the consensus as floor, or by what can be said without a truth.

    Raises
    ------
    StoreError
        If the truth has fewer rows than the store points to, or smaller maps: give this simulation's truth.
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
    state = truth.state[estimate.source_row]
    chosen = particles_of_states(state, truth)
    seen = [index for index, rows in enumerate(chosen) if len(rows)]
    means = np.stack([estimate.latents[chosen[i]].mean(axis=0) for i in seen])
    volumes = decode(means.astype(estimate.latents.dtype))
    references = np.stack([fit_box(truth.volumes[i], volumes.shape[-1]) for i in seen])
    floor = np.stack([fit_box(consensus.voxels.numpy(), volumes.shape[-1])] * len(seen))
    box_angstrom = truth.voxel_size_angstrom * truth.volumes.shape[-1]
    voxel_size = box_angstrom / volumes.shape[-1]
    own, distant = fsc_own_and_distant(volumes, references, voxel_size)
    consensus_own, _ = fsc_own_and_distant(floor, references, voxel_size)
    table = _state_table((volumes, floor, references), (own, distant, consensus_own))
    names = [{"state": float(truth.volume_state[i]), "particles": len(chosen[i])} for i in seen]
    metrics = {
        **common,
        **asdict(score_maps(volumes, references)),
        **score_latents(estimate.latents, state, truth.period, truth.discrete),
        "consensus": {**asdict(score_maps(floor, references)), "latent_rank_correlation": 0.0},
        "ceiling": {**asdict(score_maps(references, references)), "latent_rank_correlation": 1.0},
        "states": [{**name, **row} for name, row in zip(names, table, strict=True)],
        "pose": _pose_metrics(estimate, truth, box_angstrom),
        "period": truth.period,
        "discrete": truth.discrete,
        **_scale(voxel_size, volumes.shape[-1]),
    }
    return Evaluation(metrics, volumes, voxel_size, own, distant, consensus_own)


def _scale(voxel_size: float, box: int) -> dict[str, float]:
    return {"voxel_size_angstrom": voxel_size, "nyquist_angstrom": 2 * voxel_size, "box_size": box}


def _state_table(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray], curves: tuple[tuple[FSCCurve, ...], ...]
) -> list[dict[str, float]]:
    """One row per state of (ours, consensus, truth) and their FSC (own, distant, consensus)."""
    return [
        {
            "map_correlation": _cosine(_centred(ours), _centred(truth)),
            "fsc_area_own": own.area,
            "fsc_area_distant": distant.area,
            "resolution_angstrom": own.resolution_angstrom(0.5),
            "consensus_map_correlation": _cosine(_centred(floor), _centred(truth)),
            "consensus_fsc_area_own": consensus.area,
            "consensus_resolution_angstrom": consensus.resolution_angstrom(0.5),
        }
        for ours, floor, truth, own, distant, consensus in zip(*maps, *curves, strict=True)
    ]


def fit_box(voxels: Float[np.ndarray, "old old old"], box: int) -> Float[np.ndarray, "box box box"]:
    """Band-limit a map to the box of another over the same field of view; refuses to invent detail."""
    old = voxels.shape[-1]
    if old < box:
        raise StoreError(f"cannot compare a map of box {old} with maps of box {box}: give the larger one")
    return crop_volume(torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)), box).numpy()


def _evaluate_alone(decode: Decode, estimate: Estimate, consensus: Volume, common: dict[str, Any]) -> Evaluation:
    """Say what needs no truth: how much the maps of the clusters differ, and how far the poses moved."""
    volumes = decode(kmeans(estimate.latents, 10).centres)
    box = volumes.shape[-1]
    box_angstrom = consensus.voxel_size_angstrom * consensus.voxels.shape[-1]
    reference = _centred(fit_box(consensus.voxels.numpy(), box))
    metrics: dict[str, Any] = {
        **common,
        "map_variation": map_variation(volumes),
        "consensus_map_correlation": float(np.mean([_cosine(_centred(map_), reference) for map_ in volumes])),
        **_scale(box_angstrom / box, box),
    }
    if estimate.rotation is not None and estimate.shift_angstrom is not None:
        stored = (estimate.stored_rotation, estimate.stored_shift_angstrom)
        change = pose_errors(estimate.rotation, estimate.shift_angstrom, *stored, box_angstrom)
        metrics["pose_change"] = asdict(change)
    return Evaluation(metrics, volumes, box_angstrom / box)


def _pose_metrics(estimate: Estimate, truth: Truth, box_angstrom: float) -> dict[str, Any]:
    """Errors and histograms of the given poses and, when refined, of the refined ones."""
    true = (truth.rotation[estimate.source_row], truth.shift_angstrom[estimate.source_row])
    poses = {"before": (estimate.stored_rotation, estimate.stored_shift_angstrom)}
    if estimate.rotation is not None and estimate.shift_angstrom is not None:
        poses["after"] = (estimate.rotation, estimate.shift_angstrom)
    result: dict[str, Any] = {n: asdict(pose_errors(*pose, *true, box_angstrom)) for n, pose in poses.items()}
    distances = {name: _pose_distances(*pose, *true)[1:] for name, pose in poses.items()}
    for index, key in enumerate(("angle_deg", "shift_angstrom")):
        top = max(float(np.percentile(values[index], 99)) for values in distances.values())
        edges = np.linspace(0, max(top, 1e-3), 41)
        counts = {name: np.histogram(values[index], edges)[0].tolist() for name, values in distances.items()}
        result[f"{key}_histogram"] = {"edges": edges.tolist(), **counts}
    return result
