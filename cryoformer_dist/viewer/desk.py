"""Questions about one run, and their answers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from aiohttp import web

from cryoformer_dist.errors import SelectionError
from cryoformer_dist.exploration.analysis import keep_embedding
from cryoformer_dist.figures.movies import Film
from cryoformer_dist.figures.surfaces import find_common_level
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.layout import SELECTIONS
from cryoformer_dist.runs.results import read_made_results
from cryoformer_dist.selection.columns import Column, read_columns
from cryoformer_dist.selection.export import Export, export_selection, keep_selection, refuse_name
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.answers import answer_arrays, answer_bytes
from cryoformer_dist.viewer.files import list_maps, read_curves, read_flexibility, read_map, read_progress
from cryoformer_dist.viewer.films import make_film
from cryoformer_dist.viewer.maps import DecodedMaps
from cryoformer_dist.viewer.paths import MOST_STOPS, find_path
from cryoformer_dist.viewer.pictures import draw_sample, make_montage
from cryoformer_dist.viewer.requests import (
    AskedFilm,
    AskedImages,
    AskedMap,
    AskedPath,
    Chosen,
    MapOfFile,
    MapOfLatent,
    MapOfParticle,
    Saved,
    parse,
)
from cryoformer_dist.viewer.snapshot import Snapshot, choose, find_places

# A minute's drawing for a path; `movie` draws larger ones.
_FILM_HEIGHT = 432


class Desk:
    """What the page asks, answered one question after the other or at once.

    Parameters
    ----------
    working
        Run directory.
    snapshot
        As the run is shown.
    take
        Reads it anew.
    """

    def __init__(self, working: WorkingFolder, snapshot: Snapshot, take: Callable[[WorkingFolder], Snapshot]) -> None:
        self._working, self._take, self._lock = working, take, threading.Lock()
        self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self._snapshot, self._maps = snapshot, DecodedMaps(snapshot.trained)

    def describe_run(self) -> web.Response:
        """What there is to show."""
        snapshot = self._snapshot
        columns = snapshot.columns
        return web.json_response(
            {
                "name": snapshot.trained.manifest.name,
                "home": columns.run.home,
                "step": snapshot.step,
                "particles": len(columns),
                "source": columns.source.path,
                "box": snapshot.trained.manifest.box_size,
                "voxel_size_angstrom": snapshot.trained.manifest.pixel_size_angstrom,
                "dimensions": snapshot.latents.shape[1],
                "refined": columns.refined is not None,
                "maps": list_maps(self._working.folder),
                "columns": [_describe_column(name, column) for name, column in columns.columns.items()],
            }
        )

    def show_newest(self) -> web.Response:
        """Read the run's newest checkpoint, and go on with that."""
        with self._lock:
            self._show(self._take(self._working))
        return self.describe_run()

    def read_column(self, name: str) -> web.Response:
        """Values of all particles."""
        return answer_arrays({"values": self._snapshot.columns.values(name).astype(np.float32)})

    def choose(self, text: str) -> web.Response:
        """Places of the particles that a lasso, or several, and gates choose."""
        columns = self._snapshot.columns
        selection = choose(columns, parse(Chosen, text))
        return answer_arrays({"particles": find_places(columns, selection).astype(np.uint32)}, told=str(selection))

    def save(self, text: str) -> web.Response:
        """Keep a selection in the run directory, with files for other programs beside it."""
        asked: Saved = parse(Saved, text)
        refuse_name(asked.name)
        columns, working = self._snapshot.columns, self._working
        selection = choose(columns, asked.chosen)
        if not len(selection):
            raise SelectionError("no particle is selected; draw a lasso round some, or open the gates")
        with self._lock:
            outputs = tuple(working.folder / SELECTIONS / f"{asked.name}{suffix}" for suffix in asked.files)
            export = Export(outputs, refined_poses=asked.refined_poses)
            written = export_selection(selection, export, columns)
            kept = keep_selection(working, asked.name, selection)
            working.send(*(path.relative_to(working.folder).as_posix() for path in written))
        places = [str(kept), *(str(kept.parent / path.name) for path in written)]
        return web.json_response({"written": places, "particles": len(selection), "told": str(selection)})

    def make_map(self, text: str) -> web.Response:
        """A map of a particle, of a latent, of a selection or of the run directory, with how flexible it is where."""
        volume, averaged = self._make_volume(parse(AskedMap, text))
        colours = read_flexibility(self._working.folder)
        arrays = {"voxels": volume.voxels.numpy()}
        if colours is not None and colours.voxels.shape == volume.voxels.shape:
            arrays["flexibility"] = colours.voxels.numpy()
        return _answer_maps(arrays, volume.voxel_size_angstrom, averaged)

    def _make_volume(self, asked: AskedMap) -> tuple[Volume, int]:
        """A map, and of how many it is the mean."""
        snapshot, averaged = self._snapshot, 1
        if isinstance(asked, MapOfFile):
            return read_map(self._working.folder, asked.name), averaged
        if isinstance(asked, MapOfParticle):
            voxels = self._maps.of(snapshot.latents[_refuse_absent(asked.particle, snapshot)])
        elif isinstance(asked, MapOfLatent):
            voxels = self._maps.of(np.array(asked.latent))
        else:
            places = find_places(snapshot.columns, choose(snapshot.columns, asked.chosen))
            voxels, averaged = self._maps.mean_of(snapshot.latents[places])
        return Volume(torch.from_numpy(voxels), snapshot.trained.manifest.pixel_size_angstrom), averaged

    def make_film(self, text: str) -> web.Response:
        """A film of maps that morph one into the next, or of one that turns."""
        asked: AskedFilm = parse(AskedFilm, text)
        if not 1 <= len(asked.maps) <= MOST_STOPS:
            raise SelectionError(f"a film shows 1 to {MOST_STOPS} maps, not {len(asked.maps)}")
        volumes = [self._make_volume(each)[0] for each in asked.maps]
        maps = np.stack([volume.voxels.numpy() for volume in volumes])
        turns = len(maps) == 1
        made = make_film(Film(asked.name, maps, volumes[0].voxel_size_angstrom, _FILM_HEIGHT, turns, asked.level))
        return answer_bytes(made.content, suffix=made.suffix, told=made.told)

    def embed(self) -> web.Response:
        """Unroll the latents onto a plane by UMAP, and keep that as `analyze` does: columns from then on."""
        with self._lock:
            snapshot, working = self._snapshot, self._working
            made = read_made_results(working.folder)
            if made is None or made.checkpoint_step != snapshot.step:
                raise SelectionError("UMAP is kept with a run's results, and there are none of this checkpoint yet")
            working.send(keep_embedding(working.folder, snapshot.columns))
            self._snapshot = replace(snapshot, columns=read_columns(working.folder, str(working.home)))
        return self.describe_run()

    def find_path(self, text: str) -> web.Response:
        """Latents along a line, and how many particles they stand for."""
        path = find_path(self._snapshot, parse(AskedPath, text))
        arrays = {"latents": path.latents, "points": path.points, "particles": path.particles}
        return answer_arrays({name: values.astype(np.float32) for name, values in arrays.items()})

    def show_images(self, text: str) -> web.Response:
        """Some images of a selection, weighted by their CTF, and beside them projections of their maps."""
        asked: AskedImages = parse(AskedImages, text)
        snapshot = self._snapshot
        places = find_places(snapshot.columns, choose(snapshot.columns, asked.chosen))
        montage = make_montage(snapshot, self._maps, draw_sample(places, asked.count, asked.seed))
        rows = {name: getattr(montage, name).astype(np.float16) for name in ("images", "filtered", "projected")}
        return answer_arrays({"particles": montage.particles.astype(np.uint32), **rows})

    def tell_progress(self) -> web.Response:
        """How far training is."""
        progress = read_progress(self._working)
        told = {"newest_step": progress.newest_step, "finished": progress.finished, "told": progress.told}
        return answer_arrays(progress.records, shown_step=self._snapshot.step, **told)

    def read_curves(self) -> web.Response:
        """FSC curves of half-sets and against a known truth."""
        found = read_curves(self._working.folder)
        arrays = {f"{table}: {name}": values for table, curves in found.items() for name, values in curves.items()}
        return answer_arrays(arrays, tables=list(found))

    def find_written(self, name: str) -> Path:
        """A file that `save` wrote.

        Raises
        ------
        SelectionError
            If there is none of this name.
        """
        folder = self._working.folder / SELECTIONS
        if name not in {path.name for path in folder.glob("*") if path.is_file()}:
            raise SelectionError(f"{name}: no such file among the selections of this run; save it first")
        return folder / name


def _describe_column(name: str, column: Column) -> dict[str, str | float]:
    return {
        "name": name,
        "unit": column.unit,
        "meaning": column.meaning,
        "scale": column.scale,
        "low": float(column.values.min()),
        "high": float(column.values.max()),
    }


def _refuse_absent(particle: int, snapshot: Snapshot) -> int:
    if not 0 <= particle < len(snapshot.columns):
        raise SelectionError(f"no particle {particle}; this run has 0 to {len(snapshot.columns) - 1}")
    return particle


def _answer_maps(arrays: dict[str, np.ndarray], voxel_size_angstrom: float, averaged: int) -> web.Response:
    """Maps as float16 over a factor that brings each into [-1, 1]: densities may be any power of ten."""
    voxels = arrays["voxels"]
    level = find_common_level(voxels[None])
    factors = {name: float(np.abs(values).max()) or 1.0 for name, values in arrays.items()}
    halves = {name: (values / factors[name]).astype(np.float16) for name, values in arrays.items()}
    told = {"level": level, "factors": factors, "averaged": averaged, "voxel_size_angstrom": voxel_size_angstrom}
    return answer_arrays(halves, **told)
