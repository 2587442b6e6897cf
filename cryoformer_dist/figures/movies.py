"""Films of a series of maps: lit surfaces that morph, or turn meanwhile, with scale bar and contour; GIF or MP4."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.transform import Rotation

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.figures.surfaces import (
    BODY_COLOUR,
    Colour,
    View,
    colour_at,
    draw_surface,
    find_best_view,
    find_common_level,
    measure_variation,
)

FRAMES_PER_SECOND = 12
_BETWEEN = 3
"""Frames from one map to the next."""
_LARGEST_DRAWN = 540
"""Larger pictures are scaled up: the slab that rays cross grows with the cube."""
_ENCLOSED = 0.9
_INK, _GROUND = (40, 48, 64), (255, 255, 255)
_ROUND_LENGTHS = (1, 2, 5)
# That of plots; Pillow's own has no angstrom.
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@dataclass(frozen=True, slots=True)
class Film:
    """What is filmed.

    Attributes
    ----------
    name
        Of the series.
    maps
        In order.
    voxel_size_angstrom
        Of the maps.
    height
        Of the picture in pixels; it is 16 to 9.
    turntable
        Whether the molecule turns once while it morphs.
    level
        Contour; one that encloses the molecule in all maps when ``None``.
    """

    name: str
    maps: Float[np.ndarray, "maps box box box"]
    voxel_size_angstrom: float
    height: int
    turntable: bool
    level: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, both even: encoders halve the colours."""
        return 2 * round(self.height * 8 / 9), self.height

    def positions(self) -> Float[np.ndarray, " frames"]:
        """Where in the series each frame is: forth and back, every map met exactly."""
        last = len(self.maps) - 1
        forth = np.linspace(0, last, _BETWEEN * last + 1)
        return np.concatenate([forth, forth[-2:0:-1]]) if last else np.zeros(4 * FRAMES_PER_SECOND)


def draw_frames(film: Film) -> Iterator[Image.Image]:
    """The frames, one after the other; without a turntable those on the way back are those of the way there."""
    level = find_common_level(film.maps, _ENCLOSED) if film.level is None else film.level
    moving = measure_variation(film.maps)
    view, positions = find_best_view(film.maps, level), film.positions()
    if film.turntable:
        # Nothing leaves the picture as it turns.
        view = replace(view, half_width=1.25 * view.half_width)
    drawn: dict[float, Image.Image] = {}
    for number, position in enumerate(positions):
        key = float(number if film.turntable else position)
        if key not in drawn:
            seen = _turn(view, number / len(positions)) if film.turntable else view
            picture = _draw(film, float(position), level, seen, moving)
            drawn[key] = _annotate(film, picture, float(position), level, view)
        yield drawn[key] if not film.turntable else drawn.pop(key)


def write_movie(file: Path, frames: Iterator[Image.Image], size: tuple[int, int], suffix: str) -> Path:
    """Encode frames as GIF, or as MP4 (H.264), by the suffix."""
    if suffix == ".gif":
        first, *others = frames
        duration = round(1000 / FRAMES_PER_SECOND)
        first.save(file, format="GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=True)
        return file
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(file), size, fps=FRAMES_PER_SECOND, macro_block_size=2, output_params=["-f", "mp4"]
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.asarray(frame).tobytes())
    writer.close()
    return file


def require_encoder() -> None:
    """See that MP4 can be written.

    Raises
    ------
    BackendUnavailableError
        If imageio-ffmpeg, which brings an encoder, is not installed.
    """
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            f"MP4 needs imageio-ffmpeg: pip install 'cryoformer-dist[movie]' ({error}); or write a .gif"
        ) from error


def _draw(film: Film, position: float, level: float, view: View, moving: np.ndarray) -> np.ndarray:
    """The surface between two maps of the series, coloured where the maps differ."""
    before = min(int(position), max(len(film.maps) - 2, 0))
    share, after = position - before, min(before + 1, len(film.maps) - 1)
    voxels = (1 - share) * film.maps[before] + share * film.maps[after]
    colour: Colour = colour_at(position / (len(film.maps) - 1)) if len(film.maps) > 1 else BODY_COLOUR
    highlight = moving if moving.any() else None
    return draw_surface(voxels, level, view, colour, highlight, min(film.height, _LARGEST_DRAWN))


def _turn(view: View, share: float) -> View:
    """The same place seen after a share of a whole turn about the picture's vertical."""
    turn = Rotation.from_euler("y", 360 * share, degrees=True).as_matrix()
    return replace(view, rotation=turn @ view.rotation)


def _annotate(film: Film, picture: np.ndarray, position: float, level: float, view: View) -> Image.Image:
    """A frame: the picture in its middle, what it shows, its contour, and a scale bar."""
    levels = np.round(picture * 255).astype(np.uint8)
    surface = Image.fromarray(levels, "RGBA").resize((film.height, film.height), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", film.size, _GROUND)
    frame.paste(surface, ((film.size[0] - film.height) // 2, 0), surface)
    pen, font, margin = ImageDraw.Draw(frame), ImageFont.truetype(_FONT, film.height / 30), film.height // 24
    text = f"{film.name} · map {position + 1:.1f} of {len(film.maps)}\ncontour {level:.3g}"
    pen.multiline_text((margin, margin), text, _INK, font)
    length = choose_bar(film.maps.shape[-1] * film.voxel_size_angstrom * 2 * view.half_width)
    pixels = length / (film.maps.shape[-1] * film.voxel_size_angstrom * 2 * view.half_width) * film.height
    bottom = film.height - margin
    pen.rectangle((margin, bottom - film.height // 90, margin + pixels, bottom), _INK)
    pen.text((margin, bottom - film.height // 90 - margin * 1.3), f"{length:g} Å", _INK, font)
    return frame


def choose_bar(width_angstrom: float) -> float:
    """Length of a scale bar: 1, 2 or 5 times a power of ten, at most a quarter of the picture."""
    lengths: Sequence[float] = [digit * 10.0**power for power in range(-2, 5) for digit in _ROUND_LENGTHS]
    return max(length for length in lengths if length <= width_angstrom / 4)
