"""From latents to files: the map series and the latent table in the run directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.analysis.evaluate import Decode
from cryoformer_dist.analysis.latent import find_principal_axes, kmeans, walk_axis
from cryoformer_dist.errors import StoreError
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.layout import LATENTS, SERIES_MAP, SERIES_MAPS, VOLUMES
from cryoformer_dist.storage.places import replaced


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


def choose_latents(
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " rows"],
    plan: SeriesPlan,
) -> LatentSeries:
    """Pick k-means centres (real particles) and walks along the first principal axes that vary at all."""
    if len(latents) != len(source_row):
        raise StoreError(f"{len(latents)} latents for {len(source_row)} store rows: both must be of one run")
    axes = find_principal_axes(latents)
    clusters = kmeans(latents, plan.clusters, plan.seed)
    chosen: dict[str, np.ndarray] = {"kmeans": clusters.centres}
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
    run: Path,
    decode: Decode,
    latents: Float[np.ndarray, "particles latent"],
    source_row: Int[np.ndarray, " rows"],
    voxel_size_angstrom: float,
    plan: SeriesPlan,
    labels: Sequence[str] = (),
) -> list[Path]:
    """Decode the chosen latents and write ``volumes/<series>_<number>.mrc`` and ``latent.npz``.

    Maps of an earlier call are replaced, so the folder always shows one state of the run.

    Parameters
    ----------
    run
        Run directory.
    decode
        Latents to maps.
    latents, source_row
        One row per trained particle, in store order.
    voxel_size_angstrom
        Of the decoded maps.
    plan
        What to show.
    labels
        Provenance written into every map's header.

    Returns
    -------
    list[Path]
        The maps, in order.
    """
    series = choose_latents(latents, source_row, plan)
    written: list[Path] = []
    for name, chosen in series.latents.items():
        volumes = decode(chosen.astype(latents.dtype))
        written += write_series(run / VOLUMES, name, volumes, voxel_size_angstrom, labels)
    for number in range(1, plan.axes + 1):
        if f"pc{number}" not in series.latents:
            remove_series(run / VOLUMES, f"pc{number}")
    with replaced(run / LATENTS) as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **series.table)
    return written


def write_series(
    folder: Path,
    name: str,
    volumes: Float[np.ndarray, "maps box box box"],
    voxel_size_angstrom: float,
    labels: Sequence[str] = (),
) -> list[Path]:
    """Write ``name_000.mrc`` ..., replacing every earlier map of that series."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_series(folder, name)
    paths = [folder / SERIES_MAP.format(series=name, index=index) for index in range(len(volumes))]
    for index, (path, voxels) in enumerate(zip(paths, volumes, strict=True)):
        volume = Volume(torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)), voxel_size_angstrom)
        write_volume(path, volume, [*labels, f"{name} {index + 1} of {len(volumes)}"])
    return paths


def remove_series(folder: Path, name: str) -> None:
    """Remove every map of a series."""
    for stale in folder.glob(SERIES_MAPS.format(series=name)):
        stale.unlink()


def read_all_series(run: Path) -> dict[str, Float[np.ndarray, "maps box box box"]]:
    """Every series of maps of a run, by name."""
    series: dict[str, list[np.ndarray]] = {}
    for path in sorted((run / VOLUMES).glob(SERIES_MAPS.format(series="*"))):
        series.setdefault(path.stem.rpartition("_")[0], []).append(read_volume(path).voxels.numpy())
    return {name: np.stack(maps) for name, maps in series.items()}


def read_latent_table(run: Path) -> dict[str, np.ndarray]:
    """Arrays of latent.npz; none before they were written."""
    if not (run / LATENTS).is_file():
        return {}
    with np.load(run / LATENTS, allow_pickle=False) as table:
        return {name: table[name] for name in table.files}
