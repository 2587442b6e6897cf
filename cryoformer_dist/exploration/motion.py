"""How a molecule moves between two maps: which parts, by how much, and about which axis, in words.

A part is density that leaves its place, with all around it that a rigid movement explains better than standing still:
movement and part are improved in turn.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation, gaussian_filter, label

from cryoformer_dist.exploration.rigid_fit import STILL, Movement, refine, sample, search, take_density
from cryoformer_dist.figures.surfaces import find_common_level
from cryoformer_dist.initialization.clustering import find_clusters

MOST_PARTS = 2
_ENCLOSED = 0.9
# Of the contour, what must have gone from a voxel for it to count as left.
_LEFT = 0.5
# A part is at least so much of the molecule.
_LEAST_SHARE = 0.02
_ROUNDS = 5
# One part that leaves so little of the mismatch is all there is.
_EXPLAINED = 0.2
# Movements that leave as little are not told apart by what they leave.
_AS_LITTLE = 1.05
# A further part leaves at most so much of the mismatch.
_WORTH = 0.8
# What has left may be of two parts that touch: movements are also begun with pieces of it.
_PIECES = 6
# Parts are domains: they are found on maps without finer detail, which would hold a fit where it happens to be.
_SMOOTH_ANGSTROM = 2.0
# From what share of the strongest change on a voxel's change counts, and which imbalance of changes is told.
_STRONG, _UNBALANCED = 0.2, 0.2
# Neighbouring voxels move together: mismatches are compared over this distance.
_TOGETHER_ANGSTROM = 6.0


@dataclass(frozen=True, slots=True)
class MovingPart:
    """A part of the molecule, and how it moves from the first map to the last.

    Attributes
    ----------
    share
        Of the molecule's density.
    centre_angstrom
        Of the part in the first map, ``(x, y, z)`` about the box's centre.
    mean_angstrom, largest_angstrom
        How far its voxels move; 95 of 100 move less than the second.
    angle_deg, axis
        Its turn, right-handed.
    hinge_angstrom
        Point of that axis nearest to where the part meets the rest; ``None`` where it only shifts.
    along_axis_angstrom
        Shift along the axis.
    apart_angstrom
        Distance of its centre from that of the rest, before and after.
    agreement_before, agreement_after
        Correlation of the part with the last map, standing still and moved.
    """

    share: float
    centre_angstrom: tuple[float, float, float]
    mean_angstrom: float
    largest_angstrom: float
    angle_deg: float
    axis: tuple[float, float, float]
    hinge_angstrom: tuple[float, float, float] | None
    along_axis_angstrom: float
    apart_angstrom: tuple[float, float]
    agreement_before: float
    agreement_after: float


def describe_motion(maps: Float[np.ndarray, "maps box box box"], voxel_size_angstrom: float) -> tuple[MovingPart, ...]:
    """The parts that move from the first of a series of maps to the last, the one that moves most mass farthest first.

    Parameters
    ----------
    maps
        At least two; those between help to follow a large turn.
    voxel_size_angstrom
        Of the maps.
    """
    smooth = np.stack([gaussian_filter(voxels, _SMOOTH_ANGSTROM / voxel_size_angstrom) for voxels in maps])
    scene = _Scene(smooth, find_common_level(smooth[[0, -1]], _ENCLOSED), _TOGETHER_ANGSTROM / voxel_size_angstrom)
    parts = _divide(scene)
    molecule, found = scene.molecule, []
    for number, movement in enumerate(parts.movements[1:], start=1):
        inside = molecule & (parts.label == number)
        if inside.sum() >= _LEAST_SHARE * molecule.sum():
            exact = refine(take_density(np.where(inside, maps[0], 0)), maps[-1], movement)
            found.append(_measure(maps, inside, molecule & (parts.label == 0), exact, voxel_size_angstrom))
    return tuple(sorted(found, key=lambda part: -part.share * part.mean_angstrom))


def measure_imbalance(maps: Float[np.ndarray, "maps box box box"]) -> float:
    """How much more density comes than goes from the first map to the last, as a share of all change; negative: goes.

    About 0 where density only moves, 1 where a part is in one of the two maps alone. Along the first two axes of
    `igg_arc_64`, which moves, it is .05 and .08; of two classes of a ribosome, of which one lacks parts, .33 and .87.
    Weak changes are left out: images tell nothing of a map's mean.
    """
    change = maps[-1].astype(np.float64) - maps[0]
    strong = change[np.abs(change) > _STRONG * np.abs(change).max()]
    return float(strong.sum() / np.abs(strong).sum()) if len(strong) else 0.0


@dataclass(frozen=True, slots=True)
class _Scene:
    """Smoothed maps, their contour, and over how many voxels a mismatch is compared."""

    maps: np.ndarray
    level: float
    together: float

    @property
    def first(self) -> np.ndarray:
        return np.asarray(self.maps[0])

    @property
    def last(self) -> np.ndarray:
        return np.asarray(self.maps[-1])

    @property
    def molecule(self) -> np.ndarray:
        return np.asarray(self.first > self.level)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Which voxels move how, number 0 not at all; and how much of the first map that leaves unexplained."""

    label: np.ndarray
    movements: list[Movement]
    mismatch: float


def _divide(scene: _Scene) -> _Parts:
    """The fewest parts that explain the last map by the first: one more only where it explains a good deal more."""
    best = _assign(scene, [STILL])
    left = _find_left(scene)
    if left.sum() < _LEAST_SHARE * scene.molecule.sum():
        return best
    largest = _take_largest(left)
    starts = [_seek(scene, largest), _follow(scene, largest)]
    tried = [_settle(scene, [STILL, start]) for start in starts]
    whole = min(tried, key=lambda each: each.mismatch)
    if whole.mismatch < _EXPLAINED * best.mismatch:
        return whole
    starts += [_follow(scene, piece) for piece in _cut(left)]
    tried += [_settle(scene, [STILL, start]) for start in starts[2:]]
    pool = [*starts, *(each.movements[1] for each in tried)]
    mismatch = [_compare(scene, each)[scene.molecule] for each in (STILL, *pool)]
    for count in range(1, MOST_PARTS + 1):
        chosen = _choose(pool, mismatch, count)
        more = _settle(scene, [STILL, *chosen])
        if more.mismatch < _WORTH * best.mismatch:
            best = more
    return best


def _choose(pool: list[Movement], mismatch: list[np.ndarray], count: int) -> list[Movement]:
    """So many movements that leave least unexplained; of those that leave about as little, the smallest turns."""
    some = list(itertools.combinations(range(len(pool)), count))
    unexplained = np.array(
        [np.min([mismatch[0], *(mismatch[1 + each] for each in numbers)], axis=0).mean() for numbers in some]
    )
    turned = np.array([sum(pool[each].angle_deg for each in numbers) for numbers in some])
    best = int(np.where(unexplained <= _AS_LITTLE * unexplained.min(), turned, np.inf).argmin())
    return [pool[each] for each in some[best]]


def _find_left(scene: _Scene) -> Bool[np.ndarray, "box box box"]:
    """Density of the first map that is not in the last one."""
    return np.asarray(scene.molecule & (scene.first - scene.last > _LEFT * scene.level))


def _take_largest(region: np.ndarray) -> np.ndarray:
    """The largest connected piece of a region."""
    pieces, _ = label(region)
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def _cut(seed: np.ndarray) -> list[np.ndarray]:
    """Compact pieces of a region."""
    places = np.argwhere(seed)
    found = find_clusters(torch.from_numpy(places.astype(np.float64)), _PIECES, seed=0, rounds=10).label.numpy()
    pieces = np.full(seed.shape, -1)
    pieces[seed] = found
    return [pieces == number for number in np.unique(found)]


def _follow(scene: _Scene, seed: np.ndarray) -> Movement:
    """The movement of a seed, followed from map to map."""
    part, followed = take_density(np.where(seed, scene.first, 0)), STILL
    for voxels in scene.maps[1:]:
        followed = refine(part, voxels, followed)
    return followed


def _seek(scene: _Scene, seed: np.ndarray) -> Movement:
    """The movement of a seed, sought among all turns that take it to where density has come."""
    part = take_density(np.where(seed, scene.first, 0))
    arrived = np.where(scene.last > scene.level, (scene.last - scene.first).clip(min=0), 0)
    return refine(part, scene.last, search(part, arrived))


def _settle(scene: _Scene, movements: list[Movement]) -> _Parts:
    """Give each voxel to the movement that explains it best, refit the movements, and so on."""
    parts = _assign(scene, movements)
    for _ in range(_ROUNDS):
        fitted = [STILL]
        for number, movement in enumerate(parts.movements[1:], start=1):
            inside = np.where((parts.label == number) & scene.molecule, scene.first, 0)
            fitted.append(refine(take_density(inside), scene.last, movement) if inside.any() else movement)
        parts = _assign(scene, fitted)
    return parts


def _assign(scene: _Scene, movements: list[Movement]) -> _Parts:
    mismatch = np.stack([_compare(scene, movement) for movement in movements])
    return _Parts(mismatch.argmin(axis=0), movements, float(mismatch.min(axis=0)[scene.molecule].mean()))


def _compare(scene: _Scene, movement: Movement) -> np.ndarray:
    """How badly a movement explains the last map by the first, about each voxel of the first."""
    return np.asarray(gaussian_filter(np.square(scene.first - _pull(scene.last, movement)), scene.together))


def _pull(last: np.ndarray, movement: Movement) -> np.ndarray:
    """The last map as it would look had a movement not happened."""
    z, y, x = np.indices(last.shape, dtype=np.float64) - last.shape[-1] // 2
    return sample(last, movement.apply(np.stack([x, y, z], axis=-1).reshape(-1, 3)).reshape(*last.shape, 3))


def _measure(
    maps: np.ndarray, inside: np.ndarray, rest: np.ndarray, movement: Movement, voxel_size_angstrom: float
) -> MovingPart:
    first, last = maps[0], maps[-1]
    part, still = (take_density(np.where(region, first, 0)) for region in (inside, rest))
    far = np.linalg.norm(movement.apply(part.points) - part.points, axis=1) * voxel_size_angstrom
    touching = binary_dilation(inside, iterations=2) & binary_dilation(rest, iterations=2)
    meeting = take_density(touching.astype(float)).centre if touching.any() else part.centre
    hinge, centre = movement.nearest_on_axis(meeting), part.centre
    apart = [float(np.linalg.norm(each - still.centre)) for each in (centre, movement.apply(centre[None])[0])]
    return MovingPart(
        share=float(first[inside].sum() / first[inside | rest].sum()),
        centre_angstrom=_as_tuple(centre * voxel_size_angstrom),
        mean_angstrom=float(np.average(far, weights=part.weight)),
        largest_angstrom=float(np.percentile(far, 95)),
        angle_deg=movement.angle_deg,
        axis=_as_tuple(movement.axis),
        hinge_angstrom=None if hinge is None else _as_tuple(hinge * voxel_size_angstrom),
        along_axis_angstrom=float(movement.shift @ movement.axis) * voxel_size_angstrom,
        apart_angstrom=(apart[0] * voxel_size_angstrom, apart[1] * voxel_size_angstrom),
        agreement_before=part.agree(last, STILL),
        agreement_after=part.agree(last, movement),
    )


def _as_tuple(vector: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(each) for each in vector)
    return x, y, z


def tell_motion(parts: tuple[MovingPart, ...]) -> list[str]:
    """The same in sentences; places are ``(x, y, z)`` in angstrom about the centre of the box."""
    if not parts:
        return ["no part moves as a whole, as far as the maps show"]
    return [sentence for number, part in enumerate(parts, start=1) for sentence in _tell_part(number, part)]


def tell_imbalance(imbalance: float) -> list[str]:
    """A sentence where a movement is not all there is; none where it may be."""
    if abs(imbalance) < _UNBALANCED:
        return []
    how = "comes" if imbalance > 0 else "goes"
    return [
        f"{abs(imbalance):.0%} of the change is density that {how} with no counterpart: where a part is there in some "
        "particles only, no movement describes that"
    ]


def _tell_part(number: int, part: MovingPart) -> list[str]:
    where = f"part {number}: {part.share:.0%} of the molecule, about {_tell_place(part.centre_angstrom)}"
    far = f"moves by {part.mean_angstrom:.0f} A on average, its far end by {part.largest_angstrom:.0f} A"
    before, after = part.apart_angstrom
    nearer = "comes nearer to" if after < before else "goes away from"
    rest = f"its centre {nearer} that of the rest: {before:.0f} A before, {after:.0f} A after"
    fit = f"moved as a rigid body it fits the last map with correlation {part.agreement_after:.2f}"
    if part.hinge_angstrom is None:
        turn = f"it shifts along {_tell_direction(part.axis)} and hardly turns ({part.angle_deg:.1f} degrees)"
    else:
        turn = (
            f"it turns by {part.angle_deg:.0f} degrees about an axis along {_tell_direction(part.axis)} through its "
            f"hinge at {_tell_place(part.hinge_angstrom)}, and slides by {abs(part.along_axis_angstrom):.1f} A along it"
        )
    return [f"{where}, {far}", f"        {turn}", f"        {rest}; {fit} ({part.agreement_before:.2f} unmoved)"]


def _tell_place(place: tuple[float, float, float]) -> str:
    return "({:.0f}, {:.0f}, {:.0f})".format(*place)


def _tell_direction(direction: tuple[float, float, float]) -> str:
    return "({:.2f}, {:.2f}, {:.2f})".format(*direction)
