"""Pictures of density maps: lit iso-surfaces and cuts, in numpy alone, as arrays of colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import fft
from scipy.ndimage import (
    affine_transform,
    binary_dilation,
    distance_transform_edt,
    gaussian_filter,
    label,
    map_coordinates,
    zoom,
)
from scipy.spatial.transform import Rotation

Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""

BODY_COLOUR: Colour = (0.80, 0.83, 0.88)
VALUE_STOPS = ("#ccd4df", "#d9d6c8", "#f0c763", "#ea7f35", "#c62f3b", "#7a1236")
"""Colours of a map's values on a surface, low to high; the grey of `BODY_COLOUR` is low."""
CLUSTER_COLOURS = (
    "#3f7fd6", "#ef8636", "#3ba272", "#d8434e", "#8e63ce", "#a0694d", "#e06fb4", "#6f7787", "#b3ac2c", "#29b3c9",
)  # fmt: skip
"""Colours of clusters by number; from the eleventh on they come again."""
_LINE_STOPS = ("#3b4cc0", "#2f8fd0", "#2fb6a3", "#8cc152", "#f2b632", "#ee7b2d", "#d0342c")
_CIRCLE_STOPS = ("#d0342c", "#f0952b", "#b9c23c", "#35b384", "#2f9bd6", "#5a56c8", "#b748a8", "#d0342c")
_FINE_BOX = (112, 160)
# The slab that rays cross, as a multiple of the picture's width.
_THICKNESS = 1.3
_SHAPE = np.array([1.0, 1.0, _THICKNESS])


@dataclass(frozen=True, slots=True)
class View:
    """Where a picture is taken from; one view serves all states, so that only the molecule moves.

    Attributes
    ----------
    rotation
        ``(3, 3)``; rows are the picture's right, down and away directions in `(x, y, z)` of the map.
    half_width
        Half the side of the picture as a share of the box.
    centre
        ``(3,)`` `(x, y, z)` of the picture's centre about the map's centre, as a share of the box.
    """

    rotation: Float[np.ndarray, "3 3"]
    half_width: float
    centre: Float[np.ndarray, " 3"]


def colour_states(count: int, periodic: bool = False) -> list[Colour]:
    """Colours in order of the states; on a circle the last leads back to the first."""
    positions = np.arange(count) / count if periodic else np.linspace(0.0, 1.0, count) if count > 1 else [0.5]
    return [colour_at(float(position), periodic) for position in positions]


def colour_at(position: float, periodic: bool = False) -> Colour:
    """Colour of a position in [0, 1] of the range of states."""
    red, green, blue = _interpolate_colours(np.asarray(position), _CIRCLE_STOPS if periodic else _LINE_STOPS)
    return float(red), float(green), float(blue)


def cluster_colour(number: int) -> Colour:
    """Colour of a cluster in pictures and in the latent map."""
    red, green, blue = _parse_colour(CLUSTER_COLOURS[number % len(CLUSTER_COLOURS)])
    return red, green, blue


def _parse_colour(stop: str) -> list[float]:
    return [int(stop[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _interpolate_colours(positions: Float[np.ndarray, "*shape"], stops: Sequence[str]) -> Float[np.ndarray, "*shape 3"]:
    """Colours at positions in [0, 1] between evenly spaced stops."""
    table = np.array([_parse_colour(stop) for stop in stops])
    at = np.clip(positions, 0, 1) * (len(stops) - 1)
    return np.stack([np.interp(at, np.arange(len(stops)), table[:, k]) for k in range(3)], axis=-1)


def find_common_level(volumes: Float[np.ndarray, "states box box box"], enclosed: float = 0.8) -> float:
    """Contour level that encloses a share of the squared density above the solvent, averaged over the maps.

    Squares count the molecule and hardly the noise, so one share fits large and small molecules. The solvent
    level is the median of the map.
    """
    levels = []
    for voxels in volumes:
        solvent = float(np.median(voxels))
        density = np.sort((voxels.ravel() - solvent).clip(min=0))[::-1]
        power = np.cumsum(np.square(density, dtype=np.float64))
        if power[-1] == 0:
            levels.append(solvent)
            continue
        levels.append(solvent + float(density[np.searchsorted(power, enclosed * power[-1])]))
    return float(np.mean(levels))


def measure_variation(volumes: Float[np.ndarray, "states box box box"]) -> Float[np.ndarray, "box box box"]:
    """Map of the standard deviation over the states: 1 where it is strong, 0 when nothing varies."""
    spread = volumes.std(axis=0, dtype=np.float64)
    strong = float(np.percentile(spread, 99.5))
    shared = float(np.abs(volumes.mean(axis=0)).max())
    return (spread / strong).clip(max=1.0) if strong > 1e-4 * shared else np.zeros_like(spread)


def find_best_view(volumes: Float[np.ndarray, "states box box box"], level: float) -> View:
    """Look along the shortest axis of all states together, with the motion in the plane, slightly tilted."""
    box = volumes.shape[-1]
    inside = (volumes > level).mean(axis=0)
    moving = measure_variation(volumes) * (inside > 0)
    z, y, x = np.nonzero(inside)
    if len(x) < 4:
        return View(np.eye(3), 0.5, np.zeros(3))
    points = np.stack([x, y, z], axis=1) - box // 2
    weight = inside[z, y, x] + 3 * moving[z, y, x]
    middle = (points * weight[:, None]).sum(axis=0) / weight.sum()
    spread = (points - middle).T @ ((points - middle) * weight[:, None])
    vectors = np.linalg.eigh(spread)[1][:, ::-1].T
    vectors *= np.sign(vectors[np.arange(3), np.abs(vectors).argmax(axis=1)])[:, None]
    vectors[2] *= np.sign(np.linalg.det(vectors))
    rotation = Rotation.from_euler("xy", [-18, 14], degrees=True).as_matrix() @ vectors
    seen = points @ rotation.T
    low, high = seen.min(axis=0), seen.max(axis=0)
    half_width = (0.5 * float((high - low)[:2].max()) + 2.5) / box
    return View(rotation, half_width, ((low + high) / 2) @ rotation / box)


def widen_view(view: View, surfaces: Sequence[tuple[Float[np.ndarray, "states box box box"], float]]) -> View:
    """The same view from so far back that nothing of these maps, each above its level, is cut off."""
    seen = [np.stack([-np.ones(3), np.ones(3)]) * view.half_width * _SHAPE + view.rotation @ view.centre]
    for volumes, level in surfaces:
        box, inside = volumes.shape[-1], np.asarray((volumes > level).any(axis=0))
        points = np.argwhere(inside & ~_find_dust(inside))[:, ::-1] - box // 2
        if len(points):
            places = points @ view.rotation.T / box
            # A voxel and a half more, for the slope beyond the outermost points.
            seen.append(np.stack([places.min(axis=0) - 1.5 / box, places.max(axis=0) + 1.5 / box]))
    low, high = np.min(seen, axis=(0, 1)), np.max(seen, axis=(0, 1))
    return View(view.rotation, float(((high - low) / 2 / _SHAPE).max()), (low + high) / 2 @ view.rotation)


def draw_surface(
    voxels: Float[np.ndarray, "box box box"],
    level: float,
    view: View,
    colour: Colour,
    highlight: Float[np.ndarray, "box box box"] | None = None,
    size: int = 240,
) -> Float[np.ndarray, "size size 4"]:
    """Draw a lit iso-surface on a transparent ground.

    Parameters
    ----------
    voxels, level
        Map and contour.
    view
        From `find_best_view`.
    colour
        Of the surface; with a ``highlight`` only where that is 1, and `BODY_COLOUR` where it is 0.
    highlight
        Weight of ``colour`` on a grid like the map's.
    size
        Pixels per side.

    Returns
    -------
    numpy.ndarray
        Red, green, blue, opacity in [0, 1].
    """
    traced = _trace(voxels, level, view, size)
    base = np.broadcast_to(np.array(colour), (size, size, 3))
    if highlight is not None:
        weight = _smoothstep(traced.sample(highlight), 0.18, 0.62)[..., None]
        base = base * weight + np.array(BODY_COLOUR) * (1 - weight)
    return traced.paint(base)


def draw_values(
    voxels: Float[np.ndarray, "box box box"],
    level: float,
    view: View,
    fields: Sequence[tuple[Float[np.ndarray, "box box box"], tuple[float, float]]],
    size: int = 240,
) -> list[Float[np.ndarray, "size size 4"]]:
    """Draw a lit iso-surface once per field, coloured by its values there between two limits (`VALUE_STOPS`)."""
    traced = _trace(voxels, level, view, size)
    pictures = []
    for values, (low, high) in fields:
        position = (traced.sample(values) - low) / (high - low if high > low else 1.0)
        pictures.append(traced.paint(_interpolate_colours(position, VALUE_STOPS)))
    return pictures


@dataclass(frozen=True, slots=True)
class _Surface:
    """What a picture sees of an iso-surface: where each ray meets it, how much of the pixel it fills."""

    view: View
    slab: np.ndarray
    hit: np.ndarray
    depth: np.ndarray
    opacity: np.ndarray

    def sample(self, field: np.ndarray) -> np.ndarray:
        """Values of a map at the surface."""
        return _sample_surface(field, self.view, self.depth, len(self.slab))

    def paint(self, base: np.ndarray) -> np.ndarray:
        """Light a surface of given colours."""
        pixels = self.depth * (_THICKNESS * len(base) / len(self.slab))
        shaded = _light(base, _compute_normals(self.slab, self.depth), pixels, self.hit)
        # Pixels that a surface fills by less than half meet none: they have the colour of those beside.
        beside = distance_transform_edt(~self.hit, return_distances=False, return_indices=True)
        return np.concatenate([shaded[tuple(beside)], self.opacity[..., None]], axis=-1)


def _trace(voxels: np.ndarray, level: float, view: View, size: int) -> _Surface:
    slab = _sample_view(_refine(_sink_dust(voxels, level)), view, size, level)
    hit, depth = _find_first_hit(slab, level)
    ceiling = slab.max(axis=0)
    slope = np.hypot(*np.gradient(ceiling)).clip(min=1e-9 + 1e-3 * np.ptp(ceiling))
    return _Surface(view, slab, hit, depth, ((ceiling - level) / slope + 0.5).clip(0, 1) * binary_dilation(hit))


def _sink_dust(voxels: np.ndarray, level: float) -> np.ndarray:
    """Sink islands much smaller than the largest one below the contour, as ChimeraX's `hide dust` does."""
    dust = _find_dust(voxels > level)
    return np.where(dust, float(np.median(voxels)), voxels) if dust.any() else voxels


def _find_dust(inside: np.ndarray) -> np.ndarray:
    """Islands much smaller than the largest one."""
    islands, count = label(inside)
    if count < 2:
        return np.zeros_like(inside)
    sizes = np.bincount(islands.ravel())
    sizes[0] = 0
    return np.asarray(np.isin(islands, np.flatnonzero(sizes < 0.02 * sizes.max())) & inside)


def _refine(voxels: np.ndarray) -> np.ndarray:
    """Bring a map to a grid fine enough for smooth surfaces: Fourier padding, or thinning of large boxes."""
    box = voxels.shape[-1]
    if box > _FINE_BOX[1]:
        return np.asarray(zoom(voxels, _FINE_BOX[1] / box, order=1), dtype=np.float32)
    factor = -(-_FINE_BOX[0] // box)
    if factor == 1:
        return voxels.astype(np.float32)
    fine = box * factor
    spectrum = fft.fftshift(fft.fftn(voxels.astype(np.float32)))
    pad = fine // 2 - box // 2
    padded = np.pad(spectrum, [(pad, fine - box - pad)] * 3)
    # fftn puts index 0 first in both grids, so voxel c of the old one is voxel c * factor of the new.
    return np.asarray(fft.ifftn(fft.ifftshift(padded)).real * factor**3, dtype=np.float32)


def _find_view_matrix(view: View, shape: Sequence[int], box: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from (depth, row, column) of the picture to (z, y, x) indices of a map."""
    scale = 2 * view.half_width * box / np.array([shape[0] / _THICKNESS, shape[1], shape[2]])
    matrix = view.rotation.T[::-1, ::-1] * scale[None, :]
    middle = (np.array(shape) - 1) / 2
    return matrix, box // 2 + view.centre[::-1] * box - matrix @ middle


def _sample_view(voxels: np.ndarray, view: View, size: int, level: float) -> np.ndarray:
    """Map turned into the picture's frame, `(depth, row, column)`, first plane nearest to the eye.

    Only the block that holds the surface is sampled finely; the rest stays at the map's lowest value.
    """
    floor = float(voxels.min())
    coarse_shape, shape = ((max(side * 2 // 5, 24), side, side) for side in (size // 4, size))
    matrix, offset = _find_view_matrix(view, coarse_shape, voxels.shape[-1])
    coarse = affine_transform(voxels, matrix, offset, coarse_shape, order=1, cval=floor)
    # Halfway down to the floor, and two coarse voxels more, so that no thin part between the samples is lost.
    reach = np.nonzero(coarse > (level + floor) / 2)
    slab = np.full(shape, floor, dtype=np.float32)
    if not len(reach[0]):
        return slab
    ratio = np.array(shape) / np.array(coarse_shape)
    low = np.maximum(np.floor((np.min(reach, axis=1) - 2) * ratio).astype(int), 0)
    high = np.minimum(np.ceil((np.max(reach, axis=1) + 3) * ratio).astype(int), shape)
    matrix, offset = _find_view_matrix(view, shape, voxels.shape[-1])
    block = affine_transform(voxels, matrix, offset + matrix @ low, tuple(high - low), order=1, cval=floor)
    slab[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = block
    return slab


def _find_first_hit(slab: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each ray meets the surface, and where, in fractions of a plane."""
    inside = slab > level
    hit = np.asarray(inside.any(axis=0))
    plane = inside.argmax(axis=0)
    rows, columns = np.indices(hit.shape)
    here = slab[plane, rows, columns]
    before = slab[(plane - 1).clip(min=0), rows, columns]
    rise = np.where(here > before, here - before, 1.0)
    depth = np.where(plane > 0, plane - (here - level) / rise, 0.0)
    return hit, np.where(hit, depth, len(slab) - 1.0)


def _sample_surface(field: np.ndarray, view: View, depth: np.ndarray, planes: int) -> np.ndarray:
    """Value of a field on the map's own grid at the surface points."""
    rows, columns = np.indices(depth.shape)
    matrix, offset = _find_view_matrix(view, (planes, *depth.shape), field.shape[-1])
    points = np.tensordot(matrix, np.stack([depth, rows, columns]), axes=1) + offset[:, None, None]
    return np.asarray(map_coordinates(field, points, order=1, mode="nearest"))


def _compute_normals(slab: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Compute outward unit normals `(right, down, away)` from central differences at the hits."""
    rows, columns = np.indices(depth.shape).astype(np.float64)
    # A plane of the slab is thicker than a pixel: equal steps in space need unequal steps in index.
    steps = {0: 3 * len(slab) / (_THICKNESS * depth.shape[0]), 1: 3.0, 2: 3.0}
    gradient = []
    for axis in (2, 1, 0):
        offset = np.zeros(3)
        offset[axis] = steps[axis]
        here = np.stack([depth, rows, columns])
        shift = offset[:, None, None]
        ahead, behind = (map_coordinates(slab, here + sign * shift, order=1, mode="nearest") for sign in (1, -1))
        gradient.append(behind - ahead)
    normal = np.stack(gradient, axis=-1)
    return np.asarray(normal / np.linalg.norm(normal, axis=-1, keepdims=True).clip(min=1e-12))


def _smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    ramp = ((values - low) / (high - low)).clip(0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp))


def _light(base: np.ndarray, normal: np.ndarray, pixels: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Key and fill light, soft shine, shade in the creases, a dark rim where a nearer part ends."""
    key, fill = np.array([-0.45, -0.62, -0.64]), np.array([0.7, 0.1, -0.7])
    lit = 0.36 + 0.56 * (normal @ (key / np.linalg.norm(key))).clip(min=0)
    lit = lit + 0.16 * (normal @ (fill / np.linalg.norm(fill))).clip(min=0)
    far = float(np.percentile(pixels[hit], 98)) if hit.any() else 0.0
    surface = np.where(hit, pixels, far + 12)
    buried = np.zeros_like(lit)
    for width in (3.0, 9.0, 20.0):
        buried += ((surface - gaussian_filter(surface, width * hit.shape[0] / 240)) / (2.2 * width)).clip(0, 1)
    lit = lit * (1 - 0.36 * (buried / 1.6).clip(0, 1))
    rim = _smoothstep(surface - gaussian_filter(surface, 1.2), 1.6, 5.0)
    lit = lit * (1 - 0.45 * rim)
    half = key / np.linalg.norm(key) + np.array([0, 0, -1.0])
    shine = (normal @ (half / np.linalg.norm(half))).clip(min=0) ** 28
    return np.asarray((base * lit[..., None] + 0.16 * shine[..., None]).clip(0, 1))


def crop_alike(
    pictures: Sequence[Float[np.ndarray, "height width 4"]], margin: int = 6
) -> list[Float[np.ndarray, "rows width 4"]]:
    """Cut empty rows off the top and bottom of all pictures alike, so that they still line up."""
    filled = np.flatnonzero(np.max([picture[..., 3].max(axis=1) for picture in pictures], axis=0) > 0)
    if not len(filled):
        return list(pictures)
    low, high = max(int(filled[0]) - margin, 0), int(filled[-1]) + margin + 1
    return [picture[low:high] for picture in pictures]


def cut_slices(
    voxels: Float[np.ndarray, "box box box"], limits: tuple[float, float], size: int = 160
) -> list[Float[np.ndarray, "size size"]]:
    """Cut a map through its centre normal to z, y and x; grey values in [0, 1] between two densities."""
    middle = voxels.shape[-1] // 2
    low, high = limits
    cuts = [voxels[middle], voxels[:, middle], voxels[:, :, middle]]
    return [_enlarge(((cut - low) / (high - low if high > low else 1.0)).clip(0, 1), size) for cut in cuts]


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    at = (np.arange(size) + 0.5) * image.shape[0] / size - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    return np.asarray(map_coordinates(image.astype(np.float64), grid, order=3, mode="nearest").clip(0, 1))
