"""A molecule that moves: atom coordinates as a function of one state coordinate."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cryoformer_dist.config.simulation import HingeSource, ModelsSource, MorphSource, PhantomSource
from cryoformer_dist.errors import ConfigError, CryoFormerWarning
from cryoformer_dist.io.atoms import AtomicModel, match_atoms, read_structure, read_trajectory, select_atoms
from cryoformer_dist.simulation.phantom import antibody_phantom

_FULL_TURN_DEG = 360.0
_CLASH_ANGSTROM = 4.0
_MIN_MATCHED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class HingedMolecule:
    """A rigid group turns about an axis through a pivot by the state, an angle in degrees (right-handed).

    Attributes
    ----------
    atoms_angstrom, weight
        `(atoms, 3)` at angle 0 and `(atoms,)`.
    moving
        `(atoms,)` true for the group that turns.
    pivot_angstrom, axis
        `(3,)` each.
    state_range
        First and last angle.
    """

    atoms_angstrom: NDArray[np.float64]
    weight: NDArray[np.float64]
    moving: NDArray[np.bool_]
    pivot_angstrom: NDArray[np.float64]
    axis: NDArray[np.float64]
    state_range: tuple[float, float]

    @property
    def period(self) -> float:
        """State difference after which the molecule is the same again: 360 for a full turn, else 0."""
        return _FULL_TURN_DEG if self.state_range[1] - self.state_range[0] == _FULL_TURN_DEG else 0.0

    @property
    def frames(self) -> int | None:
        """None: any angle is a state."""
        return None

    def coordinates_angstrom(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """`(states,)` degrees to `(states, atoms, 3)`."""
        result = np.repeat(self.atoms_angstrom[None], len(state), axis=0)
        arm = self.atoms_angstrom[self.moving] - self.pivot_angstrom
        result[:, self.moving] = arm @ rotation_about(self.axis, state).transpose(0, 2, 1) + self.pivot_angstrom
        return result

    def moved(self, offset_angstrom: NDArray[np.float64]) -> "HingedMolecule":
        """Return the same molecule displaced by `(3,)`."""
        return replace(
            self,
            atoms_angstrom=self.atoms_angstrom + offset_angstrom,
            pivot_angstrom=self.pivot_angstrom + offset_angstrom,
        )


@dataclass(frozen=True, slots=True)
class PathMolecule:
    """Atoms go through frames at equal steps of the state, a fraction 0 to 1, straight between two.

    Attributes
    ----------
    frames_angstrom, weight
        `(frames, atoms, 3)` and `(atoms,)`.
    """

    frames_angstrom: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def state_range(self) -> tuple[float, float]:
        """Fraction of the path."""
        return 0.0, 1.0

    @property
    def period(self) -> float:
        """0: a path has two ends."""
        return 0.0

    @property
    def frames(self) -> int | None:
        """Number of models on the path."""
        return len(self.frames_angstrom)

    def coordinates_angstrom(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """`(states,)` fractions to `(states, atoms, 3)`."""
        steps = len(self.frames_angstrom) - 1
        if steps == 0:
            return np.repeat(self.frames_angstrom, len(state), axis=0)
        position = np.clip(state, 0.0, 1.0) * steps
        before = np.minimum(position.astype(np.int64), steps - 1)
        share = (position - before)[:, None, None]
        return np.asarray(self.frames_angstrom[before] * (1 - share) + self.frames_angstrom[before + 1] * share)

    def moved(self, offset_angstrom: NDArray[np.float64]) -> "PathMolecule":
        """Return the same path displaced by `(3,)`."""
        return replace(self, frames_angstrom=self.frames_angstrom + offset_angstrom)


Molecule = HingedMolecule | PathMolecule


def rotation_about(axis: NDArray[np.float64], angle_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed rotation matrices `(angles, 3, 3)` about a `(3,)` axis (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.asarray([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(angle_deg)[:, None, None]
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def build_molecule(source: PhantomSource | HingeSource | MorphSource | ModelsSource) -> Molecule:
    """Build the molecule a simulation names, centred on the smallest sphere that holds its whole motion.

    Raises
    ------
    ConfigError
        If a file is missing, a selection is empty, or two end states are not the same molecule; with the
        dotted key.

    Warns
    -----
    CryoFormerWarning
        If atoms of two end states have no partner and are left out; says how many match.
    """
    molecule: Molecule
    if isinstance(source, PhantomSource):
        phantom = antibody_phantom()
        atoms, weight = phantom.coordinates_angstrom, phantom.weight
        turning = (phantom.moving, phantom.pivot_angstrom, phantom.axis)
        molecule = HingedMolecule(atoms, weight, *turning, (0.0, source.arc_deg))
    elif isinstance(source, HingeSource):
        molecule = _build_hinged(source)
    elif isinstance(source, MorphSource):
        molecule = _build_morph(source)
    else:
        molecule = _build_path(source)
    return molecule.moved(-enclosing_sphere(molecule)[0])


def enclosing_sphere(molecule: Molecule) -> tuple[NDArray[np.float64], float]:
    """Centre `(3,)` and radius, in angstrom, of a small sphere around every atom in every state.

    Notes
    -----
    Badoiu and Clarkson's iteration: the centre walks towards the farthest atom in ever smaller steps. Angles
    are sampled every 15 degrees; between two frames of a path atoms stay inside because a ball is convex.
    """
    points = _places(molecule)
    # Only extreme points can lie on the sphere; a few hundred directions find nearly all of them.
    directions = np.random.default_rng(0).standard_normal((256, 3))
    extremes = points[np.unique((directions @ points.T).argmax(1))]
    centre = (points.min(0) + points.max(0)) / 2
    for step in range(1000):
        offset = extremes - centre
        centre = centre + offset[np.einsum("ij,ij->i", offset, offset).argmax()] / (step + 2)
    return centre, float(np.linalg.norm(points - centre, axis=1).max())


def reach_angstrom(molecule: Molecule) -> float:
    """Largest distance of any atom from the origin over the whole motion."""
    return float(np.linalg.norm(_places(molecule), axis=1).max())


def _places(molecule: Molecule) -> NDArray[np.float64]:
    """Every atom in a row of states that stands for the whole motion, `(states * atoms, 3)`."""
    first, last = molecule.state_range
    count = molecule.frames or max(2, int(np.ceil((last - first) / 15)) + 1)
    return molecule.coordinates_angstrom(np.linspace(first, last, count)).reshape(-1, 3)


def _read_models(key: str, path: Path) -> list[AtomicModel]:
    """Models of a file, any complaint headed by the key that named it."""
    try:
        return read_trajectory(path) if path.suffix == ".npz" else read_structure(path)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _select_atoms(key: str, model: AtomicModel, selections: Sequence[str]) -> NDArray[np.bool_]:
    try:
        return select_atoms(model, selections)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _build_hinged(source: HingeSource) -> HingedMolecule:
    model = _read_models("source.model", source.model)[0]
    moving = _select_atoms("source.moving", model, source.moving)
    if moving.all():
        raise ConfigError("source.moving: selects every atom, so nothing would move; leave the fixed part out")
    atoms = model.coordinates_angstrom
    pivot = np.asarray(source.hinge_angstrom or (), np.float64)
    if source.hinge:
        pivot = atoms[_select_atoms("source.hinge", model, source.hinge)].mean(0)
    states = (source.start_deg, source.start_deg + source.arc_deg)
    axis = np.asarray(source.axis or freest_axis(atoms, moving, pivot, states), np.float64)
    return HingedMolecule(atoms, model.weight, moving, pivot, axis / np.linalg.norm(axis), states)


def freest_axis(
    atoms_angstrom: NDArray[np.float64],
    moving: NDArray[np.bool_],
    pivot_angstrom: NDArray[np.float64],
    state_range: tuple[float, float],
) -> tuple[float, float, float]:
    """Find the direction about which the group turns through its range with the fewest atoms within 4 A of the rest.

    Axes 40 to 60 degrees from the line pivot - centre of the group are tried: nearer ones hardly move it,
    farther ones drive it through the rest. The same molecule always gets the same axis.
    """
    generator = np.random.default_rng(0)
    arm = (atoms_angstrom[moving] - pivot_angstrom)[::12]
    rest = cKDTree(atoms_angstrom[~moving][::5])
    lever = arm.mean(0) / np.linalg.norm(arm.mean(0))
    angles = np.linspace(*state_range, 10)
    best, fewest = lever, np.inf
    for _ in range(40):
        across = generator.standard_normal(3)
        across -= (across @ lever) * lever
        tilt = np.deg2rad(generator.uniform(40, 60))
        axis = np.cos(tilt) * lever + np.sin(tilt) * across / np.linalg.norm(across)
        swept = arm @ rotation_about(axis, angles).transpose(0, 2, 1) + pivot_angstrom
        near = rest.query(swept.reshape(-1, 3), distance_upper_bound=_CLASH_ANGSTROM)[0]
        clashes = np.isfinite(near).sum()
        if clashes < fewest:
            best, fewest = axis, clashes
    x, y, z = (float(value) for value in best)
    return x, y, z


def _build_morph(source: MorphSource) -> PathMolecule:
    first, last = _read_models("source.first", source.first)[0], _read_models("source.last", source.last)[0]
    sizes = len(first), len(last)
    rows_first, rows_last = match_atoms(first, last)
    matched = f"{len(rows_first)} of {sizes[0]} and {sizes[1]} atoms match by chain, residue and atom name"
    if len(rows_first) < _MIN_MATCHED_SHARE * min(sizes):
        raise ConfigError(
            f"source.last: {matched}; the end states must be one molecule with the same chain names: "
            "rename chains or renumber residues in one file"
        )
    if len(rows_first) < max(sizes):
        message = f"{source.first}, {source.last}: {matched}; only those are used"
        warnings.warn(message, CryoFormerWarning, stacklevel=2)
    first, last = first.select(rows_first), last.select(rows_last)
    start, end = first.coordinates_angstrom, last.coordinates_angstrom
    if source.align:
        core = (
            _select_atoms("source.align_on", first, source.align_on)
            if source.align_on
            else np.ones(len(first), np.bool_)
        )
        end = _lay_onto(end, start, core)
    return PathMolecule(np.stack([start, end]), first.weight)


def _lay_onto(points: NDArray[np.float64], target: NDArray[np.float64], core: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Move points rigidly so that their core fits the target's in the least squares sense (Kabsch)."""
    centre, target_centre = points[core].mean(0), target[core].mean(0)
    u, _, vt = np.linalg.svd((points[core] - centre).T @ (target[core] - target_centre))
    hand = np.sign(np.linalg.det(u @ vt))
    return np.asarray((points - centre) @ (u @ np.diag([1.0, 1.0, hand]) @ vt) + target_centre)


def _build_path(source: ModelsSource) -> PathMolecule:
    models = _read_models("source.path", source.path)
    if len(models) < 2:
        raise ConfigError(f"source.path: {source.path} holds one model, so nothing moves; give two or more")
    for number, (before, after) in enumerate(itertools.pairwise(models), start=2):
        if len(before) != len(after) or (before.atom_name != after.atom_name).any():
            raise ConfigError(
                f"source.path: model {number} of {source.path} has other atoms than model {number - 1} "
                f"({len(after)} and {len(before)}); all models must list the same atoms in the same order"
            )
    return PathMolecule(np.stack([model.coordinates_angstrom for model in models]), models[0].weight)
