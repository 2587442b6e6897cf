"""Paths between two latents: straight, along neighbours, or over the lowest barrier; and what each point stands for."""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from cryoformer_dist.errors import ExplorationError, NoPathError
from cryoformer_dist.exploration.neighbours import Ground, find_ground
from cryoformer_dist.exploration.path import LatentPath, PathKind
from cryoformer_dist.exploration.places import find_place
from cryoformer_dist.selection.columns import ParticleColumns

_BLOCK = 65_536


def find_path(columns: ParticleColumns, start: str, end: str, kind: PathKind, points: int) -> LatentPath:
    """A path between two places of a run's latents, at evenly spaced points.

    Parameters
    ----------
    columns
        The run's particles.
    start, end
        As `find_place` reads them.
    kind
        As `LatentPath` has it.
    points
        At least two.

    Raises
    ------
    ExplorationError
        If a place is not of this run, or both are one.
    NoPathError
        If no chain of neighbours joins them.
    """
    (first, first_name), (last, last_name) = (find_place(columns, text) for text in (start, end))
    latents = columns.table["latent"]
    if points < 2 or (latents[first] == latents[last]).all():
        raise ExplorationError(f"from {first_name} to {last_name} at {points} points: ends must differ, points be two")
    ground = find_ground(latents, (first, last))
    course = latents[[first, last]].astype(np.float64)
    if kind != "straight":
        ends = (int(np.searchsorted(ground.row, first)), int(np.searchsorted(ground.row, last)))
        stations = walk_neighbours(ground, *ends) if kind == "neighbours" else walk_over_barrier(ground, *ends)
        if not len(stations):
            raise NoPathError(f"no chain of neighbours joins {first_name} and {last_name}: nothing lies between")
        course = soften(ground, stations)
    places = space_evenly(course, points)
    step = float(np.linalg.norm(np.diff(places, axis=0), axis=1).mean())
    reach = max(step, ground.reach)
    return LatentPath(
        run=columns.run,
        kind=kind,
        start=first_name,
        end=last_name,
        latents=tuple(tuple(float(number) for number in place) for place in places),
        particles=tuple(int(count) for count in count_along(latents, places, reach)),
        reach=reach,
        energy=tuple(float(energy) for energy in ground.energy_at(places)),
    )


def walk_neighbours(ground: Ground, start: int, end: int) -> Int[np.ndarray, " stations"]:
    """Landmarks on the shortest way from neighbour to neighbour; none where there is no way."""
    return _walk(ground.graph, start, end)


def walk_over_barrier(ground: Ground, start: int, end: int) -> Int[np.ndarray, " stations"]:
    """Landmarks on the way whose highest energy is the least; of such ways the shortest where crowded steps count less.

    None where there is no way. The height that every way must reach is that of the spanning tree of lowest passes.
    """
    graph = ground.graph.tocoo()
    height = np.maximum(ground.energy[graph.row], ground.energy[graph.col])
    # An edge of weight 0 would be none.
    passes = csr_array((height + 1.0, (graph.row, graph.col)), shape=graph.shape)
    tree = minimum_spanning_tree(passes)
    stations = _walk(tree.maximum(tree.T).tocsr(), start, end)
    if not len(stations):
        return stations
    low = height <= ground.energy[stations].max()
    length = graph.data * np.exp(height)
    return _walk(csr_array((length[low], (graph.row[low], graph.col[low])), shape=graph.shape), start, end)


def _walk(graph: csr_array, start: int, end: int) -> Int[np.ndarray, " stations"]:
    """Stations of the shortest way on a graph, both ends among them; none where there is no way."""
    label = connected_components(graph, directed=False)[1]
    if label[start] != label[end]:
        return np.empty(0, dtype=np.int64)
    before = dijkstra(graph, directed=False, indices=np.array(start), return_predecessors=True)[1]
    stations = [end]
    while stations[-1] != start:
        stations.append(int(before[stations[-1]]))
    return np.array(stations[::-1], dtype=np.int64)


def soften(ground: Ground, stations: Int[np.ndarray, " stations"]) -> Float[np.ndarray, "stations latent"]:
    """Each station but the ends moved into the midst of its neighbours: one latent is noisy, their mean is less so."""
    course = ground.latents[ground.neighbour[stations]].mean(axis=1)
    course[[0, -1]] = ground.latents[stations[[0, -1]]]
    return np.asarray(course)


def space_evenly(course: Float[np.ndarray, "stations latent"], points: int) -> Float[np.ndarray, "points latent"]:
    """Points of a polygonal line at equal distances along it, its ends among them."""
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(course, axis=0), axis=1).cumsum()])
    wanted = np.linspace(0.0, along[-1], points)
    return np.stack([np.interp(wanted, along, values) for values in course.T], axis=1)


def count_along(
    latents: Float[np.ndarray, "particles latent"], places: Float[np.ndarray, "points latent"], reach: float
) -> Int[np.ndarray, " points"]:
    """Particles nearer to each place than to the others, and within reach of it."""
    counts: np.ndarray = np.zeros(len(places), dtype=np.int64)
    for start in range(0, len(latents), _BLOCK):
        part = latents[start : start + _BLOCK].astype(np.float64)
        distance = np.square(part).sum(axis=1)[:, None] - 2 * part @ places.T + np.square(places).sum(axis=1)
        nearest = distance.argmin(axis=1)
        near = distance[np.arange(len(part)), nearest] <= reach**2
        counts += np.bincount(nearest[near], minlength=len(places))
    return counts
