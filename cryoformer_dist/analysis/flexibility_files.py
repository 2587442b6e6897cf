"""Flexible regions as they lie in the run directory: maps, numbers, and a script that shows them in ChimeraX."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cryoformer_dist.analysis.flexibility import (
    DENSITY_SHARE,
    VARIANCE_SHARE,
    Flexibility,
    QueryRank,
    find_true_regions,
    measure_flexibility,
    rank_queries,
    sample_latents,
    score_flexibility,
)
from cryoformer_dist.analysis.latent import correlation
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.trained import DecodedState, TrainedRun
from cryoformer_dist.figures.chimerax import compose_palette
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.ranks import rank_and_world, take_from_leader, take_share
from cryoformer_dist.runs.layout import (
    ATTENTION,
    ATTENTION_MAP,
    ATTENTION_MAPS,
    ATTENTION_VARIATION_MAP,
    FLEXIBILITY,
    FLEXIBILITY_MAP,
    FLEXIBILITY_SCRIPT,
    MEAN_MAP,
    SERIES_MAP,
    VOLUMES,
)
from cryoformer_dist.runs.manifest import SCHEMA_VERSION
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.records import read_record, write_record
from cryoformer_dist.storage.working_folder import WorkingFolder

_ATTENTION_BYTES = 1 << 30

Range = tuple[float, float]
"""Ends of a scale of colours."""


@dataclass(frozen=True, slots=True)
class TruthDetectors:
    """Maps as detectors of what moves in truth: the chance that a voxel that moves ranks above one that does not.

    Attributes
    ----------
    region, moving
        Which voxels are asked, and what moving is, in words.
    region_voxels, moving_share
        How many there are, and how many of them move.
    roc_auc, attention_roc_auc, attention_variation_roc_auc
        Of the flexibility map, the attention to the best query, and the change of all attention; None where nothing
        moves in truth.
    weak_density_roc_auc
        Of calling weak density flexible, as anyone can without this program.
    """

    region: str
    moving: str
    region_voxels: int
    moving_share: float
    roc_auc: float | None
    attention_roc_auc: float | None
    attention_variation_roc_auc: float | None
    weak_density_roc_auc: float | None


@dataclass(frozen=True, slots=True)
class FlexibilitySummary:
    """What ``flexibility.json`` holds.

    Attributes
    ----------
    measure, molecule
        What was measured, and what is counted as molecule, in words.
    states
        Over how many.
    mean_level
        Contour of the mean map.
    molecule_points
        Evaluated points of the molecule.
    flexibility_range
        Colours of the flexibility map.
    flexible_share
        Share of the molecule that deviates by more than half of the range.
    best_query, best_attention_range
        The query whose attention follows the flexibility map best, and the colours of its attention.
    attention_variation_correlation, attention_variation_range
        Of the change of all attention: correlation with the flexibility map, and colours.
    queries
        Best first.
    truth
        None where no truth is known, or it has not been asked yet.
    """

    measure: str
    states: int
    mean_level: float
    molecule: str
    molecule_points: int
    flexibility_range: Range
    flexible_share: float
    best_query: int
    best_attention_range: Range
    attention_variation_correlation: float
    attention_variation_range: Range
    queries: tuple[QueryRank, ...]
    truth: TruthDetectors | None


def find_flexible_regions(
    working: WorkingFolder, trained: TrainedRun, labels: Sequence[str] = (), progress: StagedProgress = silent
) -> list[Path]:
    """Measure the flexibility of a trained run, all ranks together, and write it; see `write_flexibility`."""
    chosen = sample_latents(trained.latents, seed=trained.config.training.seed)
    mine = chosen[take_share(len(chosen))]

    def count_states() -> Iterator[DecodedState]:
        for number, state in enumerate(trained.decode_states(mine), start=1):
            yield state
            progress("flexible regions", number, len(mine))

    flat_index = trained.learner.objectives.lattice.flat_index.cpu().numpy()
    flexibility = measure_flexibility(count_states(), flat_index, trained.manifest.box_size)
    return write_flexibility(working, flexibility, trained.manifest.pixel_size_angstrom, labels)


def write_flexibility(
    working: WorkingFolder, flexibility: Flexibility, voxel_size_angstrom: float, labels: Sequence[str] = ()
) -> list[Path]:
    """Write maps, ``flexibility.json`` and ``flexibility.cxc`` into a run directory, replacing earlier ones.

    Maps are ``volumes/mean.mrc``, ``volumes/flexibility.mrc`` and ``attention/query_00.mrc`` ..., best query
    first as far as 1 GiB goes. Each rank writes its share of them, the leader all else.

    Returns
    -------
    list[Path]
        The maps of all ranks, then the script.
    """
    run = working.folder
    ranking = take_from_leader(_name_maps(rank_queries(flexibility), flexibility.mean.nbytes))
    maps = _list_maps(flexibility, ranking)
    for folder in (VOLUMES, ATTENTION):
        (run / folder).mkdir(parents=True, exist_ok=True)
    for name, what, make in maps[take_share(len(maps))]:
        _write_map(run / name, make(), voxel_size_angstrom, [*labels, what])
        working.send(name)
    names = [name for name, _, _ in maps]
    if rank_and_world()[0] == 0:
        stale = (path.relative_to(run).as_posix() for path in run.glob(ATTENTION_MAPS))
        working.remove(*(name for name in stale if name not in names))
        summary = summarise(flexibility, ranking)
        write_whole(run / FLEXIBILITY_SCRIPT, compose_script(summary))
        write_record(run / FLEXIBILITY, summary, SCHEMA_VERSION)
        working.send(FLEXIBILITY_SCRIPT, FLEXIBILITY)
    return [run / name for name in (*names, FLEXIBILITY_SCRIPT)]


def _name_maps(ranking: Sequence[QueryRank], bytes_of_map: int) -> list[QueryRank]:
    """Give the best queries a file each, as far as there is room."""
    most = max(_ATTENTION_BYTES // bytes_of_map, 1)
    return [
        replace(rank, map=ATTENTION_MAP.format(query=rank.query)) if number < most else rank
        for number, rank in enumerate(ranking)
    ]


def _list_maps(
    flexibility: Flexibility, ranking: Sequence[QueryRank]
) -> list[tuple[str, str, Callable[[], Float[np.ndarray, "box box box"]]]]:
    """Files, what each shows, and how it is made."""
    over = f"over {flexibility.states} states"
    attention = [
        (rank.map, f"mean attention to query {rank.query}", partial(flexibility.attention_map, rank.query))
        for rank in ranking
        if rank.map is not None
    ]
    return [
        (MEAN_MAP, f"mean of {flexibility.states} states", lambda: flexibility.mean),
        (FLEXIBILITY_MAP, f"standard deviation {over}", lambda: flexibility.deviation),
        (
            ATTENTION_VARIATION_MAP,
            f"standard deviation of the attention {over}",
            flexibility.attention_variation_map,
        ),
        *attention,
    ]


def _write_map(path: Path, voxels: np.ndarray, voxel_size_angstrom: float, labels: Sequence[str]) -> None:
    write_volume(path, Volume(torch.from_numpy(np.ascontiguousarray(voxels)), voxel_size_angstrom), labels)


def read_flexibility(run: Path) -> FlexibilitySummary | None:
    """Contents of flexibility.json; None where it was not written.

    Raises
    ------
    CryoFormerError
        If the file is damaged or of another version.
    """
    path = run / FLEXIBILITY
    if not path.is_file():
        return None
    return read_record(path, FlexibilitySummary, SCHEMA_VERSION, f"run `cryoformer-dist reconstruct {run}` again")


def summarise(flexibility: Flexibility, ranking: Sequence[QueryRank]) -> FlexibilitySummary:
    """The numbers of a measurement, and how far to stretch colours."""
    inside = flexibility.in_molecule
    spread = flexibility.deviation[flexibility.molecule]
    top = _take_percentile(spread, 98.0)
    best = ranking[0].query
    weight = flexibility.attention[inside, best]
    change = flexibility.attention_variation_map()[flexibility.molecule]
    return FlexibilitySummary(
        measure="standard deviation of the density over states of particles drawn at random",
        states=flexibility.states,
        mean_level=flexibility.level,
        molecule="evaluated points above mean_level in at least one state",
        molecule_points=int(inside.sum()),
        flexibility_range=(0.0, top),
        flexible_share=round(float((spread > top / 2).mean()), 4) if top > 0 else 0.0,
        best_query=best,
        best_attention_range=(_take_percentile(weight, 2.0), _take_percentile(weight, 98.0)),
        attention_variation_correlation=round(correlation(change, spread), 4),
        attention_variation_range=(0.0, _take_percentile(change, 98.0)),
        queries=tuple(ranking),
        truth=None,
    )


def _take_percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else 0.0


def judge_flexibility(run: Path, truth_volumes: Float[np.ndarray, "states large large large"]) -> None:
    """Add to ``flexibility.json``, where there is one, how well its maps tell what moves in truth."""
    summary = read_flexibility(run)
    if summary is None:
        return
    files = (MEAN_MAP, FLEXIBILITY_MAP, ATTENTION_MAP.format(query=summary.best_query), ATTENTION_VARIATION_MAP)
    mean, deviation, best, variation = (read_volume(run / file).voxels.numpy() for file in files)
    detectors = _compare_with_truth(truth_volumes, mean, deviation, best, variation)
    write_record(run / FLEXIBILITY, replace(summary, truth=detectors), SCHEMA_VERSION)


def _compare_with_truth(
    truth_volumes: np.ndarray, mean: np.ndarray, deviation: np.ndarray, best: np.ndarray, variation: np.ndarray
) -> TruthDetectors:
    """Flexibility map, best attention map and weak mean density as detectors of what moves in truth."""
    truth = np.stack([fit_box(voxels, mean.shape[-1]) for voxels in truth_volumes])
    molecule, moving = find_true_regions(truth)

    def score(voxels: np.ndarray) -> float | None:
        found = score_flexibility(voxels, truth)
        return None if found is None else round(found, 4)

    return TruthDetectors(
        region=f"voxels where any reference state exceeds {DENSITY_SHARE:g} of the greatest density",
        moving=f"variance over the reference states above {VARIANCE_SHARE:g} of the greatest",
        region_voxels=int(molecule.sum()),
        moving_share=round(float(moving[molecule].mean()), 4) if molecule.any() else 0.0,
        roc_auc=score(deviation),
        attention_roc_auc=score(best),
        attention_variation_roc_auc=score(variation),
        weak_density_roc_auc=score(-mean),
    )


def compose_script(summary: FlexibilitySummary) -> str:
    """Commands that colour the mean map by flexibility and say how to do it by attention.

    ChimeraX runs a script in the script's own folder, so the paths hold wherever the run directory goes.
    """
    best, moving = summary.best_query, compose_palette(*summary.flexibility_range)
    return f"""\
# Flexible regions of this run. Open in an empty session: chimerax {FLEXIBILITY_SCRIPT}
open {MEAN_MAP} id 1
open {FLEXIBILITY_MAP} id 2
volume #1 style surface step 1 level {summary.mean_level:.5g}
hide #2 models
color sample #1 map #2 palette {moving} key true
lighting soft
view

# By the attention to query {best}, which follows the flexibility best:
#   open {ATTENTION_MAP.format(query=best)} id 3
#   hide #3 models
#   color sample #1 map #3 palette {compose_palette(*summary.best_attention_range)} key true

# One state instead of the mean, coloured by flexibility:
#   open {VOLUMES}/{SERIES_MAP.format(series="kmeans", index=0)} id 4
#   hide #1 models
#   color sample #4 map #2 palette {moving} key true
"""
