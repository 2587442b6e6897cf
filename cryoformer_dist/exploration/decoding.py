"""Maps of what is asked for: particles, latents of a file, a selection, a path; checked before the network loads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.analysis.reconstruct import DecodeEach, write_series
from cryoformer_dist.analysis.results import label_maps
from cryoformer_dist.analysis.trained import load_trained, with_weight_at_refined_poses
from cryoformer_dist.data.selection import Selection, read_selection
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.local_resolution import filter_locally, read_resolution
from cryoformer_dist.exploration.path import LatentPath, read_path
from cryoformer_dist.exploration.places import find_particles
from cryoformer_dist.progress import Progress
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.selection.columns import ParticleColumns, read_columns
from cryoformer_dist.storage.working_folder import WorkingFolder

Form = Literal["mean", "centre", "each"]
MEAN_OF = 50
"""A mean map is of at most so many particles, drawn at random: its error is then a seventh of the maps' spread."""
# Files are numbered by three digits.
_MOST_MAPS = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What to decode.

    Attributes
    ----------
    particles
        Rows of the particle file.
    latents
        Text file of latents, one a line.
    selection
        Chosen particles, as JSON.
    form
        Of the selection: the mean of its particles' maps, the particle in its midst, or each of them.
    path
        As `write_path` keeps it.
    resolution
        Map of resolutions in angstrom that maps are filtered to, place by place.
    """

    particles: tuple[int, ...] = ()
    latents: Path | None = None
    selection: Path | None = None
    form: Form = "mean"
    path: Path | None = None
    resolution: Path | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Latents to be decoded to a series of maps.

    Attributes
    ----------
    name
        Of its files.
    latents
        ``(latents, dimensions)``.
    captions
        What each map shows.
    ordered
        Whether each map leads to the next.
    averaged
        Whether the one map is the mean of those of all latents.
    """

    name: str
    latents: Float[np.ndarray, "latents dimensions"]
    captions: tuple[str, ...]
    ordered: bool = False
    averaged: bool = False

    def decode(self, decode_each: DecodeEach, progress: Progress) -> Iterator[Float[np.ndarray, "box box box"]]:
        """The maps, one after the other."""
        maps = _count(decode_each(self.latents), len(self.latents), progress)
        if not self.averaged:
            yield from maps
            return
        total = next(maps).astype(np.float64)
        for voxels in maps:
            total += voxels
        yield (total / len(self.latents)).astype(np.float32)


def choose_series(run: Path, columns: ParticleColumns, request: Request) -> list[Series]:
    """What is asked for, as latents.

    Parameters
    ----------
    run
        Run directory.
    columns
        Its particles.
    request
        At least one thing.

    Raises
    ------
    ExplorationError
        If nothing is asked for, a particle is not of the run, latents are of another width, or the results are older
        than the newest checkpoint.
    SelectionError
        If the selection is of another particle file.
    """
    series = list(_choose(columns, request))
    if not series:
        raise ExplorationError("say what to decode: --particle, --latent, --selection or --path; may be taken together")
    for each in series:
        if len(each.captions) > _MOST_MAPS:
            raise ExplorationError(
                f"{len(each.captions)} maps of one series; at most {_MOST_MAPS} are written: choose fewer, or --form "
                "mean"
            )
    newest = latest_checkpoint(run)
    if newest is None or newest.position.step != columns.run.checkpoint_step:
        raise ExplorationError(
            f"{columns.run.home}: its latents are of step {columns.run.checkpoint_step}, the newest checkpoint is "
            f"{'gone' if newest is None else f'of step {newest.position.step}'}; "
            f"`cryoformer-dist reconstruct {columns.run.home}` makes them agree"
        )
    return series


def _choose(columns: ParticleColumns, request: Request) -> Iterator[Series]:
    latents = columns.table["latent"]
    if request.particles:
        rows = find_particles(columns, request.particles)
        yield Series("particle", latents[rows], tuple(f"particle {row}" for row in request.particles))
    if request.latents is not None:
        given = read_latents(request.latents, latents.shape[1])
        captions = tuple(f"line {number} of {request.latents.name}" for number in range(1, len(given) + 1))
        yield Series("latent", given, captions)
    if request.selection is not None:
        yield _choose_selected(columns, read_selection(request.selection), request)
    if request.path is not None:
        yield _choose_path(columns, read_path(request.path), request.path)


def _choose_selected(columns: ParticleColumns, selection: Selection, request: Request) -> Series:
    selection.refuse_other_source(columns.source, columns.run.home)
    rows = np.flatnonzero(np.isin(columns.source_row, selection.source_row))
    if not len(rows):
        raise ExplorationError(
            f"{request.selection}: none of its {len(selection)} particles is among the {len(columns)} that "
            f"{columns.run.home} was trained on"
        )
    latents = columns.table["latent"]
    if request.form == "each":
        return Series("selection", latents[rows], tuple(f"particle {columns.source_row[row]}" for row in rows))
    if request.form == "centre":
        middle = rows[np.square(latents[rows] - latents[rows].mean(axis=0)).sum(axis=1).argmin()]
        caption = f"particle {columns.source_row[middle]}, in the midst of {len(rows)}"
        return Series("selection", latents[[middle]], (caption,))
    drawn = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:MEAN_OF])]
    return Series("selection", latents[drawn], (f"mean of {len(drawn)} of {len(rows)} particles",), averaged=True)


def _choose_path(columns: ParticleColumns, path: LatentPath, file: Path) -> Series:
    here = columns.run
    if (Path(path.run.home).name, path.run.checkpoint_step) != (Path(here.home).name, here.checkpoint_step):
        raise ExplorationError(
            f"{file}: a path through the latents of {path.run.home} at step {path.run.checkpoint_step}, not of "
            f"{here.home} at step {here.checkpoint_step}; make it again with `cryoformer-dist path`"
        )
    _refuse_other_width(file, path.points, columns.table["latent"].shape[1])
    ends = {0: f", {path.start}", len(path.particles) - 1: f", {path.end}"}
    captions = tuple(f"{count} particles{ends.get(index, '')}" for index, count in enumerate(path.particles))
    return Series("path", path.points, captions, ordered=True)


def read_latents(file: Path, dimensions: int) -> Float[np.ndarray, "latents dimensions"]:
    """Latents of a text file, one a line, numbers apart by spaces; what follows a ``#`` is a comment.

    Raises
    ------
    ExplorationError
        If the file is absent, holds no latent, one that is not all finite numbers, or of another width.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [[float(word) for word in text.split()] for line in lines if (text := line.partition("#")[0].strip())]
        latents = np.array(rows, dtype=np.float32)
    except FileNotFoundError:
        raise ExplorationError(f"{file}: no such file of latents") from None
    except ValueError as error:
        raise ExplorationError(f"{file}: {error}; write one latent a line, as many numbers in each") from None
    if latents.ndim != 2 or not np.isfinite(latents).all():
        raise ExplorationError(f"{file}: no latents, or not finite ones; write one a line, numbers apart by spaces")
    _refuse_other_width(file, latents, dimensions)
    return latents


def _refuse_other_width(file: Path, latents: np.ndarray, dimensions: int) -> None:
    if latents.shape[1] != dimensions:
        raise ExplorationError(f"{file}: latents of {latents.shape[1]} numbers; those of this run have {dimensions}")


def write_requested(working: WorkingFolder, request: Request, folder: Path, progress: Progress) -> list[Path]:
    """Decode what is asked for of a run and write it, with a ChimeraX script for each series.

    Maps are filtered as those that the run itself writes, and to a map of resolutions, if one is given.

    Parameters
    ----------
    working
        Run directory, with its newest checkpoint.
    request
        What to decode.
    folder
        Where to; maps of earlier series of the same names are replaced.
    progress
        Called with latents decoded and in all, of each series.

    Returns
    -------
    list[Path]
        The maps.

    Raises
    ------
    ExplorationError, SelectionError
        As `choose_series`.
    """
    columns = read_columns(working.folder, str(working.home))
    series, resolution = choose_series(working.folder, columns, request), _read_resolution(columns, request)
    trained = with_weight_at_refined_poses(working, load_trained(working.folder))
    size, labels = trained.manifest.pixel_size_angstrom, list(label_maps(working.folder, trained))
    finish = partial(_filter_to, resolution, size)
    if request.resolution is not None:
        labels.append(f"filtered to the resolutions of {request.resolution.name}")
    written: list[Path] = []
    for each in series:
        maps = map(finish, each.decode(trained.decode_each, progress))
        written += write_series(folder, each.name, maps, size, each.captions, labels, each.ordered)
    return written


def _read_resolution(columns: ParticleColumns, request: Request) -> Tensor | None:
    if request.resolution is None:
        return None
    box = columns.store.box_size
    return read_resolution(request.resolution, box, box * columns.store.pixel_size_angstrom)


def _filter_to(
    resolution: Tensor | None, voxel_size_angstrom: float, voxels: Float[np.ndarray, "box box box"]
) -> Float[np.ndarray, "box box box"]:
    if resolution is None:
        return voxels
    filtered: np.ndarray = filter_locally(torch.from_numpy(voxels), resolution, voxel_size_angstrom).numpy()
    return filtered


def _count(maps: Iterable[np.ndarray], total: int, progress: Progress) -> Iterator[np.ndarray]:
    for done, voxels in enumerate(maps, start=1):
        yield voxels
        progress(done, total)
