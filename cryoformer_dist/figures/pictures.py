"""Pictures of maps for pages: surfaces in rows and films, and slices, each as the PNG that a page carries in itself."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import matplotlib.image
import numpy as np
from jaxtyping import Float, Int, Real

from cryoformer_dist.figures.surfaces import (
    Colour,
    View,
    cut_slices,
    draw_surface,
    find_common_level,
    measure_variation,
)

_Shown = TypeVar("_Shown")
_Drawn = TypeVar("_Drawn")
_STRIP_NOTES = {
    "consensus": "what a rigid reconstruction shows",
    "ours": "decoded from the latents",
    "truth": "what the particles were made from",
}


@dataclass(frozen=True, slots=True)
class Strip:
    """The frames of a film side by side.

    Attributes
    ----------
    name, note
        Whose maps these are.
    image
        All frames in one picture.
    moves
        Whether there is more than one frame.
    """

    name: str
    image: str
    note: str
    moves: bool


@dataclass(frozen=True, slots=True)
class Film:
    """Strips that a page plays from one clock.

    Attributes
    ----------
    count
        Frames.
    periodic
        Whether the last leads back to the first.
    ratio
        Width to height, as a style sheet writes it.
    """

    count: int
    periodic: bool
    ratio: str
    strips: list[Strip]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image with values in [0, 1], grey or red-green-blue with or without opacity."""

    pixels: Real[np.ndarray, "height width *channels"]

    @property
    def uri(self) -> str:
        """As a page carries it in itself."""
        return encode_png(self.pixels)


@dataclass(frozen=True, slots=True)
class PictureRow:
    """Pictures with captions; ``captions`` says whether these are shown."""

    name: str
    tiles: list[tuple[Picture, str]]
    captions: bool = True

    @property
    def columns(self) -> int:
        """Pictures side by side."""
        return len(self.tiles)


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """The three central slices of a map."""

    name: str
    images: list[Picture]


def encode_png(image: Real[np.ndarray, "height width *channels"]) -> str:
    """PNG of an image with values in [0, 1] (grey, or red-green-blue with or without opacity), as a data URI."""
    buffer = io.BytesIO()
    levels = np.round(image * 255).clip(0, 255).astype(np.uint8)
    if levels.ndim == 3 and levels.shape[-1] == 4:
        # Colour under full transparency is never seen, but noise there would triple the file.
        levels[levels[..., 3] == 0] = 0
    if levels.ndim == 2:
        levels = np.repeat(levels[..., None], 3, axis=-1)
    matplotlib.image.imsave(buffer, levels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_surfaces(
    volumes: Float[np.ndarray, "states box box box"], view: View, colours: Sequence[Colour], size: int
) -> list[np.ndarray]:
    """Iso-surfaces at one level and from one view; where the maps differ each wears its own colour."""
    level, moving = find_common_level(volumes), measure_variation(volumes)
    highlight = moving if moving.any() else None
    return draw_at_once(
        lambda state: draw_surface(state[0], level, view, state[1], highlight, size),
        zip(volumes, colours, strict=True),
    )


def draw_at_once(draw: Callable[[_Shown], _Drawn], what: Iterable[_Shown]) -> list[_Drawn]:
    """One picture of each thing, on all cores: libraries do most of the work, and let other threads run."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(draw, what))


def pick_evenly(count: int, most: int) -> Int[np.ndarray, " picked"]:
    """Numbers of at most ``most`` of ``count`` things, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def make_film(frames: Mapping[str, Sequence[np.ndarray]], periodic: bool) -> Film:
    """Frames of ``ours`` and, where there are any, of ``consensus`` and ``truth``, in strips."""
    height, width = frames["ours"][0].shape[:2]
    strips = [
        Strip(name, join_frames(frames[name]), note, moves=name != "consensus")
        for name, note in _STRIP_NOTES.items()
        if name in frames
    ]
    return Film(len(frames["ours"]), periodic, f"{width} / {height}", strips)


def join_frames(pictures: Sequence[np.ndarray]) -> str:
    """Pictures side by side in one PNG, for the page to play as frames."""
    return encode_png(np.concatenate(list(pictures), axis=1))


def make_row(name: str, images: Sequence[np.ndarray], captions: Sequence[str], show: bool = True) -> PictureRow:
    """A row of pictures; ``show`` says whether captions are written below them."""
    return PictureRow(name, list(zip(map(Picture, images), captions, strict=True)), show)


def draw_slices(maps: Sequence[tuple[str, Float[np.ndarray, "box box box"]]], size: int = 150) -> list[SliceColumn]:
    """Central slices of named maps, each map between its own 2nd and 99.9th percentile."""
    columns = []
    for name, voxels in maps:
        low, high = (float(np.percentile(voxels, share)) for share in (2.0, 99.9))
        columns.append(SliceColumn(name, [Picture(cut) for cut in cut_slices(voxels, (low, high), size)]))
    return columns
