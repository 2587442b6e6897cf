"""A selection: a set of rows of one particle file, and how it was made.

What takes particles takes a selection; what shows particles can make one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.store_attributes import Source
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.storage.places import Place, replaced
from cryoformer_dist.storage.records import as_json, from_json

SCHEMA_VERSION = 1
_VERSION, _ROWS = "schema_version", "source_row"
_REMEDY = "make the selection again"


@dataclass(frozen=True, slots=True)
class ParticleFile:
    """The file whose rows are counted.

    Attributes
    ----------
    path
        Where it lay when its particles were converted.
    sha256
        Of its content: rows of another file, or of this one changed, are other particles.
    """

    path: str
    sha256: str

    @classmethod
    def of(cls, source: Source) -> Self:
        """The file that a store was converted from."""
        return cls(source.path, source.sha256)

    @classmethod
    def at(cls, path: Path) -> Self:
        """A file as it is now.

        Raises
        ------
        SelectionError
            If there is none.
        """
        try:
            with path.open("rb") as file:
                return cls(str(path.absolute()), hashlib.file_digest(file, "sha256").hexdigest())
        except FileNotFoundError:
            raise SelectionError(f"{path}: no such particle file any more; say where it lies") from None


@dataclass(frozen=True, slots=True)
class RunState:
    """The run that columns were taken from.

    Attributes
    ----------
    home
        Run directory.
    checkpoint_step
        Step of the checkpoint that its latents are of.
    """

    home: str
    checkpoint_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """All particles that a run was trained on."""

    kind: Literal["everything"] = "everything"
    run: RunState

    def __str__(self) -> str:
        return "all particles"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfClusters:
    """Particles of some clusters, numbered as their maps ``volumes/kmeans_003.mrc`` are."""

    kind: Literal["clusters"] = "clusters"
    run: RunState
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        names = ", ".join(map(str, self.numbers))
        return f"cluster{'s' if len(self.numbers) > 1 else ''} {names}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Particles whose columns fulfil a condition, such as ``junk < .1 and amplitude > .5``."""

    kind: Literal["where"] = "where"
    run: RunState
    expression: str

    def __str__(self) -> str:
        return f"where {self.expression}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasso:
    """Particles inside a polygon, its corners in the units of the two columns named by ``axes``."""

    kind: Literal["lasso"] = "lasso"
    run: RunState
    axes: tuple[str, str]
    polygon: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return f"lasso of {len(self.polygon)} corners in {self.axes[0]}, {self.axes[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """Particles that a file of row numbers names, such as cryoDRGN's ``ind.pkl``."""

    kind: Literal["rows"] = "rows"
    path: str

    def __str__(self) -> str:
        return f"rows of {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Two selections taken together."""

    kind: Literal["union", "intersection", "difference"]
    first: "Origin"
    second: "Origin"

    def __str__(self) -> str:
        return f"({self.first} {_BETWEEN[self.kind]} {self.second})"


_BETWEEN = {"union": "or", "intersection": "and", "difference": "but not"}
Origin = Everything | OfClusters | Condition | Lasso | RowFile | Combined


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A set of rows of one particle file; ``|``, ``&`` and ``-`` of two are those of sets.

    Attributes
    ----------
    source
        The particle file.
    source_row
        ``(particles,)`` int64 rows of it from 0, ascending, each once.
    origin
        How it was made.
    """

    source: ParticleFile
    source_row: NDArray[np.int64]
    origin: Origin

    def __post_init__(self) -> None:
        rows = self.source_row
        if rows.ndim != 1 or rows.dtype != np.int64 or (len(rows) and rows[0] < 0) or (np.diff(rows) <= 0).any():
            raise ValueError("source_row holds row numbers from 0, ascending, each once: make it with `Selection.of`")

    @classmethod
    def of(cls, source: ParticleFile, source_row: NDArray[np.integer[Any]] | Sequence[int], origin: Origin) -> Self:
        """Rows in any order, repeats allowed."""
        return cls(source, np.unique(np.asarray(source_row, dtype=np.int64)), origin)

    def __len__(self) -> int:
        return len(self.source_row)

    def __str__(self) -> str:
        return str(self.origin)

    def __or__(self, other: "Selection") -> "Selection":
        return self._combine(other, "union", np.union1d(self.source_row, other.source_row))

    def __and__(self, other: "Selection") -> "Selection":
        return self._combine(other, "intersection", np.intersect1d(self.source_row, other.source_row, True))

    def __sub__(self, other: "Selection") -> "Selection":
        return self._combine(other, "difference", np.setdiff1d(self.source_row, other.source_row, True))

    def _combine(
        self, other: "Selection", kind: Literal["union", "intersection", "difference"], rows: NDArray[np.int64]
    ) -> "Selection":
        self.refuse_other_source(other.source, str(other))
        return Selection(self.source, rows, Combined(kind=kind, first=self.origin, second=other.origin))

    def refuse_other_source(self, source: ParticleFile, what: str) -> None:
        """See that rows of another thing are those of the same file.

        Raises
        ------
        SelectionError
            If they are not.
        """
        if source.sha256 != self.source.sha256:
            raise SelectionError(
                f"{what}: its rows are of {source.path}, those of the selection of {self.source.path}, which has "
                "another content: make the selection again, from a run on those very particles"
            )


def keep_selected(table: ParticleTable, selection: Selection) -> ParticleTable:
    """The particles of a table that are selected, in its order.

    Raises
    ------
    SelectionError
        If the selection is of another particle file, or of this one before it was changed.
    """
    selection.refuse_other_source(ParticleFile.at(table.source), str(table.source))
    return table.select(np.isin(table.source_row, selection.source_row))


def write_selection(path: Path, selection: Selection) -> Path:
    """Write a selection as JSON, whole or not at all.

    The file holds ``schema_version``, ``source`` (``path``, ``sha256``), ``origin`` (``kind`` and what belongs to it)
    and ``source_row``, a list of numbers.
    """
    head = {_VERSION: SCHEMA_VERSION, "source": as_json(selection.source), "origin": as_json(selection.origin)}
    # A line for each of a million rows would be twice the size.
    rows = json.dumps(selection.source_row.tolist(), separators=(",", ":"))
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as beside:
        beside.write_text(f'{text},\n  "{_ROWS}": {rows}\n}}\n', encoding="utf-8")
    return path


def read_selection(path: Place) -> Selection:
    """Read what `write_selection` wrote.

    Raises
    ------
    SelectionError
        If there is no such file, or it is damaged or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content[_VERSION]
        if version == SCHEMA_VERSION:
            rows = np.asarray(content[_ROWS] or np.empty(0, np.int64))
            if not np.issubdtype(rows.dtype, np.integer):
                raise ValueError(f"{_ROWS} are not whole numbers")
            source: ParticleFile = from_json(ParticleFile, content["source"])
            return Selection(source, rows.astype(np.int64), from_json(Origin, content["origin"]))
    except FileNotFoundError:
        raise SelectionError(f"{path}: no such selection; `cryoformer-dist select` makes one") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SelectionError(f"{path}: damaged, or no selection ({error}); {_REMEDY}") from error
    raise SelectionError(f"{path}: schema {version}, this version reads {SCHEMA_VERSION}; {_REMEDY}")
