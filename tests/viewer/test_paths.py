from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cryoformer_dist.data.selection import ParticleFile, RunState
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import NoPathError, SelectionError
from cryoformer_dist.selection.columns import Column, ParticleColumns
from cryoformer_dist.viewer.paths import find_path
from cryoformer_dist.viewer.requests import AskedPath


@pytest.fixture
def ring(store: ParticleStore) -> Any:
    """Particles on a ring in x and y, of which a third dimension follows the angle; y counts in thousandths."""
    angle = np.linspace(0, np.pi, 2000)
    latents = np.stack([np.cos(angle), np.sin(angle), angle], axis=1).astype(np.float32)
    values = {"x": latents[:, 0], "y": 1000 * latents[:, 1]}
    columns = {name: Column(each, "", name) for name, each in values.items()}
    rows = np.arange(2000)[::-1].copy()
    table, file = {"latent": latents}, ParticleFile("ring.star", "")
    known = ParticleColumns(file, RunState("ring", 1), rows, rows, columns, table, store)
    return SimpleNamespace(latents=latents, columns=known)


def asked(**changes: Any) -> AskedPath:
    given = {"axes": ("x", "y"), "corners": ((1.0, 0.0), (0.0, 1000.0), (-1.0, 0.0)), "ends": (), "stops": 9}
    return AskedPath(**given | changes)


def test_a_path_keeps_to_where_particles_are(ring: Any) -> None:
    path = find_path(ring, asked())
    # The line is a roof, not the ring; what is found lies on the ring, in all dimensions.
    np.testing.assert_allclose(np.hypot(*path.latents[:, :2].T), 1, atol=1e-3)
    np.testing.assert_allclose(np.arctan2(path.latents[:, 1], path.latents[:, 0]), path.latents[:, 2], atol=1e-2)
    assert (np.diff(path.latents[:, 2]) > 0.1).all()
    assert path.particles.sum() == 2000
    assert (path.particles > 50).all()


def test_stops_are_as_far_apart_on_the_line_in_units_of_the_columns_spread(ring: Any) -> None:
    points = find_path(ring, asked()).points
    scale = np.array([ring.columns.values("x").std(), ring.columns.values("y").std()])
    steps = np.linalg.norm(np.diff(points / scale, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    np.testing.assert_allclose(points[[0, 4, -1]], [(1, 0), (0, 1000), (-1, 0)], atol=1e-6)


def test_a_path_between_two_particles_leads_from_neighbour_to_neighbour(ring: Any) -> None:
    path = find_path(ring, asked(corners=(), ends=(0, 1500)))
    np.testing.assert_allclose(path.latents[[0, -1]], ring.latents[[0, 1500]], atol=1e-5)
    np.testing.assert_allclose(np.hypot(*path.latents[:, :2].T), 1, atol=1e-2)
    np.testing.assert_allclose(path.points, path.latents[:, :2] * [1, 1000], atol=30)
    np.testing.assert_array_equal(path.points[0], [1, 0])


def test_particles_that_nothing_joins_are_told_so_in_words_of_the_page(ring: Any) -> None:
    apart = ring.latents.copy()
    apart[1000:] += 100
    ring.columns.table["latent"] = apart
    with pytest.raises(NoPathError, match=r"nothing lies between; draw a line") as refusal:
        find_path(ring, asked(corners=(), ends=(0, 1500)))
    assert "--" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stops": 1}, "2 to 60 stops"),
        ({"stops": 1000}, "2 to 60 stops"),
        ({"corners": ((0.0, 0.0),)}, "from one place to another"),
        ({"corners": ((2.0, 2.0), (2.0, 2.0))}, "from one place to another"),
        ({"corners": ((0.0, 0.0), (float("nan"), 0.0))}, "from one place to another"),
        ({"ends": (1,)}, "two of the particles 0 to 1999"),
        ({"ends": (1, 2000)}, "two of the particles 0 to 1999"),
    ],
)
def test_what_is_no_path_is_refused(ring: Any, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(SelectionError, match=what):
        find_path(ring, asked(**changes))
