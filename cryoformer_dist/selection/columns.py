"""What is known of each particle of a trained run, as named columns: to choose by, and to colour by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cryoformer_dist.data.selection import ParticleFile, RunState
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.physics.pose import Pose, relion_euler_from_rotation, rotation_angle_deg
from cryoformer_dist.runs.layout import LATENTS, PARTICLE_ANALYSIS
from cryoformer_dist.runs.manifest import read_manifest
from cryoformer_dist.runs.results import read_latent_table, read_made_results, read_of_checkpoint

Scale = Literal["number", "category", "angle"]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One thing known of each particle.

    Attributes
    ----------
    values
        ``(particles,)`` finite: float32, and int64 of a category.
    unit
        Empty where there is none.
    meaning
        In words.
    scale
        ``number``; ``category``: whole numbers that name groups; ``angle``: degrees, 360 of which are none.
    """

    values: NDArray[np.float32] | NDArray[np.int64]
    unit: str
    meaning: str
    scale: Scale = "number"


@dataclass(frozen=True, slots=True, eq=False)
class ParticleColumns:
    """The particles that a run was trained on, in the order of the store.

    Attributes
    ----------
    source
        The file that they came from.
    run
        Whose they are.
    source_row, store_row
        ``(particles,)`` int64 rows in the source and in the store.
    columns
        By name.
    table
        Arrays that they were made from, named as in latent.npz.
    store
        That the particles are in.
    """

    source: ParticleFile
    run: RunState
    source_row: NDArray[np.int64]
    store_row: NDArray[np.int64]
    columns: Mapping[str, Column]
    table: Mapping[str, np.ndarray]
    store: ParticleStore

    def __len__(self) -> int:
        return len(self.source_row)

    @property
    def refined(self) -> Pose | None:
        """Poses as trained; ``None`` where the given ones were kept."""
        return _refined(self.table)

    def values(self, name: str) -> NDArray[np.float32] | NDArray[np.int64]:
        """Values of a column.

        Raises
        ------
        SelectionError
            If there is none of this name: those there are, and the likeliest, are named.
        """
        if name in self.columns:
            return self.columns[name].values
        near = get_close_matches(name, self.columns, 1)
        hint = f"did you mean {near[0]}? " if near else f"{_SEARCHED[name]}. " if name in _SEARCHED else ""
        raise SelectionError(f"{self.run.home}: no column {name}; {hint}There are {', '.join(self.columns)}")


_SEARCHED = {
    "amplitude": "amplitudes are found with model.amplitude: posterior",
    "junk": "junk is looked for with model.junk: weighed",
    "alone": "neighbours are looked for with model.junk: weighed",
    "width": "latents have a width with model.latent.refinement: search",
    "confidence": "latents have a width with model.latent.refinement: search",
    "mixture": "`cryoformer-dist analyze` makes it",
    "umap1": "`cryoformer-dist analyze --umap` makes it",
    "pose_change_deg": "this run kept the given poses",
    "pose_change_angstrom": "this run kept the given poses",
}


def read_columns(run: Path, home: str) -> ParticleColumns:
    """The columns of a run that was trained to its end, from its latent.npz, its store and, where it was, its analysis.

    Parameters
    ----------
    run
        Run directory.
    home
        What it is called in selections.

    Raises
    ------
    SelectionError
        If there is no latent.npz yet, or it is not of the store's particles.
    """
    manifest, table, made = read_manifest(run), read_latent_table(run), read_made_results(run)
    if not table or made is None:
        raise SelectionError(f"{home}: no {LATENTS} yet; `cryoformer-dist reconstruct {home}` makes it")
    store = ParticleStore.open(manifest.store)
    if store.fingerprint != manifest.store_fingerprint:
        raise SelectionError(f"{store.path}: is not the store that {home} was trained on; put that one there")
    analysed = read_of_checkpoint(run, PARTICLE_ANALYSIS, made.checkpoint_step)
    return columns_of(table | (analysed or {}), store, RunState(home, made.checkpoint_step))


def columns_of(table: Mapping[str, np.ndarray], store: ParticleStore, run: RunState) -> ParticleColumns:
    """The columns of particles that a table with the arrays of latent.npz is of; those it lacks are left out.

    Parameters
    ----------
    table
        ``source_row`` and, as far as they are known, ``latent``, ``pca``, ``kmeans_label``, ``latent_deviation``,
        ``amplitude``, ``weight``, ``alone``, ``rotation`` and ``shift_angstrom``, ``mixture_label`` and
        ``mixture_probability``, ``umap``.
    store
        That the particles are in.
    run
        That the table is of.
    """
    particles = store.particles()
    store_row = _find_rows(particles.source_row, table["source_row"])
    columns = {
        **dict(_describe_latents(table)),
        **dict(_describe_findings(table)),
        **dict(_describe_poses(particles.pose(store_row), _refined(table))),
        **dict(_describe_images(particles, store_row)),
    }
    source = ParticleFile.of(store.attributes.source)
    return ParticleColumns(source, run, table["source_row"], store_row, columns, table, store)


def _refined(table: Mapping[str, np.ndarray]) -> Pose | None:
    if "rotation" not in table:
        return None
    return Pose(torch.from_numpy(table["rotation"]), torch.from_numpy(table["shift_angstrom"]))


def describe_columns(columns: ParticleColumns) -> list[str]:
    """A line for each column: name, lowest and highest value, meaning."""
    lines = []
    for name, column in columns.columns.items():
        unit = f" ({column.unit})" if column.unit else ""
        lines.append(f"{name:22} {column.values.min():10.5g} .. {column.values.max():<10.5g} {column.meaning}{unit}")
    return lines


def _find_rows(among: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of some source rows among those of a store."""
    order = np.argsort(among)
    place: NDArray[np.int64] = order[np.searchsorted(among[order], wanted).clip(max=len(order) - 1)]
    if (among[place] != wanted).any():
        raise SelectionError("the latents are of particles that the store does not hold; reconstruct the run again")
    return place


def _describe_latents(table: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Column]]:
    """Where a particle lies in the latent map."""
    if "pca" in table:
        yield from _number_axes("pc", table["pca"], "latent along principal axis")
    if "latent" in table:
        yield from _number_axes("z", table["latent"], "latent, dimension")
    if "kmeans_label" in table:
        yield "cluster", _category(table["kmeans_label"], "k-means cluster, numbered as its map volumes/kmeans_*.mrc")
    if "mixture_label" in table:
        yield "mixture", _category(table["mixture_label"], "Gaussian of the mixture that it is most probably of")
        yield "mixture_probability", _number(table["mixture_probability"], "", "how probably it is of that Gaussian")
    if "umap" in table:
        yield from _number_axes("umap", table["umap"], "coordinate by UMAP")


def _number_axes(prefix: str, values: np.ndarray, meaning: str) -> Iterator[tuple[str, Column]]:
    for axis in range(values.shape[1]):
        yield f"{prefix}{axis + 1}", _number(values[:, axis], "", f"{meaning} {axis + 1}")


def _describe_findings(table: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Column]]:
    """What the last search found beside the latent."""
    if "latent_deviation" in table:
        variance = np.square(table["latent_deviation"], dtype=np.float64).mean(axis=1)
        yield "width", _number(np.sqrt(variance), "", "standard deviation of the latent's posterior, per dimension")
        spread = table["latent"].var(axis=0, dtype=np.float64).mean().clip(min=1e-30)
        share = spread / (spread + variance)
        yield (
            "confidence",
            _number(share, "", "how surely the latent is known: 1 exactly, 0.5 as its cloud is wide"),
        )
    if "amplitude" in table:
        yield "amplitude", _number(table["amplitude"], "", "how strong the particle is; 1 on average")
    if "weight" in table:
        yield "junk", _number((1 - table["weight"]).clip(min=0), "", "probability that the image shows no particle")
    if "alone" in table:
        yield "alone", _number(table["alone"], "", "probability that it shows a particle and nothing beside it")


def _describe_poses(given: Pose, refined: Pose | None) -> Iterator[tuple[str, Column]]:
    """Views as trained, and how far they were moved."""
    pose = refined or given
    angles = relion_euler_from_rotation(pose.rotation.double()).numpy()
    meanings = ("of the view about the z axis", "of the view from the z axis", "in the image plane")
    for name, values, meaning in zip(("rot", "tilt", "psi"), angles.T, meanings, strict=True):
        yield f"{name}_deg", _number(values, "degrees", f"angle {meaning}, as RELION's; as trained", "angle")
    for axis, name in enumerate("xy"):
        shift = pose.shift_angstrom[:, axis].numpy()
        yield f"shift_{name}_angstrom", _number(shift, "Å", f"shift along {name} that centres the image; as trained")
    if refined is not None:
        turn = rotation_angle_deg(refined.rotation.double(), given.rotation.double()).numpy()
        yield "pose_change_deg", _number(turn, "degrees", "turn from the given to the trained pose")
        moved = (refined.shift_angstrom - given.shift_angstrom).norm(dim=1).numpy()
        yield "pose_change_angstrom", _number(moved, "Å", "distance from the given to the trained shift")


def _describe_images(particles: StoredParticles, rows: NDArray[np.int64]) -> Iterator[tuple[str, Column]]:
    """How the image was taken, and where it stands in its file."""
    both = [particles.defocus_u_angstrom[rows], particles.defocus_v_angstrom[rows]]
    yield "defocus_angstrom", _number(np.mean(both, axis=0), "Å", "defocus, mean of U and V; underfocus is positive")
    yield "astigmatism_angstrom", _number(np.abs(both[0] - both[1]), "Å", "difference of defocus U and V")
    yield (
        "phase_shift_deg",
        _number(particles.phase_shift_deg[rows], "degrees", "phase shift of a phase plate"),
    )
    yield "optics_group", _category(particles.optics_group[rows] + 1, "optics group, from 1 in the order of the source")
    yield "half_set", _category(particles.half_set[rows], "half-set of the source: 1, 2, or 0 where it says none")
    yield "source_row", Column(particles.source_row[rows], "", "row of the particle file, from 0")


def _number(values: np.ndarray, unit: str, meaning: str, scale: Scale = "number") -> Column:
    return Column(np.asarray(values, dtype=np.float32), unit, meaning, scale)


def _category(values: np.ndarray, meaning: str) -> Column:
    return Column(np.asarray(values, dtype=np.int64), "", meaning, "category")
