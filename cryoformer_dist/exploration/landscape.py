"""How crowded the latent space is: density on a grid, as an energy, how surely, and the wells in it.

The energy is minus the logarithm of the density, in units of kT, 0 at its lowest. It would be the free energy of the
molecule if the latents were exact, the coordinate natural, and freezing had left the populations as they were. What is
known of the first of these is in the error: particles are drawn again, each latent from its posterior.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

Cell = tuple[int, ...]
CELLS = 64
"""Of the grid along each axis."""
_REPLICATES = 50
# The grid spans the cloud but for this share on either side, and a margin.
_OUTLIERS, _MARGIN = 0.002, 0.1
# Cells with fewer particles under the kernel say nothing.
_LEAST_PARTICLES = 3.0
# A well is one where it is deeper than chance makes it.
_DEVIATIONS = 3.0
# Of a well that lies apart, whose depth is more than can be told.
_APART = 2.0


@dataclass(frozen=True, slots=True)
class Well:
    """A place more crowded than all around it.

    Attributes
    ----------
    place
        Its coordinates.
    energy, error
        Above the lowest well, kT, and the standard error of it.
    depth
        Below the lowest pass to a lower well, kT; of the lowest, below the rarest cell that was seen.
    """

    place: tuple[float, ...]
    energy: float
    error: float
    depth: float


@dataclass(frozen=True, slots=True)
class Landscape:
    """Energy over one axis, or two.

    Attributes
    ----------
    edges
        Of the cells, along each axis.
    energy, error
        ``(cells,)`` or ``(cells, cells)``, kT; not a number where too few particles are.
    wells
        The lowest first.
    bandwidth
        Of the smoothing, along each axis.
    """

    edges: tuple[Float[np.ndarray, " edges"], ...]
    energy: Float[np.ndarray, "*cells"]
    error: Float[np.ndarray, "*cells"]
    wells: tuple[Well, ...]
    bandwidth: tuple[float, ...]


def measure_landscape(
    coordinates: Float[np.ndarray, "particles axes"],
    deviation: Float[np.ndarray, "particles axes"] | None = None,
    width: Float[np.ndarray, " axes"] | None = None,
    seed: int = 0,
) -> Landscape:
    """Density of particles over one or two coordinates as an energy, with its uncertainty.

    Parameters
    ----------
    coordinates
        At least two particles that differ.
    deviation
        Width of the posterior of each coordinate, where it is known.
    width
        Standard deviation of a group of particles: crowds that lie far apart are not to be smeared into one. That of
        all particles when ``None``.
    seed
        Of the replicates.
    """
    edges = tuple(_cut(values) for values in coordinates.T)
    # Scott's rule.
    shrunk = len(coordinates) ** (-1 / (coordinates.shape[1] + 4))
    bandwidth = (coordinates.std(axis=0) if width is None else width) * shrunk
    in_cells = tuple(float(one / (cut[1] - cut[0])) for one, cut in zip(bandwidth, edges, strict=True))
    every: np.ndarray = np.ones(len(coordinates))
    density = _smooth(_count(coordinates, every, edges), in_cells)
    seen = density * np.prod([np.sqrt(4 * np.pi) * max(cells, 0.5) for cells in in_cells]) > _LEAST_PARTICLES
    lowest = np.unravel_index(density.argmax(), density.shape)

    def to_energy(each: np.ndarray) -> np.ndarray:
        energy: np.ndarray = -np.log(np.where(seen, each, np.nan).clip(min=1e-12) / max(float(each[lowest]), 1e-12))
        return energy

    generator, replicates = np.random.default_rng(seed), []
    for _ in range(_REPLICATES):
        drawn = coordinates
        if deviation is not None:
            drawn = coordinates + deviation * generator.standard_normal(coordinates.shape, dtype=np.float32)
        weight = generator.poisson(1.0, len(coordinates)).astype(np.float64)
        replicates.append(to_energy(_smooth(_count(drawn, weight, edges), in_cells)))
    energy, error = to_energy(density), np.std(replicates, axis=0)
    return Landscape(edges, energy, error, _find_wells(energy, error, edges), tuple(float(one) for one in bandwidth))


def _cut(values: np.ndarray) -> Float[np.ndarray, " edges"]:
    low, high = np.quantile(values, (_OUTLIERS, 1 - _OUTLIERS))
    margin = _MARGIN * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, CELLS + 1)


def _count(coordinates: np.ndarray, weight: np.ndarray, edges: tuple[np.ndarray, ...]) -> np.ndarray:
    """Particles in each cell; those beyond the grid are in none."""
    index, inside = np.zeros(len(coordinates), dtype=np.int64), np.ones(len(coordinates), dtype=bool)
    for values, cut in zip(coordinates.T, edges, strict=True):
        cell = np.floor((values - cut[0]) / (cut[1] - cut[0])).astype(np.int64)
        inside &= (cell >= 0) & (cell < CELLS)
        index = index * CELLS + cell
    counts = np.bincount(index[inside], weight[inside], minlength=CELLS ** len(edges))
    return np.asarray(counts.reshape((CELLS,) * len(edges)))


def _smooth(counts: np.ndarray, in_cells: tuple[float, ...]) -> np.ndarray:
    return np.asarray(gaussian_filter(counts, in_cells, mode="constant"))


def _find_wells(energy: np.ndarray, error: np.ndarray, edges: tuple[np.ndarray, ...]) -> tuple[Well, ...]:
    """Lowest cells, each as deep as water rises in it before it flows over into a lower one, and deeper than chance.

    Of one that lies apart all that is known is that its pass is no lower than where particles are too few to tell.
    """
    middles = [(cut[:-1] + cut[1:]) / 2 for cut in edges]
    top, found = float(np.nanmax(energy)), list[Well]()
    for cell, passed in _flood(energy).items():
        depth = (top if passed is None else float(energy[passed])) - float(energy[cell])
        chance = _APART * error[cell] if passed is None else _DEVIATIONS * np.hypot(error[cell], error[passed])
        # The first is the lowest of all.
        if not found or depth > float(chance):
            place = tuple(float(middle[at]) for middle, at in zip(middles, cell, strict=True))
            found.append(Well(place, float(energy[cell]), float(error[cell]), depth))
    return tuple(sorted(found, key=lambda well: well.energy))


def _flood(energy: np.ndarray) -> dict[Cell, Cell | None]:
    """Every minimum, and the pass at which its water meets that of a lower one; ``None`` where it never does."""
    order = np.argsort(energy, axis=None)[: np.count_nonzero(np.isfinite(energy))]
    cells = [tuple(cell) for cell in np.stack(np.unravel_index(order, energy.shape), axis=1).tolist()]
    # Cells touch at corners too.
    offsets = [offset for offset in itertools.product((-1, 0, 1), repeat=energy.ndim) if any(offset)]
    lake: dict[Cell, Cell] = {}
    passes: dict[Cell, Cell | None] = {}

    def bottom(cell: Cell) -> Cell:
        while lake[cell] != cell:
            cell = lake[cell]
        return cell

    for cell in cells:
        around = (tuple(map(sum, zip(cell, offset, strict=True))) for offset in offsets)
        beside = {bottom(each) for each in around if each in lake}
        lake[cell] = min(beside, key=lambda each: energy[each], default=cell)
        if not beside:
            passes[cell] = None
        for other in beside - {lake[cell]}:
            passes[other], lake[other] = cell, lake[cell]
    return passes
