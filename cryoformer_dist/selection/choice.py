"""From columns to selections: everything, clusters, conditions, what a lasso goes round, and these taken together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.selection import (
    Condition,
    Everything,
    Lasso,
    OfClusters,
    Origin,
    ParticleFile,
    RowFile,
    Selection,
    read_selection,
)
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.io.cryodrgn import read_indices_pkl
from cryoformer_dist.selection.columns import ParticleColumns
from cryoformer_dist.selection.conditions import fulfils


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for: particles that fulfil all of it, or with ``any_of_it`` some of it; all particles if nothing.

    Attributes
    ----------
    clusters
        Particles of one of them.
    where
        Conditions on columns.
    selections, rows
        Files of selections, and of row numbers (cryoDRGN's ``ind.pkl``).
    any_of_it
        Take parts together as a union, not as an intersection.
    complement
        All other particles of the run instead.
    """

    clusters: tuple[int, ...] = ()
    where: tuple[str, ...] = ()
    selections: tuple[Path, ...] = ()
    rows: tuple[Path, ...] = ()
    any_of_it: bool = False
    complement: bool = False


def choose(columns: ParticleColumns, choice: Choice) -> Selection:
    """The particles that are asked for.

    Raises
    ------
    SelectionError
        If a part cannot be understood, is of another particle file, or there is no such particle.
    """
    parts = list(_choose_parts(columns, choice))
    chosen = reduce(or_ if choice.any_of_it else and_, parts) if parts else choose_all(columns)
    if choice.complement:
        chosen = choose_all(columns) - chosen
    if not len(chosen):
        raise SelectionError(f"{columns.run.home}: no particle is left ({chosen}); ask for less")
    return chosen


def _choose_parts(columns: ParticleColumns, choice: Choice) -> Iterator[Selection]:
    if choice.clusters:
        yield choose_clusters(columns, choice.clusters)
    yield from (choose_where(columns, expression) for expression in choice.where)
    for path in choice.selections:
        selection = read_selection(path)
        selection.refuse_other_source(columns.source, columns.run.home)
        yield selection
    yield from (choose_rows(columns.source, path) for path in choice.rows)


def choose_all(columns: ParticleColumns) -> Selection:
    """Every particle of a run."""
    return Selection.of(columns.source, columns.source_row, Everything(run=columns.run))


def choose_clusters(columns: ParticleColumns, numbers: Sequence[int]) -> Selection:
    """Particles of some clusters.

    Raises
    ------
    SelectionError
        If there is no such cluster.
    """
    label = columns.values("cluster")
    absent = np.setdiff1d(numbers, label)
    if len(absent):
        raise SelectionError(
            f"{columns.run.home}: no cluster {absent[0]}; there are 0 to {label.max()}, numbered as the maps "
            "volumes/kmeans_*.mrc"
        )
    return _choose(columns, np.isin(label, numbers), OfClusters(run=columns.run, numbers=tuple(numbers)))


def choose_where(columns: ParticleColumns, expression: str) -> Selection:
    """Particles whose columns fulfil a condition; see `fulfils`."""
    return _choose(
        columns, fulfils(expression, columns.values), Condition(run=columns.run, expression=expression.strip())
    )


def choose_inside(columns: ParticleColumns, axes: tuple[str, str], polygon: Sequence[tuple[float, float]]) -> Selection:
    """Particles inside a polygon of at least three corners, drawn over two columns.

    Raises
    ------
    SelectionError
        If the polygon encloses nothing, or a column does not exist.
    """
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise SelectionError(f"a lasso needs three corners (x, y) or more, this one has {len(polygon)}: draw it again")
    x, y = (columns.values(axis).astype(np.float64) for axis in axes)
    drawn = tuple((float(each[0]), float(each[1])) for each in corners)
    return _choose(columns, lie_inside(x, y, corners), Lasso(run=columns.run, axes=axes, polygon=drawn))


def choose_rows(source: ParticleFile, path: Path) -> Selection:
    """Particles that cryoDRGN's ``ind.pkl`` names by their rows in the particle file."""
    return Selection.of(source, read_indices_pkl(path), RowFile(path=str(path)))


def _choose(columns: ParticleColumns, mask: NDArray[np.bool_], origin: Origin) -> Selection:
    return Selection.of(columns.source, columns.source_row[mask], origin)


def lie_inside(x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points a polygon goes round an odd number of times.

    A ray to the right crosses an edge where the point's height is between the ends'. Points are sorted by height, so
    that each edge looks at those only: a lasso of hundreds of corners round a million points takes half a second.

    Parameters
    ----------
    x, y
        ``(points,)``.
    corners
        ``(corners, 2)``; the last is joined with the first.
    """
    order = np.argsort(y, kind="stable")
    across, up = x[order], y[order]
    inside = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # Each end belongs to the edge above it, so that no corner counts twice.
        low, high = np.searchsorted(up, (min(y0, y1), max(y0, y1)))
        if high > low:
            edge = x0 + (up[low:high] - y0) * ((x1 - x0) / (y1 - y0))
            inside[low:high] ^= across[low:high] < edge
    result = np.empty_like(inside)
    result[order] = inside
    return result
