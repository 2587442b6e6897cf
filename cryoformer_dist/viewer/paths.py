"""Paths through the latent map: a line drawn over two columns, and what conformations lie along it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from cryoformer_dist.errors import SelectionError
from cryoformer_dist.viewer.requests import AskedPath
from cryoformer_dist.viewer.snapshot import Snapshot

MOST_STOPS = 60
_NEIGHBOURS = 20
_BLOCK = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class LatentPath:
    """Stops on the way.

    Attributes
    ----------
    latents
        ``(stops, dimensions)``.
    points
        ``(stops, 2)``: where they lie on the drawn line, in the units of the columns.
    particles
        ``(stops,)``: particles whose latents are nearer to a stop than to the others.
    """

    latents: Float[np.ndarray, "stops dimensions"]
    points: Float[np.ndarray, "stops 2"]
    particles: Int[np.ndarray, " stops"]


def find_path(snapshot: Snapshot, asked: AskedPath) -> LatentPath:
    """Latents along a line: at each stop the mean over the particles that lie nearest to it in the plane drawn on.

    So a path keeps to where particles are also in the dimensions that the plane does not show. Where it joins two
    particles, it begins and ends with their own latents.

    Raises
    ------
    SelectionError
        If the line has no length, a column or particle does not exist, or there are too few or too many stops.
    """
    columns, latents = snapshot.columns, snapshot.latents
    _refuse_impossible(asked, len(latents))
    plane = np.stack([columns.values(axis).astype(np.float64) for axis in asked.axes], axis=1)
    # A unit of one column may be a thousand of the other.
    scale = plane.std(axis=0).clip(min=1e-30)
    points = _walk(np.asarray(asked.corners, dtype=np.float64) / scale, asked.stops)
    found = np.stack([latents[_find_nearest(plane / scale, point)].mean(axis=0) for point in points])
    if asked.ends:
        found[[0, -1]] = latents[list(asked.ends)]
    return LatentPath(found.astype(np.float32), points * scale, _count_nearest(latents, found))


def _refuse_impossible(asked: AskedPath, particles: int) -> None:
    if not 2 <= asked.stops <= MOST_STOPS:
        raise SelectionError(f"a path has 2 to {MOST_STOPS} stops, not {asked.stops}")
    corners = np.asarray(asked.corners, dtype=np.float64)
    if len(corners) < 2 or not np.isfinite(corners).all() or not np.ptp(corners, axis=0).any():
        raise SelectionError("a path leads from one place to another; draw it again")
    if asked.ends and (len(asked.ends) != 2 or not all(0 <= end < particles for end in asked.ends)):
        raise SelectionError(f"a path joins two of the particles 0 to {particles - 1}; pick them again")


def _walk(corners: Float[np.ndarray, "corners 2"], stops: int) -> Float[np.ndarray, "stops 2"]:
    """Points at equal distances along a line of straight pieces."""
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.linspace(0, walked[-1], stops)
    return np.stack([np.interp(at, walked, corners[:, axis]) for axis in range(2)], axis=1)


def _find_nearest(plane: Float[np.ndarray, "particles 2"], point: Float[np.ndarray, "2"]) -> NDArray[np.int64]:
    distance = np.square(plane - point).sum(axis=1)
    count = min(_NEIGHBOURS, len(plane))
    return np.argpartition(distance, count - 1)[:count]


def _count_nearest(
    latents: Float[np.ndarray, "particles dimensions"], stops: Float[np.ndarray, "stops dimensions"]
) -> Int[np.ndarray, " stops"]:
    counts = np.zeros(len(stops), np.int64)
    length = np.square(stops).sum(axis=1)
    for start in range(0, len(latents), _BLOCK):
        # The length of a latent is the same for all stops.
        distance = length - 2 * latents[start : start + _BLOCK] @ stops.T
        counts += np.bincount(distance.argmin(axis=1), minlength=len(stops))
    return counts
