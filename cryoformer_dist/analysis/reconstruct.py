"""From latents to files: the map series and the latent table in the run directory, made by all ranks together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.analysis.latent import Clusters, find_principal_axes, kmeans, walk_axis
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import StoreError
from cryoformer_dist.figures.chimerax import compose_series_script
from cryoformer_dist.figures.surfaces import find_common_level
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.grids import CPU
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.progress import Progress
from cryoformer_dist.ranks import gather_objects, rank_and_world, take_from_leader, take_share
from cryoformer_dist.runs.layout import SERIES_MAP, SERIES_MAPS, SERIES_SCRIPT, VOLUMES
from cryoformer_dist.runs.results import write_latent_table
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.working_folder import WorkingFolder

CLUSTER_SERIES = "kmeans"
DecodeEach = Callable[[Float[np.ndarray, "maps latent"]], Iterable[Float[np.ndarray, "box box box"]]]
"""Latents to maps in density units, `[z, y, x]`, one after the other."""


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """How many maps to show.

    Attributes
    ----------
    clusters
        K-means centres.
    axes, points
        Principal axes to walk along, and maps on each.
    seed
        Of the k-means start.
    """

    clusters: int = 10
    axes: int = 2
    points: int = 9
    seed: int = 0

    @staticmethod
    def of(config: RunConfig) -> "SeriesPlan":
        """What a run asks for."""
        results = config.results
        return SeriesPlan(
            clusters=results.kmeans_volumes,
            axes=results.principal_components,
            points=results.volumes_per_component,
            seed=config.training.seed,
        )


@dataclass(frozen=True, slots=True)
class LatentSeries:
    """Latents chosen to be shown, by name of the series (``kmeans``, ``pc1``, ...), and the latent table.

    Attributes
    ----------
    latents
        ``(maps, latent)`` per series.
    table
        Arrays of latent.npz.
    """

    latents: dict[str, Float[np.ndarray, "maps latent"]]
    table: dict[str, np.ndarray]


def choose_clusters(
    latents: Float[np.ndarray, "particles latent"], plan: SeriesPlan, device: torch.device = CPU
) -> Clusters:
    """The k-means clusters whose centres are shown."""
    return kmeans(latents, plan.clusters, plan.seed, device)


def choose_latents(
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " rows"],
    plan: SeriesPlan,
    device: torch.device = CPU,
) -> LatentSeries:
    """Pick k-means centres (real particles) and walks along the first principal axes that vary at all."""
    if len(latents) != len(source_row):
        raise StoreError(f"{len(latents)} latents for {len(source_row)} store rows: both must be of one run")
    axes = find_principal_axes(latents)
    clusters = choose_clusters(latents, plan, device)
    chosen: dict[str, np.ndarray] = {CLUSTER_SERIES: clusters.centres}
    varying = int(np.count_nonzero(axes.explained_variance > 1e-6))
    for axis in range(min(plan.axes, varying)):
        chosen[f"pc{axis + 1}"] = walk_axis(latents, axes, axis, plan.points)
    table: dict[str, np.ndarray] = {
        "latent": latents.astype(np.float32),
        "source_row": source_row.astype(np.int64),
        "pca": axes.project(latents).astype(np.float32),
        "explained_variance": axes.explained_variance,
        "kmeans_label": clusters.label,
        "kmeans_row": clusters.centre_row,
    }
    for name, series in chosen.items():
        table[f"{name}_latent"] = series.astype(np.float32)
        table[f"{name}_pca"] = axes.project(series).astype(np.float32)
    return LatentSeries(chosen, table)


def reconstruct(
    working: WorkingFolder,
    decode_each: DecodeEach,
    table: Mapping[str, np.ndarray],
    voxel_size_angstrom: float,
    plan: SeriesPlan,
    labels: Sequence[str] = (),
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> list[Path]:
    """Decode the chosen latents; write ``volumes/<series>_<number>.mrc``, scripts, ``latent.npz``; send them home.

    The leader chooses, each rank decodes and writes its share of the maps. Maps of an earlier call are replaced, so the
    folder always shows one state of the run.

    Parameters
    ----------
    working, decode_each
        Run directory; latents to maps.
    table
        What is known of each trained particle, in store order: ``latent``, ``source_row``, and what else there is.
    voxel_size_angstrom
        Of the decoded maps.
    plan, labels
        What to show, and provenance written into every map's header.
    progress
        Called with maps done and in all, of this rank's share.
    device
        Where the latents are clustered.

    Returns
    -------
    list[Path]
        The maps of all ranks, in order; then a ChimeraX script for each series.
    """
    latents = table["latent"]
    series = choose_latents(latents, table["source_row"], plan, device) if rank_and_world()[0] == 0 else None
    chosen = take_from_leader(series.latents if series else {})
    entries = [_Entry(name, index, len(each)) for name, each in chosen.items() for index in range(len(each))]
    mine = take_share(len(entries))
    vectors = np.concatenate(list(chosen.values())).astype(latents.dtype)[mine]
    folder, levels = working.folder / VOLUMES, list[float]()
    folder.mkdir(parents=True, exist_ok=True)
    for count, (entry, voxels) in enumerate(zip(entries[mine], decode_each(vectors), strict=True), start=1):
        entry.write(folder, voxels, voxel_size_angstrom, labels)
        levels.append(find_common_level(voxels[None]))
        working.send(f"{VOLUMES}/{entry.file}")
        if progress is not None:
            progress(count, len(vectors))
    level = float(np.mean([each for share in gather_objects(levels) for each in share]))
    scripts = [SERIES_SCRIPT.format(series=name) for name in chosen]
    if series is not None:
        names = [CLUSTER_SERIES, *(f"pc{number}" for number in range(1, plan.axes + 1))]
        _remove_others(working, names, {*scripts, *(entry.file for entry in entries)})
        for name in chosen:
            _write_script(folder, [each for each in entries if each.series == name], level, name != CLUSTER_SERIES)
        working.send(*(f"{VOLUMES}/{name}" for name in scripts))
        working.send(write_latent_table(working.folder, {**table, **series.table}))
    return [folder / name for name in (*(entry.file for entry in entries), *scripts)]


def _remove_others(working: WorkingFolder, series: Sequence[str], keep: set[str]) -> None:
    """Remove maps and scripts of series that are not among those to keep."""
    found = [path.name for name in series for path in _find_series(working.folder / VOLUMES, name)]
    working.remove(*(f"{VOLUMES}/{name}" for name in found if name not in keep))


def _find_series(folder: Path, name: str) -> list[Path]:
    """Maps and script of a series, as far as there are any."""
    return [*folder.glob(SERIES_MAPS.format(series=name)), *folder.glob(SERIES_SCRIPT.format(series=name))]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One map of a series: its number from 0, how many there are, and what it shows beyond that."""

    series: str
    index: int
    count: int
    caption: str = ""

    @property
    def file(self) -> str:
        return SERIES_MAP.format(series=self.series, index=self.index)

    @property
    def what(self) -> str:
        number = f"{self.series} {self.index + 1} of {self.count}"
        return f"{number}: {self.caption}" if self.caption else number

    def write(
        self, folder: Path, voxels: Float[np.ndarray, "box box box"], voxel_size_angstrom: float, labels: Sequence[str]
    ) -> Path:
        volume = Volume(torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)), voxel_size_angstrom)
        write_volume(folder / self.file, volume, [*labels, self.what])
        return folder / self.file


def write_series(
    folder: Path,
    name: str,
    volumes: Iterable[Float[np.ndarray, "box box box"]],
    voxel_size_angstrom: float,
    captions: Sequence[str],
    labels: Sequence[str] = (),
    ordered: bool = True,
) -> list[Path]:
    """Write ``name_000.mrc`` ... and a ChimeraX script, replacing every earlier map of that series.

    Parameters
    ----------
    folder, name
        Where, and of what name.
    volumes
        One after the other.
    voxel_size_angstrom
        Of the maps.
    captions
        What each map shows, beyond its number.
    labels
        Provenance of all of them.
    ordered
        Whether each leads to the next.

    Returns
    -------
    list[Path]
        The maps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_series(folder, name)
    entries = [_Entry(name, index, len(captions), caption) for index, caption in enumerate(captions)]
    levels = []
    for entry, voxels in zip(entries, volumes, strict=True):
        entry.write(folder, voxels, voxel_size_angstrom, labels)
        levels.append(find_common_level(voxels[None]))
    _write_script(folder, entries, float(np.mean(levels)), ordered)
    return [folder / entry.file for entry in entries]


def _write_script(folder: Path, entries: Sequence[_Entry], level: float, ordered: bool) -> None:
    script, maps = SERIES_SCRIPT.format(series=entries[0].series), [(entry.file, entry.what) for entry in entries]
    write_whole(folder / script, compose_series_script(script, maps, level, ordered))


def remove_series(folder: Path, name: str) -> None:
    """Remove every map of a series, and its script."""
    for stale in _find_series(folder, name):
        stale.unlink()


def read_all_series(
    run: Path, name: str = "*", finest_box: int | None = None
) -> dict[str, Float[np.ndarray, "maps box box box"]]:
    """Every series of maps of a run, or one, by name; band-limited to a box of at most so many voxels, if told so."""
    series: dict[str, list[np.ndarray]] = {}
    for path in sorted((run / VOLUMES).glob(SERIES_MAPS.format(series=name))):
        voxels = read_volume(path).voxels.numpy()
        fitted = fit_box(voxels, min(len(voxels), finest_box or len(voxels)))
        series.setdefault(path.stem.rpartition("_")[0], []).append(fitted)
    return {name: np.stack(maps) for name, maps in series.items()}
