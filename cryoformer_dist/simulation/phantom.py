"""The built-in molecule: an antibody made of pseudo-atoms by the program itself, with one Fab arm on a hinge.

Twelve globules of the size of immunoglobulin domains stand as in an IgG1: four in each Fab, four in the Fc.
No lobe is a copy or mirror of another, and the lobes do not lie in one plane, so a wrong hand or a swapped
arm shows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Part of the program, not of a run: the molecule never changes.
_SEED = 20_240_607
_STEP_ANGSTROM = 3.0
_CLEARANCE_ANGSTROM = 2.4
_CANDIDATES = 24


@dataclass(frozen=True, slots=True)
class Phantom:
    """Pseudo-atoms of the phantom in its first state, and its hinge.

    Attributes
    ----------
    coordinates_angstrom
        `(atoms, 3)`.
    weight
        `(atoms,)` positive.
    moving
        `(atoms,)` true for the arm that swings.
    pivot_angstrom, axis
        `(3,)` each: a point on the axis and its unit direction; the arm turns right-handed about it.
    """

    coordinates_angstrom: NDArray[np.float64]
    weight: NDArray[np.float64]
    moving: NDArray[np.bool_]
    pivot_angstrom: NDArray[np.float64]
    axis: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Globule:
    """One domain: centre along, across and beside its lobe's axis, half-axes (angstrom), pseudo-atoms."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    atoms: int
    tilt_deg: float


# Along the lobe, across the pair, out of the pair's plane; sizes differ so that no two lobes are alike.
_SWINGING_FAB = (
    _Globule((33.0, 12.0, 0.0), (20.0, 13.0, 12.0), 250, 14.0),
    _Globule((30.0, -13.0, 3.0), (18.0, 12.0, 13.0), 210, -20.0),
    _Globule((66.0, 14.0, 7.0), (20.0, 14.0, 13.0), 290, 25.0),
    _Globule((63.0, -12.0, -5.0), (19.0, 12.0, 12.0), 230, -35.0),
    _Globule((79.0, 4.0, 13.0), (9.0, 8.0, 8.0), 70, 0.0),
)
_FIXED_FAB = (
    _Globule((34.0, 13.0, -2.0), (19.0, 13.0, 13.0), 240, -12.0),
    _Globule((31.0, -12.0, 4.0), (19.0, 12.0, 12.0), 220, 30.0),
    _Globule((63.0, 13.0, -10.0), (18.0, 13.0, 14.0), 240, 5.0),
    _Globule((67.0, -13.0, -2.0), (21.0, 12.0, 13.0), 270, 28.0),
)
_FC = (
    _Globule((27.0, 15.0, 5.0), (17.0, 12.0, 13.0), 210, 20.0),
    _Globule((31.0, -15.0, -3.0), (19.0, 13.0, 12.0), 240, -24.0),
    _Globule((57.0, 12.0, -6.0), (18.0, 14.0, 13.0), 250, -10.0),
    _Globule((60.0, -12.0, 4.0), (17.0, 13.0, 13.0), 230, 16.0),
    _Globule((40.0, 1.0, 17.0), (14.0, 6.0, 6.0), 60, 40.0),
)
_FC_DIRECTION = (0.10, -0.97, -0.20)
_FIXED_FAB_DIRECTION = (0.82, 0.50, 0.28)
# The swinging arm turns on a cone that opens away from both other lobes, so it never runs into them.
_CONE_TILT_DEG = 54.0
_CONE_START_DEG = 10.0


@lru_cache(maxsize=1)
def antibody_phantom() -> Phantom:
    """Make the antibody-like molecule, always the same: hinge at the origin, arm in its first position."""
    generator = np.random.default_rng(_SEED)
    fc = _lobe(_FC, _frame(np.asarray(_FC_DIRECTION), 35.0), generator)
    fixed = _lobe(_FIXED_FAB, _frame(np.asarray(_FIXED_FAB_DIRECTION), 70.0), generator)
    axis = -_unit(_unit(np.asarray(_FC_DIRECTION)) + _unit(np.asarray(_FIXED_FAB_DIRECTION)))
    arm_direction = _on_cone(axis, np.deg2rad(_CONE_TILT_DEG), np.deg2rad(_CONE_START_DEG))
    arm = _lobe(_SWINGING_FAB, _frame(arm_direction, -25.0), generator)
    coordinates = np.concatenate([fc, fixed, arm])
    moving = np.arange(len(coordinates)) >= len(fc) + len(fixed)
    weight = generator.uniform(0.8, 1.2, len(coordinates))
    for array in (coordinates, weight, moving, axis):
        array.setflags(write=False)
    return Phantom(coordinates, weight, moving, np.zeros(3), axis)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


def _across(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find a unit vector perpendicular to another."""
    helper = np.eye(3)[np.abs(direction).argmin()]
    return _unit(np.cross(direction, helper))


def _on_cone(axis: NDArray[np.float64], tilt: float, azimuth: float) -> NDArray[np.float64]:
    """Point at ``tilt`` from the axis and ``azimuth`` around it (radians), a unit vector."""
    across = _across(axis)
    beside = np.cross(axis, across)
    return np.asarray(np.cos(tilt) * axis + np.sin(tilt) * (np.cos(azimuth) * across + np.sin(azimuth) * beside))


def _frame(direction: NDArray[np.float64], twist_deg: float) -> NDArray[np.float64]:
    """Rows: along the lobe, across its pairs of domains, and beside; the pairs twisted about the axis."""
    along = _unit(direction)
    across = _on_cone(along, np.pi / 2, np.deg2rad(twist_deg))
    return np.stack([along, across, np.cross(along, across)])


def _lobe(
    globules: tuple[_Globule, ...], frame: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Pseudo-atoms of one lobe and of the linker that ties it to the hinge at the origin."""
    parts = [_globule(globule, generator) for globule in globules]
    linker = np.linspace(0.15, 0.55, 6)[:, None] * np.asarray(globules[0].centre)
    return np.concatenate([*parts, linker + generator.normal(0.0, 0.8, linker.shape)]) @ frame


def _globule(globule: _Globule, generator: np.random.Generator) -> NDArray[np.float64]:
    """Walk at random inside an ellipsoid, clear of the path so far: a folded chain seen from afar."""
    half_axes = np.asarray(globule.half_axes)
    atoms = np.zeros((globule.atoms, 3))
    for row in range(1, globule.atoms):
        step = generator.standard_normal((_CANDIDATES, 3))
        step *= _STEP_ANGSTROM / np.linalg.norm(step, axis=1, keepdims=True)
        candidate = atoms[row - 1] + step
        distance = np.linalg.norm(candidate[:, None] - atoms[None, :row], axis=-1)
        # Leaving the ellipsoid costs most, then touching the chain; of equally good steps the first is as
        # good as any.
        outside = np.maximum(np.linalg.norm(candidate / half_axes, axis=1) - 1, 0)
        touching = (distance < _CLEARANCE_ANGSTROM).sum(1)
        atoms[row] = candidate[np.argmin(100 * outside + touching)]
    tilt = np.deg2rad(globule.tilt_deg)
    turn = np.asarray([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    return np.asarray(atoms @ turn.T + globule.centre)
