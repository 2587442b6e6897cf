from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.data.selection import Lasso, OfClusters, ParticleFile, RowFile, RunState
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ParticleFormatError, SelectionError
from cryoformer_dist.io.cryodrgn import write_indices_pkl
from cryoformer_dist.selection.choice import (
    choose_all,
    choose_clusters,
    choose_inside,
    choose_rows,
    choose_where,
    lie_inside,
)
from cryoformer_dist.selection.columns import Column, ParticleColumns

SOURCE, RUN = ParticleFile("a.star", "ab"), RunState("runs/demo", 7)
COUNT = 500


@pytest.fixture
def columns(store: ParticleStore) -> ParticleColumns:
    rng = np.random.default_rng(1)
    place = rng.normal(size=(COUNT, 2)).astype(np.float32)
    made = {
        "pc1": Column(place[:, 0], "", ""),
        "pc2": Column(place[:, 1], "", ""),
        "cluster": Column(rng.integers(0, 4, COUNT), "", "", "category"),
    }
    return ParticleColumns(SOURCE, RUN, rng.permutation(900)[:COUNT], np.arange(COUNT), made, {}, store)


def test_everything_is_every_particle_in_the_order_of_the_source(columns: ParticleColumns) -> None:
    np.testing.assert_array_equal(choose_all(columns).source_row, np.sort(columns.source_row))


def test_clusters_are_disjoint_and_together_everything(columns: ParticleColumns) -> None:
    each = [choose_clusters(columns, [number]) for number in range(4)]
    assert sum(map(len, each)) == COUNT
    together = each[0] | each[1] | each[2] | each[3]
    np.testing.assert_array_equal(together.source_row, choose_all(columns).source_row)
    both = choose_clusters(columns, [1, 3])
    np.testing.assert_array_equal(both.source_row, (each[1] | each[3]).source_row)
    assert both.origin == OfClusters(run=RUN, numbers=(1, 3))


def test_an_absent_cluster_is_refused(columns: ParticleColumns) -> None:
    with pytest.raises(SelectionError, match="runs/demo: no cluster 4; there are 0 to 3"):
        choose_clusters(columns, [1, 4])


def test_a_condition_and_its_opposite_share_all_particles(columns: ParticleColumns) -> None:
    some, others = choose_where(columns, "pc1 < .3"), choose_where(columns, "not pc1 < .3")
    assert 0 < len(some) < COUNT
    assert len(some & others) == 0
    np.testing.assert_array_equal((choose_all(columns) - some).source_row, others.source_row)


def test_unknown_columns_are_refused_with_the_likeliest(columns: ParticleColumns) -> None:
    with pytest.raises(SelectionError, match="no column clutser; did you mean cluster"):
        choose_where(columns, "clutser == 1")
    with pytest.raises(SelectionError, match=r"no column junk; junk is looked for with model\.junk: weighed"):
        choose_where(columns, "junk < 1")


def test_a_lasso_holds_what_lies_inside(columns: ParticleColumns) -> None:
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 0.5), (-1.0, 0.5)]
    chosen = choose_inside(columns, ("pc1", "pc2"), square)
    inside = choose_where(columns, "-1 < pc1 < 1 and -1 < pc2 < .5")
    assert len(inside) > 50
    np.testing.assert_array_equal(chosen.source_row, inside.source_row)
    assert chosen.origin == Lasso(run=RUN, axes=("pc1", "pc2"), polygon=tuple(square))
    turned = choose_inside(columns, ("pc1", "pc2"), square[2:] + square[:2])
    backwards = choose_inside(columns, ("pc1", "pc2"), square[::-1])
    np.testing.assert_array_equal(turned.source_row, chosen.source_row)
    np.testing.assert_array_equal(backwards.source_row, chosen.source_row)


@pytest.mark.parametrize("corners", [[], [(0, 0), (1, 1)], [(0, 0), (1, 1), (np.nan, 0)], [(0, 0, 0)] * 3])
def test_a_lasso_round_nothing_is_refused(columns: ParticleColumns, corners: list[tuple[float, ...]]) -> None:
    with pytest.raises(SelectionError, match="draw it again"):
        choose_inside(columns, ("pc1", "pc2"), corners)


@pytest.mark.parametrize("seed", range(3))
def test_points_are_inside_when_edges_wind_round_them_an_odd_number_of_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners, points = rng.normal(size=(12, 2)), rng.normal(size=(300, 2))
    # Angles that the outline turns through as seen from each point; their sum over a turn says how often.
    seen = corners[None] - points[:, None]
    angle = np.arctan2(seen[..., 1], seen[..., 0])
    step = np.angle(np.exp(1j * (np.roll(angle, -1, axis=1) - angle)))
    turns = np.rint(step.sum(axis=1) / (2 * np.pi)).astype(int)
    assert {0, 1} <= set(np.abs(turns).tolist())
    np.testing.assert_array_equal(lie_inside(points[:, 0], points[:, 1], corners), turns % 2 == 1)


def test_neighbouring_lassos_share_no_point_and_lose_none() -> None:
    x, y = (axis.ravel().astype(np.float64) for axis in np.mgrid[0:9, 0:9])
    left, right = np.asarray([(0, 0), (4, 0), (4, 9), (0, 9)]), np.asarray([(4, 0), (9, 0), (9, 9), (4, 9)])
    both = [lie_inside(x, y, corners.astype(np.float64)) for corners in (left, right)]
    assert not (both[0] & both[1]).any()
    assert (both[0] | both[1]).all()


def test_rows_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    write_indices_pkl(tmp_path / "ind.pkl", np.asarray([9, 2, 4]))
    chosen = choose_rows(SOURCE, tmp_path / "ind.pkl")
    assert chosen.source_row.tolist() == [2, 4, 9]
    assert chosen.origin == RowFile(path=str(tmp_path / "ind.pkl"))
    with pytest.raises(ParticleFormatError, match="no such file"):
        choose_rows(SOURCE, tmp_path / "absent.pkl")
