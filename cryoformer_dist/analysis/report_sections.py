"""The report's sections on flexible regions and on clusters of the latent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryoformer_dist.analysis.flexibility import QueryRank
from cryoformer_dist.analysis.flexibility_files import FlexibilitySummary, Range, TruthDetectors, read_flexibility
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.figures.pictures import draw_surfaces, encode_png, pick_evenly
from cryoformer_dist.figures.run_plots import draw_clusters
from cryoformer_dist.figures.surfaces import (
    VALUE_STOPS,
    View,
    cluster_colour,
    crop_alike,
    draw_values,
    find_common_level,
)
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.layout import ATTENTION_MAP, ATTENTION_VARIATION_MAP, FLEXIBILITY_MAP, MEAN_MAP

PICTURED_BOX = 128
"""No picture has more detail, and drawing a map takes as long as it has voxels."""
_STATES_SHOWN = 3
_QUERIES_LISTED = 5
_MOST_CLUSTERS = 12


@dataclass(frozen=True, slots=True)
class ValueRow:
    """Surfaces coloured by the values of a map.

    Attributes
    ----------
    name, unit, file
        Of the map.
    low, high
        Ends of the scale.
    images
        One per surface.
    """

    name: str
    unit: str
    file: str
    low: float
    high: float
    images: list[str]


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """How well a map finds what moves in truth."""

    name: str
    meaning: str
    value: str


@dataclass(frozen=True, slots=True)
class FlexibilitySection:
    """What the report shows of flexible regions.

    Attributes
    ----------
    rows, captions
        Pictures, and what each column shows.
    gradient
        Colours of the scales, as a style sheet writes them.
    text
        What was measured.
    detectors, truth
        Against the truth; empty and None where none is known or nothing moves.
    queries, query_count
        The best, and how many there are.
    """

    rows: list[ValueRow]
    captions: list[str]
    gradient: str
    text: str
    detectors: list[DetectorRow]
    truth: TruthDetectors | None
    queries: Sequence[QueryRank]
    query_count: int


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """What the report shows of clusters: the latents, and pictures of the centres with their captions."""

    scatter: str
    tiles: list[tuple[str, str]]


def show_flexibility(
    run: Path, states: Float[np.ndarray, "states box box box"], view: View, size: int
) -> FlexibilitySection | None:
    """Surfaces coloured by flexibility and by attention, and the numbers; None where none were written.

    Parameters
    ----------
    run
        Run directory.
    states
        Maps of single states; three are shown beside the mean map, as in the paper's fig. 8.
    view, size
        Of the pictures.
    """
    summary = read_flexibility(run)
    if summary is None:
        return None
    chosen = pick_evenly(len(states), _STATES_SHOWN)
    level = find_common_level(states)
    surfaces = [(_read_voxels(run / MEAN_MAP), summary.mean_level)]
    surfaces += [(states[index], level) for index in chosen]
    return FlexibilitySection(
        rows=_draw_rows(run, summary, surfaces, view, size),
        captions=["mean map", *(f"cluster {index}" for index in chosen)],
        gradient=", ".join(VALUE_STOPS),
        text=_describe(summary),
        detectors=_list_detectors(summary),
        truth=summary.truth,
        queries=summary.queries[:_QUERIES_LISTED],
        query_count=len(summary.queries),
    )


def _draw_rows(
    run: Path, summary: FlexibilitySummary, surfaces: Sequence[tuple[np.ndarray, float]], view: View, size: int
) -> list[ValueRow]:
    """Each surface coloured by each of three maps."""
    best = summary.best_query
    sources: tuple[tuple[str, str, str, Range], ...] = (
        ("Flexibility", "standard deviation of the density", FLEXIBILITY_MAP, summary.flexibility_range),
        (
            f"Attention to query {best}",
            "weight, mean over states",
            ATTENTION_MAP.format(query=best),
            summary.best_attention_range,
        ),
        (
            "Change of attention",
            "standard deviation of all weights",
            ATTENTION_VARIATION_MAP,
            summary.attention_variation_range,
        ),
    )
    fields = [(_read_voxels(run / file), limits) for _, _, file, limits in sources]
    drawn = [draw_values(voxels, level, view, fields, size) for voxels, level in surfaces]
    cropped = iter(crop_alike([picture for pictures in drawn for picture in pictures]))
    drawn = [[next(cropped) for _ in pictures] for pictures in drawn]
    return [
        ValueRow(name, unit, file, low, high, [encode_png(pictures[index]) for pictures in drawn])
        for index, (name, unit, file, (low, high)) in enumerate(sources)
    ]


def _read_voxels(path: Path) -> np.ndarray:
    voxels: np.ndarray = read_volume(path).voxels.numpy()
    return fit_box(voxels, min(len(voxels), PICTURED_BOX))


def _describe(summary: FlexibilitySummary) -> str:
    """What was measured, and how far the attention says the same."""
    best = summary.queries[0]
    return (
        f"The flexibility map is the standard deviation of the density over {summary.states} particles drawn at "
        f"random; {summary.flexible_share:.0%} of the molecule deviates by more than half of its strongest part. "
        f"The paper reads flexible regions off one attention channel: here the best of {len(summary.queries)} "
        f"(query {best.query}) follows the flexibility map with a correlation of {best.correlation:.2f}, and the "
        f"change of all channels from state to state with {summary.attention_variation_correlation:.2f}."
    )


def _list_detectors(summary: FlexibilitySummary) -> list[DetectorRow]:
    """Rows of the table against the truth."""
    truth = summary.truth
    if truth is None or truth.roc_auc is None:
        return []
    named = (
        (truth.roc_auc, "Flexibility map", "Standard deviation of our maps over states."),
        (truth.attention_variation_roc_auc, "Change of attention", "Over states, all channels together."),
        (truth.attention_roc_auc, f"Attention to query {summary.best_query}", "Picked by our flexibility map."),
        (truth.weak_density_roc_auc, "Weak mean density", "What anyone would call flexible in a rigid map: the floor."),
    )
    return [DetectorRow(name, meaning, f"{value:.3f}") for value, name, meaning in named]


def show_clusters(
    latent: Mapping[str, np.ndarray], volumes: Float[np.ndarray, "clusters box box box"], view: View, size: int
) -> ClusterSection | None:
    """Latents coloured by cluster beside the maps of the centres in the same colours; None for one cluster."""
    if not latent or len(volumes) < 2:
        return None
    shown = pick_evenly(len(volumes), _MOST_CLUSTERS)
    colours = [cluster_colour(int(number)) for number in shown]
    images = crop_alike(draw_surfaces(volumes[shown], view, colours, size))
    label = latent["kmeans_label"]
    share = np.bincount(label, minlength=len(volumes)) / max(len(label), 1)
    captions = [f"{number} · {share[number]:.0%}" for number in shown]
    return ClusterSection(
        scatter=draw_clusters(latent["pca"], latent["explained_variance"], latent["kmeans_pca"], label),
        tiles=list(zip(map(encode_png, images), captions, strict=True)),
    )
