import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cryoformer_dist.data.selection import ParticleFile, RunState
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.neighbours import Ground, find_ground
from cryoformer_dist.exploration.path import PathKind
from cryoformer_dist.exploration.pathfinding import (
    count_along,
    find_path,
    space_evenly,
    walk_neighbours,
    walk_over_barrier,
)
from cryoformer_dist.selection.columns import ParticleColumns

SOURCE_ROW = np.random.default_rng(5).permutation(3000)


def bend(count: int = 3000) -> np.ndarray:
    """Latents on half a circle; row 0 at one end, row 1 at the other."""
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, np.pi, count)
    turn[:2] = 0, np.pi
    points = np.stack([np.cos(turn), np.sin(turn)], axis=1) + 0.03 * rng.normal(size=(count, 2))
    return points.astype(np.float32)


def lake() -> np.ndarray:
    """Two crowded shores, a short ford of few particles between, and a crowded way round."""
    rng = np.random.default_rng(0)
    turn = np.concatenate([rng.uniform(0, np.pi, 3000), np.full(500, 0.0), np.full(500, np.pi)])
    round_about = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    ford = np.stack([rng.uniform(-1, 1, 60), np.zeros(60)], axis=1)
    points = np.concatenate([round_about, ford])
    return (points + 0.05 * rng.normal(size=points.shape)).astype(np.float32)


def columns_of(latents: np.ndarray) -> ParticleColumns:
    table = {"latent": latents, "kmeans_row": np.array([0, 1])}
    rows = SOURCE_ROW[: len(latents)]
    return ParticleColumns(ParticleFile("a.star", "0"), RunState("bent", 1), rows, rows, {}, table, None)  # type: ignore[arg-type]


def ends_of(ground: Ground) -> tuple[int, int]:
    return tuple(int(np.square(ground.latents - end).sum(axis=1).argmin()) for end in ([1, 0], [-1, 0]))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["neighbours", "barrier"])
def test_a_path_stays_among_the_particles_where_a_straight_one_leaves_them(kind: PathKind) -> None:
    latents = bend()
    columns = columns_of(latents)
    path, straight = (find_path(columns, "cluster:0", str(SOURCE_ROW[1]), each, 9) for each in (kind, "straight"))
    np.testing.assert_allclose(np.linalg.norm(path.points, axis=1), 1, atol=0.1)
    np.testing.assert_allclose(path.points[[0, -1]], latents[:2], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.diff(path.points, axis=0), axis=1), np.pi / 8, rtol=0.1)
    assert min(path.particles) > 150
    assert sum(path.particles) == 3000
    assert path.barrier < 1.5
    assert (path.start, path.end) == ("cluster 0", f"particle {SOURCE_ROW[1]}")
    assert straight.particles[4] == 0
    assert straight.barrier > path.barrier + 2
    np.testing.assert_allclose(straight.points[4], latents[:2].mean(axis=0), atol=1e-5)


def test_the_shortest_way_fords_where_the_lowest_barrier_leads_round() -> None:
    ground = find_ground(lake())
    start, end = ends_of(ground)
    short, low = walk_neighbours(ground, start, end), walk_over_barrier(ground, start, end)
    assert ground.latents[short][:, 1].max() < 0.4
    assert ground.latents[low][:, 1].max() > 0.8
    assert (short[0], short[-1]) == (low[0], low[-1]) == (start, end)
    # Both go from neighbour to neighbour.
    graph = ground.graph.toarray()
    for stations in (short, low):
        assert (graph[stations[:-1], stations[1:]] > 0).all()


def test_no_way_has_a_lower_barrier() -> None:
    ground = find_ground(lake())
    start, end = ends_of(ground)
    height = ground.energy[walk_over_barrier(ground, start, end)].max()
    graph = ground.graph.tocoo()
    lower = (ground.energy[graph.row] < height) & (ground.energy[graph.col] < height)
    below = csr_array((graph.data[lower], (graph.row[lower], graph.col[lower])), shape=graph.shape)
    label = connected_components(below, directed=False)[1]
    assert label[start] != label[end]


def test_where_nothing_lies_between_that_is_said() -> None:
    apart = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    apart[::2] += 100
    columns = columns_of(apart)
    with pytest.raises(ExplorationError, match="nothing lies between"):
        find_path(columns, "cluster:0", "cluster:1", "barrier", 5)
    assert find_path(columns, "cluster:0", "cluster:1", "straight", 5).particles[2] == 0


@pytest.mark.parametrize(
    ("start", "end", "points", "told"),
    [
        ("cluster:0", "cluster:7", 5, "no cluster 7; there are 0 to 1"),
        ("cluster:0", "9999", 5, "particle 9999 is not among the 3000"),
        ("here", "1", 5, "here: neither a particle nor a cluster"),
        ("cluster:0", "cluster:0", 5, "ends must differ"),
        ("cluster:0", "cluster:1", 1, "points be two"),
    ],
)
def test_ends_that_are_none_are_refused(start: str, end: str, points: int, told: str) -> None:
    with pytest.raises(ExplorationError, match=told):
        find_path(columns_of(bend()), start, end, "barrier", points)


def test_points_are_evenly_spaced_and_each_particle_counts_once() -> None:
    course = np.array([[0.0, 0], [1, 0], [1, 3]])
    np.testing.assert_allclose(space_evenly(course, 5), [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])
    latents = np.array([[0.1, 0], [1, 2.1], [1, 2.9], [5, 5]], dtype=np.float32)
    assert count_along(latents, course, 1.0).tolist() == [1, 0, 2]
