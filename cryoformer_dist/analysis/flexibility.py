"""Where the molecule moves: the spread of the density over states, and the attention that goes with it.

The flexibility map is the standard deviation of the density over particles drawn at random. The 3D attention
maps are the decoder's weight of each query at each point (paper, section 5.4 and fig. 8), averaged over them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from scipy.stats import rankdata

from cryoformer_dist.analysis.latent import correlation
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.trained import DecodedState, TrainedRun
from cryoformer_dist.errors import StoreError
from cryoformer_dist.figures.surfaces import VALUE_STOPS, common_level
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import write_whole

STATES = 40
"""Particles drawn; the standard error of a standard deviation over that many is a ninth of it."""
ENCLOSED = 0.97
"""Share of the mean map's power inside the contour: a lower share loses parts that the motion has smeared."""
VARIANCE_SHARE = 0.1
"""A voxel moves in truth where its variance over the reference states exceeds this share of the greatest."""
DENSITY_SHARE = 0.1
"""A voxel is of the true molecule where any reference state exceeds this share of the greatest density."""
_ATTENTION_BYTES = 1 << 30


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
        ``(points,)``: place of each evaluated point in ``volume.ravel()``.
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
        return self._on_lattice(self.attention[:, query])

    def attention_variation_map(self) -> Float[np.ndarray, "box box box"]:
        """How far the attention moves with the state: standard deviation of the whole vector of weights."""
        return self._on_lattice(np.sqrt(np.square(self.attention_deviation).sum(axis=1)))

    def _on_lattice(self, values: np.ndarray) -> np.ndarray:
        full = np.zeros(self.mean.size, dtype=np.float32)
        full[self.flat_index] = values
        return full.reshape(self.mean.shape)

    @property
    def in_molecule(self) -> Bool[np.ndarray, " points"]:
        """Which evaluated points lie in the molecule."""
        inside: np.ndarray = self.molecule.ravel()[self.flat_index]
        return inside


class RunningMoments:
    """Mean and standard deviation of arrays that come one at a time (Welford, Technometrics 4, 1962)."""

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
    """Moments over states that come one at a time; never two of them are held.

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
    if not density.count:
        raise StoreError("no state to measure flexibility over: the run has no particle")
    full = np.zeros((3, box**3), dtype=np.float32)
    full[:, flat_index] = density.mean, density.deviation, highest
    mean, deviation, top = full.reshape(3, box, box, box)
    level = common_level(mean[None], ENCLOSED)
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


def rank_queries(flexibility: Flexibility) -> list[dict[str, Any]]:
    """Every query, the one whose attention follows the flexibility map best first.

    Correlations are over the evaluated points inside the molecule, where the paper's figure shows them: over
    all points any query that tells protein from solvent would correlate.
    """
    inside = flexibility.in_molecule
    spread = flexibility.deviation.ravel()[flexibility.flat_index][inside]
    rows = []
    for query in range(flexibility.attention.shape[1]):
        weight, change = flexibility.attention[inside, query], flexibility.attention_deviation[inside, query]
        rows.append(
            {
                "query": query,
                "correlation": round(correlation(weight, spread), 4),
                "variation_correlation": round(correlation(change, spread), 4),
                "mean_weight": round(float(weight.mean()), 6) if len(weight) else 0.0,
                "mean_variation": round(float(change.mean()), 6) if len(change) else 0.0,
            }
        )
    return sorted(rows, key=lambda row: -row["correlation"])


def roc_auc(score: Real[np.ndarray, " samples"], positive: Bool[np.ndarray, " samples"]) -> float | None:
    """Chance that a positive scores above a negative, ties half; None when one kind is missing."""
    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return None
    return float((rankdata(score)[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def flexibility_roc_auc(
    flexibility: Float[np.ndarray, "box box box"], truth_volumes: Float[np.ndarray, "states box box box"]
) -> float | None:
    """How well a map tells voxels that move in truth from those that stay: 1 perfect, .5 chance, 0 reversed.

    Asked of the voxels that belong to the molecule in any reference state (`DENSITY_SHARE`); with the empty
    box among them every map of the molecule would score high. Moving is what `VARIANCE_SHARE` says. None when
    the truth does not move.
    """
    molecule, moving = true_regions(truth_volumes)
    return roc_auc(flexibility[molecule], moving[molecule])


def true_regions(
    truth_volumes: Float[np.ndarray, "states box box box"],
) -> tuple[Bool[np.ndarray, "box box box"], Bool[np.ndarray, "box box box"]]:
    """Voxels of the molecule in any reference state, and voxels that move."""
    highest, variance = truth_volumes.max(axis=0), truth_volumes.var(axis=0, dtype=np.float64)
    molecule = highest > DENSITY_SHARE * float(highest.max())
    # Equal maps differ by rounding only; that is no motion.
    least = max(VARIANCE_SHARE * float(variance.max()), (1e-6 * float(highest.max())) ** 2)
    return molecule, variance > least


def flexible_regions(
    run: Path, trained: TrainedRun, truth_volumes: np.ndarray | None = None, labels: Sequence[str] = ()
) -> list[Path]:
    """Measure the flexibility of a trained run and write it; see `write_flexibility`."""
    seed = trained.config.training.seed
    states = trained.decode_states(sample_latents(trained.latents, seed=seed))
    lattice = trained.learner.objectives.lattice
    model = trained.learner.objectives.model
    flexibility = measure_flexibility(states, lattice.flat_index.numpy(), model.box)
    voxel_size = trained.manifest.pixel_size_angstrom
    return write_flexibility(run, flexibility, voxel_size, truth_volumes, labels)


def write_flexibility(
    run: Path,
    flexibility: Flexibility,
    voxel_size_angstrom: float,
    truth_volumes: Float[np.ndarray, "states large large large"] | None = None,
    labels: Sequence[str] = (),
) -> list[Path]:
    """Write maps, ``flexibility.json`` and ``flexibility.cxc`` into a run directory, replacing earlier ones.

    Maps are ``volumes/mean.mrc``, ``volumes/flexibility.mrc`` and ``attention/query_00.mrc`` ..., best query
    first as far as 1 GiB goes.

    Returns
    -------
    list[Path]
        The maps, then the script.
    """
    ranking = rank_queries(flexibility)
    folder = run / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    (run / "volumes").mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("query_*.mrc"):
        stale.unlink()
    written: list[Path] = []

    def write(path: Path, voxels: np.ndarray, what: str) -> None:
        write_volume(path, Volume(torch.from_numpy(np.ascontiguousarray(voxels)), voxel_size_angstrom), [*labels, what])
        written.append(path)

    write(run / "volumes" / "mean.mrc", flexibility.mean, f"mean of {flexibility.states} states")
    what = f"standard deviation over {flexibility.states} states"
    write(run / "volumes" / "flexibility.mrc", flexibility.deviation, what)
    what = f"standard deviation of the attention over {flexibility.states} states"
    write(folder / "variation.mrc", flexibility.attention_variation_map(), what)
    fit = max(_ATTENTION_BYTES // flexibility.mean.nbytes, 1)
    for place, row in enumerate(ranking):
        row["map"] = f"attention/query_{row['query']:02d}.mrc" if place < fit else None
        if row["map"]:
            write(run / row["map"], flexibility.attention_map(row["query"]), f"mean attention to query {row['query']}")
    summary = summarise(flexibility, ranking, truth_volumes)
    script = run / "flexibility.cxc"
    write_whole(script, chimerax_script(summary))
    write_whole(run / "flexibility.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return [*written, script]


def summarise(
    flexibility: Flexibility, ranking: Sequence[dict[str, Any]], truth_volumes: np.ndarray | None = None
) -> dict[str, Any]:
    """Contents of flexibility.json."""
    inside = flexibility.in_molecule
    spread = flexibility.deviation[flexibility.molecule]
    top = _percentile(spread, 98.0)
    best = int(ranking[0]["query"])
    change = flexibility.attention_variation_map()[flexibility.molecule]
    return {
        "measure": "standard deviation of the density over states of particles drawn at random",
        "states": flexibility.states,
        "mean_level": flexibility.level,
        "molecule": "evaluated points above mean_level in at least one state",
        "molecule_points": int(inside.sum()),
        "flexibility_range": [0.0, top],
        "flexible_share": round(float((spread > top / 2).mean()), 4) if top > 0 else 0.0,
        "best_query": best,
        "best_attention_range": [_percentile(flexibility.attention[inside, best], share) for share in (2.0, 98.0)],
        "attention_variation_correlation": round(correlation(change, spread), 4),
        "attention_variation_range": [0.0, _percentile(change, 98.0)],
        "queries": list(ranking),
        "truth": None if truth_volumes is None else _against_truth(flexibility, best, truth_volumes),
    }


def _percentile(values: np.ndarray, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else 0.0


def _against_truth(flexibility: Flexibility, best: int, truth_volumes: np.ndarray) -> dict[str, Any]:
    """Flexibility map, best attention map and weak mean density as detectors of what moves in truth."""
    truth = np.stack([fit_box(voxels, flexibility.mean.shape[-1]) for voxels in truth_volumes])
    molecule, moving = true_regions(truth)
    detectors = {
        "roc_auc": flexibility.deviation,
        "attention_roc_auc": flexibility.attention_map(best),
        "attention_variation_roc_auc": flexibility.attention_variation_map(),
        # What anyone can do without this program: call the weak parts of a rigid map flexible.
        "weak_density_roc_auc": -flexibility.mean,
    }
    scores = {name: flexibility_roc_auc(score, truth) for name, score in detectors.items()}
    return {
        "region": f"voxels where any reference state exceeds {DENSITY_SHARE:g} of the greatest density",
        "moving": f"variance over the reference states above {VARIANCE_SHARE:g} of the greatest",
        "region_voxels": int(molecule.sum()),
        "moving_share": round(float(moving[molecule].mean()), 4) if molecule.any() else 0.0,
        **{name: None if score is None else round(score, 4) for name, score in scores.items()},
    }


def chimerax_script(summary: dict[str, Any]) -> str:
    """Commands that colour the mean map by flexibility and say how to do it by attention.

    ChimeraX runs a script in the script's own folder, so the paths hold wherever the run directory goes.
    """
    best, attention = summary["best_query"], summary["best_attention_range"]
    return f"""\
# Flexible regions of this run. Open in an empty session: chimerax flexibility.cxc
open volumes/mean.mrc id 1
open volumes/flexibility.mrc id 2
volume #1 style surface step 1 level {summary["mean_level"]:.5g}
hide #2 models
color sample #1 map #2 palette {_palette(summary["flexibility_range"])} key true
lighting soft
view

# By the attention to query {best}, which follows the flexibility best:
#   open attention/query_{best:02d}.mrc id 3
#   hide #3 models
#   color sample #1 map #3 palette {_palette(attention)} key true

# One state instead of the mean, coloured by flexibility:
#   open volumes/kmeans_000.mrc id 4
#   hide #1 models
#   color sample #4 map #2 palette {_palette(summary["flexibility_range"])} key true
"""


def _palette(limits: Sequence[float]) -> str:
    low, high = limits
    # A map without any spread still needs a palette whose values rise.
    values = np.linspace(low, max(high, low + 1e-6), len(VALUE_STOPS))
    return ":".join(f"{value:.4g},{colour}" for value, colour in zip(values, VALUE_STOPS, strict=True))
