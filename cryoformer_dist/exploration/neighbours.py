"""Which latents lie beside which, and how crowded each place is: the ground that paths are found on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

LANDMARKS = 20_000
"""At most so many particles, drawn at random, make up the ground."""
NEIGHBOURS = 15
"""Of each landmark. The density is known as well as so many can be counted: to a quarter of kT."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Landmarks among the latents.

    Attributes
    ----------
    latents
        ``(landmarks, latent)``.
    row
        ``(landmarks,)``: which particle each is.
    dimensions
        Of the cloud, as its neighbours are spaced: how their number grows with the distance (Levina & Bickel, 2005).
    neighbour, distance
        ``(landmarks, NEIGHBOURS)``: the nearest others, nearest first.
    energy
        ``(landmarks,)`` in kT: minus the logarithm of the density, 0 at the most crowded landmark.
    """

    latents: Float[np.ndarray, "landmarks latent"]
    row: Int[np.ndarray, " landmarks"]
    dimensions: float
    neighbour: Int[np.ndarray, "landmarks neighbours"]
    distance: Float[np.ndarray, "landmarks neighbours"]
    energy: Float[np.ndarray, " landmarks"]

    @property
    def reach(self) -> float:
        """How far the outermost neighbour of a typical landmark is."""
        return float(np.median(self.distance[:, -1]))

    @property
    def graph(self) -> csr_array:
        """Distances between neighbours, the same both ways; at least the smallest number, so that none is no edge."""
        count, near = self.neighbour.shape
        start = np.repeat(np.arange(count), near)
        length = self.distance.ravel().clip(min=np.finfo(np.float64).tiny)
        one_way = csr_array((length, (start, self.neighbour.ravel())), shape=(count, count))
        return one_way.maximum(one_way.T).tocsr()

    def energy_at(self, places: Float[np.ndarray, "places latent"]) -> Float[np.ndarray, " places"]:
        """As `energy`, at any latents."""
        near = self.neighbour.shape[1]
        outermost = np.asarray(cKDTree(self.latents).query(places, k=near + 1)[0])[:, near]
        energy: np.ndarray = self.dimensions * np.log(outermost / self.distance[:, -1].min())
        return energy


def find_ground(latents: Float[np.ndarray, "particles latent"], always: tuple[int, ...] = (), seed: int = 0) -> Ground:
    """Draw landmarks, some particles always among them, and find the neighbours of each.

    Raises
    ------
    ValueError
        If there are fewer than two particles, or they do not differ.
    """
    drawn = np.random.default_rng(seed).permutation(len(latents))[:LANDMARKS]
    row = np.unique(np.concatenate([drawn, np.array(always, dtype=np.int64)]))
    points = latents[row].astype(np.float64)
    # Latents that coincide would be infinitely crowded; a hair's breadth apart they are not.
    spread = points.std(axis=0)
    if len(points) < 2 or not spread.max() > 0:
        raise ValueError("all latents are the same: there is nothing between them")
    points += 1e-6 * spread.max() * np.random.default_rng(seed).standard_normal(points.shape)
    near = min(NEIGHBOURS, len(points) - 1)
    distance, neighbour = (np.asarray(each)[:, 1:] for each in cKDTree(points).query(points, k=near + 1))
    dimensions = _count_dimensions(distance)
    energy = dimensions * np.log(distance[:, -1] / distance[:, -1].min())
    return Ground(points, row, dimensions, neighbour.astype(np.int64), distance, energy)


def _count_dimensions(distance: Float[np.ndarray, "landmarks neighbours"]) -> float:
    """Dimension in which distances to neighbours grow as they do: one over the mean logarithm of their ratios."""
    if distance.shape[1] < 2:
        return 1.0
    growth = float(np.log(distance[:, -1:] / distance[:, :-1]).mean())
    return 1 / max(growth, 1e-6)
