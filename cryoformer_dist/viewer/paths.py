"""Paths through the latent map: along a line drawn over two columns, or from particle to particle."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from cryoformer_dist.errors import NoPathError, SelectionError
from cryoformer_dist.exploration.pathfinding import count_along
from cryoformer_dist.exploration.pathfinding import find_path as join_particles
from cryoformer_dist.viewer.requests import AskedPath
from cryoformer_dist.viewer.snapshot import Snapshot

MOST_STOPS = 60
_NEIGHBOURS = 20


@dataclass(frozen=True, slots=True, eq=False)
class ShownPath:
    """Stops on the way.

    Attributes
    ----------
    latents
        ``(stops, dimensions)``.
    points
        ``(stops, 2)``: where they lie in the plane of the two columns.
    particles
        ``(stops,)``: particles whose latents are nearer to a stop than to the others.
    """

    latents: Float[np.ndarray, "stops dimensions"]
    points: Float[np.ndarray, "stops 2"]
    particles: Int[np.ndarray, " stops"]


def find_path(snapshot: Snapshot, asked: AskedPath) -> ShownPath:
    """A path that keeps to where particles are: in the dimensions, too, that the plane does not show.

    Between two particles it leads from neighbour to neighbour. Along a drawn line each stop is the mean over the
    particles nearest to it in the plane.

    Raises
    ------
    SelectionError
        If the line has no length, a column or particle does not exist, or there are too few or too many stops.
    NoPathError
        If no chain of neighbours joins the particles.
    """
    columns, latents = snapshot.columns, snapshot.latents
    _refuse_impossible(asked, len(latents))
    plane = np.stack([columns.values(axis).astype(np.float64) for axis in asked.axes], axis=1)
    if asked.ends:
        start, end = (str(columns.source_row[place]) for place in asked.ends)
        try:
            stops = np.array(join_particles(columns, start, end, "neighbours", asked.stops).latents)
        except NoPathError as error:
            raise NoPathError(f"{error}; draw a line from one to the other to see what lies along that") from error
        points = _average_near(latents, stops, plane)
        points[[0, -1]] = plane[list(asked.ends)]
    else:
        # A unit of one column may be a thousand of the other.
        scale = plane.std(axis=0).clip(min=1e-30)
        walked = _walk(np.asarray(asked.corners, dtype=np.float64) / scale, asked.stops)
        stops, points = _average_near(plane / scale, walked, latents), walked * scale
    return ShownPath(stops.astype(np.float32), points, count_along(latents, stops.astype(np.float64), np.inf))


def _refuse_impossible(asked: AskedPath, particles: int) -> None:
    if not 2 <= asked.stops <= MOST_STOPS:
        raise SelectionError(f"a path has 2 to {MOST_STOPS} stops, not {asked.stops}")
    if asked.ends:
        if len(asked.ends) != 2 or not all(0 <= end < particles for end in asked.ends):
            raise SelectionError(f"a path joins two of the particles 0 to {particles - 1}; pick them again")
        return
    corners = np.asarray(asked.corners, dtype=np.float64)
    if len(corners) < 2 or not np.isfinite(corners).all() or not np.ptp(corners, axis=0).any():
        raise SelectionError("a path leads from one place to another; draw it again")


def _walk(corners: Float[np.ndarray, "corners 2"], stops: int) -> Float[np.ndarray, "stops 2"]:
    """Points at equal distances along a line of straight pieces."""
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.linspace(0, walked[-1], stops)
    return np.stack([np.interp(at, walked, corners[:, axis]) for axis in range(2)], axis=1)


def _average_near(among: NDArray[np.floating], places: NDArray[np.floating], what: NDArray[np.floating]) -> np.ndarray:
    """Of the particles nearest to each place, in one set of coordinates, the mean of another."""
    count = min(_NEIGHBOURS, len(among))
    nearest = (np.argpartition(np.square(among - place).sum(axis=1), count - 1)[:count] for place in places)
    return np.stack([what[rows].mean(axis=0) for rows in nearest])
