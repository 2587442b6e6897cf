"""What the page asks for, as it comes in JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.records import from_json

How = Literal["union", "intersection", "difference"]


class BadRequest(CryoFormerError, ValueError):
    """The page, or another program, asks for something that cannot be."""


@dataclass(frozen=True, slots=True)
class DrawnLasso:
    """A polygon over two columns, and how it is taken together with those drawn before."""

    how: How
    axes: tuple[str, str]
    polygon: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """Lowest and highest value of a column, where there is one."""

    column: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Particles inside the lassos (all, where there is none) that pass every gate."""

    lassos: tuple[DrawnLasso, ...]
    gates: tuple[Gate, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A selection to be kept in the run directory, and written for other programs beside it.

    Attributes
    ----------
    files
        Suffixes, such as ``.star``; none for the selection alone.
    """

    name: str
    chosen: Chosen
    files: tuple[str, ...]
    refined_poses: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOfParticle:
    """By its place among the particles of the run."""

    kind: Literal["particle"] = "particle"
    particle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOfLatent:
    """Of any latent vector."""

    kind: Literal["latent"] = "latent"
    latent: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOfSelection:
    """The mean of the maps of a sample."""

    kind: Literal["selection"] = "selection"
    chosen: Chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOfFile:
    """One that lies in the run directory."""

    kind: Literal["file"] = "file"
    name: str


AskedMap = MapOfParticle | MapOfLatent | MapOfSelection | MapOfFile


@dataclass(frozen=True, slots=True)
class AskedFilm:
    """Maps that lead from one to the next, or one that turns.

    Attributes
    ----------
    name
        Written into the picture.
    maps
        In order.
    level
        Contour.
    """

    name: str
    maps: tuple[AskedMap, ...]
    level: float


@dataclass(frozen=True, slots=True)
class AskedPath:
    """A way through the latents, to be shown over two columns.

    Attributes
    ----------
    corners
        Of a drawn line, in the units of the columns; none where ends are given.
    ends
        Two particles that are to be joined from neighbour to neighbour, or none.
    stops
        Maps along it.
    """

    axes: tuple[str, str]
    corners: tuple[tuple[float, float], ...]
    ends: tuple[int, ...]
    stops: int


@dataclass(frozen=True, slots=True)
class AskedImages:
    """Some images of a selection."""

    chosen: Chosen
    count: int
    seed: int


def parse(kind: Any, text: str) -> Any:
    """The request of a kind that a text is.

    Raises
    ------
    BadRequest
        If it is not just that.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, Mapping):
            raise ValueError("not an object")
        return from_json(kind, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRequest(f"this request cannot be understood ({error}); reload the page") from None
