"""Rigid movements of a part of a map: found by laying its density onto another map, told as a turn about an axis."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

# Tried all over the sphere: neighbours are some 20 degrees apart.
_ROTATIONS = 1000
_REFINED = 8
_POINTS = 800
_LINES = 8
# A turn by less has no axis that could be told.
_LEAST_TURN_DEG = 2.0


@dataclass(frozen=True, slots=True)
class Movement:
    """A rigid movement; ``x`` goes to ``rotation @ x + shift``, in the units of the points.

    Attributes
    ----------
    rotation
        ``(3, 3)``.
    shift
        ``(3,)``.
    """

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, " 3"]

    def apply(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        """Where points go."""
        moved: np.ndarray = points @ self.rotation.T + self.shift
        return moved

    @property
    def angle_deg(self) -> float:
        """By how much it turns, 0 to 180 degrees."""
        return float(np.rad2deg(Rotation.from_matrix(self.rotation).magnitude()))

    @property
    def axis(self) -> Float[np.ndarray, " 3"]:
        """Direction about which it turns, right-handed; of a turn too small to have one, where it shifts to."""
        along = Rotation.from_matrix(self.rotation).as_rotvec() if self.angle_deg > _LEAST_TURN_DEG else self.shift
        return np.asarray(along / max(float(np.linalg.norm(along)), 1e-12))

    def nearest_on_axis(self, place: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"] | None:
        """The point of the axis nearest to some place; ``None`` where the turn is too small to have an axis."""
        if self.angle_deg <= _LEAST_TURN_DEG:
            return None
        across = self.shift - (self.shift @ self.axis) * self.axis
        somewhere = np.linalg.lstsq(np.eye(3) - self.rotation, across, rcond=1e-6)[0]
        return np.asarray(somewhere + ((place - somewhere) @ self.axis) * self.axis)


STILL = Movement(np.eye(3), np.zeros(3))


@dataclass(frozen=True, slots=True)
class Density:
    """Weighted points of a part of a map, `(x, y, z)` in voxels about the centre.

    Attributes
    ----------
    points
        ``(points, 3)``.
    weight
        ``(points,)``.
    """

    points: Float[np.ndarray, "points 3"]
    weight: Float[np.ndarray, " points"]

    @property
    def centre(self) -> Float[np.ndarray, " 3"]:
        """Of the weight."""
        middle: np.ndarray = self.weight @ self.points / self.weight.sum()
        return middle

    def agree(self, target: Float[np.ndarray, "box box box"], movement: Movement) -> float:
        """Correlation, about zero, of the weights with a map at the points moved: 1 where they are proportional."""
        return _agree(self.points, self.weight, target, movement.rotation, movement.shift)


def take_density(weight: Float[np.ndarray, "box box box"]) -> Density:
    """Points of a map where it is positive, the densest if there are very many."""
    flat = np.flatnonzero(weight > 0)
    if len(flat) > _POINTS:
        # Every so many, by their place: thinned alike everywhere.
        flat = flat[np.linspace(0, len(flat) - 1, _POINTS).round().astype(int)]
    box = weight.shape[-1]
    points = np.stack(np.unravel_index(flat, weight.shape)[::-1], axis=1) - box // 2
    return Density(points.astype(np.float64), weight.ravel()[flat].astype(np.float64))


def sample(
    voxels: Float[np.ndarray, "box box box"], points: Float[np.ndarray, "*some 3"]
) -> Float[np.ndarray, "*some"]:
    """Values of a map at points, 0 beyond it."""
    return _sample(voxels, points)


def _sample(voxels: np.ndarray, points: np.ndarray) -> np.ndarray:
    place = np.moveaxis(points, -1, 0)[::-1] + voxels.shape[-1] // 2
    return np.asarray(map_coordinates(voxels, place, order=1, mode="constant"))


def _agree(
    points: np.ndarray, weight: np.ndarray, target: np.ndarray, rotation: np.ndarray, shift: np.ndarray
) -> float:
    there = _sample(target, points @ rotation.T + shift)
    scale = np.sqrt(np.square(weight).sum() * np.square(there).sum())
    return float(weight @ there / scale) if scale > 0 else 0.0


def refine(part: Density, target: Float[np.ndarray, "box box box"], start: Movement) -> Movement:
    """The movement near a first one that lays a part onto a map best."""
    centre = part.centre
    there = start.apply(centre[None])[0]
    size = max(float(np.sqrt(np.square(part.points - centre).sum(axis=1).mean())), 1.0)

    def move(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Turns are counted by how far they carry the part's outskirts, so that all six numbers are lengths.
        rotation = Rotation.from_rotvec(change[:3] / size).as_matrix() @ start.rotation
        return rotation, there + change[3:] - rotation @ centre

    def disagree(change: np.ndarray) -> float:
        return -_agree(part.points, part.weight, target, *move(change))

    # Until a step is a twentieth of a voxel.
    options: dict[str, float] = {"xtol": 0.05, "ftol": 1e-4, "maxiter": _LINES}
    found = minimize(disagree, np.zeros(6), method="Powell", options=options)  # type: ignore[call-overload]
    return Movement(*move(found.x))


def search(part: Density, target: Float[np.ndarray, "box box box"], seed: int = 0) -> Movement:
    """The movement that lays a part onto a map best, from turns of every kind with their centres on each other."""
    goal, centre = take_density(target.clip(min=0)).centre, part.centre
    rotations = Rotation.random(_ROTATIONS, random_state=np.random.default_rng(seed)).as_matrix()
    starts = [Movement(rotation, goal - rotation @ centre) for rotation in rotations]
    agreement = np.array([part.agree(target, start) for start in starts])
    best = [refine(part, target, starts[number]) for number in np.argsort(agreement)[::-1][:_REFINED]]
    return max(best, key=lambda movement: part.agree(target, movement))
