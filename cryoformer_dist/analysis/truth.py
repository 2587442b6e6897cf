"""What a simulated set was made from: states, clean poses and reference maps."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cryoformer_dist.analysis.masks import SIZE_TOLERANCE
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import SmallSampleWarning, StoreError, StoreNotFoundError
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.inference.conformations import see_from
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.simulation.particle_set import TRUTH_TABLE
from cryoformer_dist.storage.array_files import read_arrays

WINDOW_SHARE = 0.6
"""Part of a state's half bin width from which its particles are taken."""
FEWEST_PARTICLES = 5
# Particles that say how far poses and amplitudes are off; what is less is rounding.
_COUNTED = 20_000
_ROUNDING_RAD, _ROUNDING_ANGSTROM = 1e-3, 1e-2


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
        ``(states,)`` coordinates of the reference maps ``(states, box, box, box)``, ascending.
    period
        Of the coordinate; 0 for a line.
    discrete
        Whether the states are classes.
    amplitude, junk, defocus_angstrom, offset
        What a simulation says of its images, None where the truth does not: ``(particles,)`` contrast; kind of what is
        no single particle (`simulation.nuisances.Junk`, 0 for a particle); ``(particles, 2)`` right defocus U and V;
        ``(particles,)`` brightness added.
    """

    state: Float[np.ndarray, " particles"]
    rotation: Float[np.ndarray, "particles 3 3"]
    shift_angstrom: Float[np.ndarray, "particles 2"]
    volume_state: Float[np.ndarray, " states"]
    volumes: Float[np.ndarray, "states box box box"]
    voxel_size_angstrom: float
    period: float
    discrete: bool
    amplitude: Float[np.ndarray, " particles"] | None = None
    junk: Int[np.ndarray, " particles"] | None = None
    defocus_angstrom: Float[np.ndarray, "particles 2"] | None = None
    offset: Float[np.ndarray, " particles"] | None = None

    @property
    def box_angstrom(self) -> float:
        """Side of the reference maps."""
        return float(self.voxel_size_angstrom * self.volumes.shape[-1])

    def pose(self, source_row: Int[np.ndarray, " rows"]) -> Pose:
        """Right poses of these rows of the particle file."""
        return Pose(torch.from_numpy(self.rotation[source_row]), torch.from_numpy(self.shift_angstrom[source_row]))

    def shows_particle(self, source_row: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Which of these rows of the particle file are particles, not junk."""
        if self.junk is None:
            return np.ones(len(source_row), dtype=bool)
        kept: np.ndarray = self.junk[source_row] == 0
        return kept


def read_truth(folder: Path) -> Truth:
    """Read the truth folder a simulation leaves beside its particles.

    Raises
    ------
    StoreNotFoundError
        If ``truth.npz`` or a reference map is missing: name the folder written by ``simulate``.
    StoreError
        If the reference maps differ in box or voxel size, or there is none of a particle's class.
    """
    table = folder / TRUTH_TABLE
    if not table.is_file():
        raise StoreNotFoundError(f"no {table}: give the truth folder that `simulate` wrote, or leave it out")
    data = read_arrays(table, "simulate the set again")
    paths = [folder / f"volume_{index:03d}.mrc" for index in range(len(data["volume_state"]))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise StoreNotFoundError(f"{folder} lacks {', '.join(missing)}: simulate the set again")
    volumes = [read_volume(path) for path in paths]
    _refuse_unlike(paths, volumes)
    unknown = np.setdiff1d(data["state"], data["volume_state"])
    if data["discrete"] and len(unknown):
        known = ", ".join(f"{value:g}" for value in np.unique(data["volume_state"]))
        raise StoreError(
            f"{table}: particles are of class {unknown[0]:g}, volume_state names {known}: give a reference map for "
            "every class, numbered alike"
        )
    # A distant state is half the range away, so references must follow one another.
    order = np.argsort(data["volume_state"], kind="stable")
    return Truth(
        state=data["state"].astype(np.float64),
        rotation=data["rotation"].astype(np.float32),
        shift_angstrom=data["shift_angstrom"].astype(np.float32),
        volume_state=data["volume_state"][order].astype(np.float64),
        volumes=np.stack([volumes[index].voxels.numpy() for index in order]),
        voxel_size_angstrom=volumes[0].voxel_size_angstrom,
        period=float(data["period"]),
        discrete=bool(data["discrete"]),
        amplitude=data.get("amplitude"),
        junk=data.get("junk"),
        defocus_angstrom=_read_defocus(data),
        offset=data.get("offset"),
    )


def _read_defocus(data: Mapping[str, np.ndarray]) -> Float[np.ndarray, "particles 2"] | None:
    names = ("defocus_u_angstrom", "defocus_v_angstrom")
    return np.stack([data[name] for name in names], axis=1) if names[0] in data else None


def _refuse_unlike(paths: list[Path], volumes: list[Volume]) -> None:
    """All reference maps must lie on one grid."""
    first = volumes[0]
    for path, volume in zip(paths, volumes, strict=True):
        box, size = volume.voxels.shape[-1], volume.voxel_size_angstrom
        unlike = abs(size - first.voxel_size_angstrom) > SIZE_TOLERANCE * first.voxel_size_angstrom
        if box != first.voxels.shape[-1] or unlike:
            raise StoreError(
                f"{path}: box {box} at {size:g} Å per voxel, {paths[0].name} has {first.voxels.shape[-1]} at "
                f"{first.voxel_size_angstrom:g}: give all reference maps on one grid, with the voxel size in the header"
            )


def measure_spread(truth: Truth, particles: StoredParticles, rows: Int[np.ndarray, " rows"]) -> Spread:
    """How far given poses, and amplitudes, truly depart from right and from 1; 0 where by rounding only.

    Parameters
    ----------
    truth
        Of the set.
    particles, rows
        Given poses, and the particles asked for.
    """
    rows = rows[:: stride_for(len(rows), _COUNTED)]
    source = particles.source_row[rows]
    given = Pose(torch.from_numpy(particles.rotation[rows]), torch.from_numpy(particles.shift_angstrom[rows]))
    apart = see_from(truth.pose(source), given).square().mean(dim=0).numpy()
    turn, shift = float(np.sqrt(apart[:3].mean())), float(np.sqrt(apart[3:].mean()))
    amplitude = np.ones(1) if truth.amplitude is None else truth.amplitude[source]
    return Spread(
        rotation_rad=turn if turn > _ROUNDING_RAD else 0.0,
        shift_angstrom=shift if shift > _ROUNDING_ANGSTROM else 0.0,
        amplitude=float(amplitude.std() / amplitude.mean()),
    )


def choose_particles(state: Float[np.ndarray, " particles"], truth: Truth) -> list[Int[np.ndarray, " chosen"]]:
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
        distance = state_distance(state, value, truth.period)
        rows = np.flatnonzero(distance <= WINDOW_SHARE * spacing / 2)
        if len(rows) < FEWEST_PARTICLES:
            message = f"only {len(rows)} particles near state {value:g}; taking the nearest {FEWEST_PARTICLES}"
            warnings.warn(message, SmallSampleWarning, stacklevel=2)
            rows = np.argsort(distance, kind="stable")[:FEWEST_PARTICLES]
        chosen.append(rows)
    return chosen


def state_distance(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."] | float, period: float
) -> Float[np.ndarray, "..."]:
    """How far states lie apart, the short way round when the coordinate is periodic (``period`` above 0)."""
    distance: np.ndarray = np.abs(first - second)
    return np.minimum(distance % period, -distance % period) if period else distance


def find_nearest_reference(state: Float[np.ndarray, " particles"], truth: Truth) -> Int[np.ndarray, " particles"]:
    """Index of the reference map that stands for each particle: its class, or the nearest along the coordinate."""
    nearest = np.zeros(len(state), dtype=np.int64)
    least = np.full(len(state), np.inf)
    for index, value in enumerate(truth.volume_state):
        distance = state_distance(state, float(value), truth.period)
        closer = distance < least
        nearest[closer], least[closer] = index, distance[closer]
    return nearest
