"""Where the molecule moves: the spread of the density over states, and the attention that goes with it.

The flexibility map is the standard deviation of the density over particles drawn at random. The 3D attention
maps are the decoder's weight of each query at each point (paper, section 5.4 and fig. 8), averaged over them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from scipy.stats import rankdata

from cryoformer_dist.analysis.latent import correlation
from cryoformer_dist.analysis.trained import DecodedState
from cryoformer_dist.errors import StoreError
from cryoformer_dist.figures.surfaces import find_common_level
from cryoformer_dist.ranks import add_over_ranks, gather_objects, keep_greatest_over_ranks, rank_and_world

STATES = 40
"""Particles drawn; the standard error of a standard deviation over that many is a ninth of it."""
ENCLOSED = 0.97
"""Share of the mean map's power inside the contour: a lower share loses parts that the motion has smeared."""
VARIANCE_SHARE = 0.1
"""A voxel moves in truth where its variance over the reference states exceeds this share of the greatest."""
DENSITY_SHARE = 0.1
"""A voxel is of the true molecule where any reference state exceeds this share of the greatest density."""


@dataclass(frozen=True, slots=True)
class Flexibility:
    """Mean and spread over states of the density and of the attention.

    Attributes
    ----------
    mean, deviation
        ``(box, box, box)`` of the density.
    molecule
        ``(box, box, box)``: voxels above ``level`` in at least one state.
    level
        Contour of the mean map.
    flat_index
        ``(points,)``: index of each evaluated point in ``volume.ravel()``.
    attention, attention_deviation
        ``(points, queries)``; the weights of a point sum to 1.
    states
        How many states were seen.
    """

    mean: Float[np.ndarray, "box box box"]
    deviation: Float[np.ndarray, "box box box"]
    molecule: Bool[np.ndarray, "box box box"]
    level: float
    flat_index: Int[np.ndarray, " points"]
    attention: Float[np.ndarray, "points queries"]
    attention_deviation: Float[np.ndarray, "points queries"]
    states: int

    def attention_map(self, query: int) -> Float[np.ndarray, "box box box"]:
        """Mean attention to a query on the lattice of the maps, 0 where no density was evaluated."""
        return self._place_on_lattice(self.attention[:, query])

    def attention_variation_map(self) -> Float[np.ndarray, "box box box"]:
        """How far the attention moves with the state: standard deviation of the whole vector of weights."""
        return self._place_on_lattice(np.sqrt(np.square(self.attention_deviation).sum(axis=1)))

    def _place_on_lattice(self, values: np.ndarray) -> np.ndarray:
        full = np.zeros(self.mean.size, dtype=np.float32)
        full[self.flat_index] = values
        return full.reshape(self.mean.shape)

    @property
    def in_molecule(self) -> Bool[np.ndarray, " points"]:
        """Which evaluated points lie in the molecule."""
        inside: np.ndarray = self.molecule.ravel()[self.flat_index]
        return inside


@dataclass(frozen=True, slots=True)
class QueryRank:
    """How far the attention to a query says where the molecule bends.

    Attributes
    ----------
    query
        Number.
    correlation
        Of the mean attention with the flexibility map, over the points of the molecule.
    variation_correlation
        The same of the attention's standard deviation over states.
    mean_weight, mean_variation
        Means over the molecule.
    map
        File of the mean attention in the run directory; None where none was written.
    """

    query: int
    correlation: float
    variation_correlation: float
    mean_weight: float
    mean_variation: float
    map: str | None = None


class RunningMoments:
    """Mean and standard deviation of arrays that come one at a time (Welford, Technometrics 4, 1962).

    Attributes
    ----------
    count
        Arrays so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = np.zeros(0, dtype=np.float32)

    def add(self, values: Float[np.ndarray, "*shape"]) -> None:
        """Take one more array; all must be of one shape."""
        if not self.count:
            self._mean, self._squares = np.zeros_like(values), np.zeros_like(values)
        self.count += 1
        before = values - self._mean
        self._mean += before / self.count
        before *= values - self._mean
        self._squares += before

    def join_ranks(self) -> None:
        """Take in what the others have seen (Chan, Golub, LeVeque, Am. Stat. 37, 1983); a rank may have seen none."""
        if rank_and_world()[1] == 1:
            return
        seen = gather_objects((self.count, self._mean.shape))
        total, shape = sum(count for count, _ in seen), max(seen, key=lambda each: each[0])[1]
        if not self.count:
            self._mean, self._squares = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        mean = self._mean * np.float32(self.count / max(total, 1))
        add_over_ranks(torch.from_numpy(mean))
        self._squares += self.count * np.square(self._mean - mean)
        add_over_ranks(torch.from_numpy(self._squares))
        self.count, self._mean = total, mean

    @property
    def mean(self) -> Float[np.ndarray, "*shape"]:
        """Mean of the arrays so far."""
        return self._mean

    @property
    def deviation(self) -> Float[np.ndarray, "*shape"]:
        """Standard deviation of the arrays so far, over all of them."""
        spread: np.ndarray = np.sqrt(self._squares / max(self.count, 1))
        return spread


def sample_latents(
    latents: Float[np.ndarray, "particles latent"], count: int = STATES, seed: int = 0
) -> Float[np.ndarray, "states latent"]:
    """Latents of particles drawn without replacement, so that a common state counts for more than a rare one."""
    rows = np.random.default_rng(seed).permutation(len(latents))[:count]
    return latents[np.sort(rows)]


def measure_flexibility(
    states: Iterable[DecodedState], flat_index: Int[np.ndarray, " points"], box: int
) -> Flexibility:
    """Moments over the states of all ranks, which come to each one at a time; never two of them are held.

    Raises
    ------
    StoreError
        If there is no state.
    """
    density, attention = RunningMoments(), RunningMoments()
    highest = np.full(len(flat_index), -np.inf, dtype=np.float32)
    for state in states:
        density.add(state.density)
        attention.add(state.attention)
        np.maximum(highest, state.density, out=highest)
    density.join_ranks()
    attention.join_ranks()
    keep_greatest_over_ranks(torch.from_numpy(highest))
    if not density.count:
        raise StoreError("no state to measure flexibility over: the run has no particle")
    full = np.zeros((3, box**3), dtype=np.float32)
    full[:, flat_index] = density.mean, density.deviation, highest
    mean, deviation, top = full.reshape(3, box, box, box)
    level = find_common_level(mean[None], ENCLOSED)
    return Flexibility(
        mean=mean,
        deviation=deviation,
        molecule=top > level,
        level=level,
        flat_index=flat_index,
        attention=attention.mean,
        attention_deviation=attention.deviation,
        states=density.count,
    )


def rank_queries(flexibility: Flexibility) -> list[QueryRank]:
    """Every query, the one whose attention follows the flexibility map best first.

    Correlations are over the evaluated points inside the molecule, where the paper's figure shows them: over
    all points any query that tells protein from solvent would correlate.
    """
    inside = flexibility.in_molecule
    spread = flexibility.deviation.ravel()[flexibility.flat_index][inside]
    ranks = []
    for query in range(flexibility.attention.shape[1]):
        weight, change = flexibility.attention[inside, query], flexibility.attention_deviation[inside, query]
        ranks.append(
            QueryRank(
                query=query,
                correlation=round(correlation(weight, spread), 4),
                variation_correlation=round(correlation(change, spread), 4),
                mean_weight=round(float(weight.mean()), 6) if len(weight) else 0.0,
                mean_variation=round(float(change.mean()), 6) if len(change) else 0.0,
            )
        )
    return sorted(ranks, key=lambda rank: -rank.correlation)


def roc_auc(score: Real[np.ndarray, " samples"], positive: Bool[np.ndarray, " samples"]) -> float | None:
    """Chance that a positive scores above a negative, ties half; None when one kind is missing."""
    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return None
    return float((rankdata(score)[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def score_flexibility(
    flexibility: Float[np.ndarray, "box box box"], truth_volumes: Float[np.ndarray, "states box box box"]
) -> float | None:
    """How well a map tells voxels that move in truth from those that stay: 1 perfect, .5 chance, 0 reversed.

    Asked of the voxels that belong to the molecule in any reference state (`DENSITY_SHARE`); with the empty
    box among them every map of the molecule would score high. Moving is what `VARIANCE_SHARE` says. None when
    the truth does not move.
    """
    molecule, moving = find_true_regions(truth_volumes)
    return roc_auc(flexibility[molecule], moving[molecule])


def find_true_regions(
    truth_volumes: Float[np.ndarray, "states box box box"],
) -> tuple[Bool[np.ndarray, "box box box"], Bool[np.ndarray, "box box box"]]:
    """Voxels of the molecule in any reference state, and voxels that move."""
    highest, variance = truth_volumes.max(axis=0), truth_volumes.var(axis=0, dtype=np.float64)
    molecule = highest > DENSITY_SHARE * float(highest.max())
    # Equal maps differ by rounding only; that is no motion.
    least = max(VARIANCE_SHARE * float(variance.max()), (1e-6 * float(highest.max())) ** 2)
    return molecule, variance > least
