"""The report's sections on flexible regions and on clusters of the latent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cryoformer_dist.figures import run_plots as figures
from cryoformer_dist.figures.surfaces import (
    VALUE_STOPS,
    View,
    cluster_colour,
    common_crop,
    common_level,
    draw_values,
)
from cryoformer_dist.io.mrc import read_volume

_STATES_SHOWN = 3
_QUERIES_LISTED = 5
_MOST_CLUSTERS = 12


def flexibility_section(
    run: Path, states: Float[np.ndarray, "states box box box"], view: View, size: int
) -> dict[str, Any] | None:
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
    record = run / "flexibility.json"
    if not record.is_file():
        return None
    summary: dict[str, Any] = json.loads(record.read_text())
    best = summary["best_query"]
    chosen = np.unique(np.linspace(0, len(states) - 1, _STATES_SHOWN).round().astype(int))
    level = common_level(states)
    surfaces = [(_read(run / "volumes" / "mean.mrc"), summary["mean_level"])]
    surfaces += [(states[index], level) for index in chosen]
    captions = ["mean map", *(f"cluster {index}" for index in chosen)]
    sources = (
        ("flexibility", "Flexibility", "standard deviation of the density", "volumes/flexibility.mrc"),
        ("best_attention", f"Attention to query {best}", "weight, mean over states", f"attention/query_{best:02d}.mrc"),
        ("attention_variation", "Change of attention", "standard deviation of all weights", "attention/variation.mrc"),
    )
    limits = [tuple(summary[f"{key}_range"]) for key, *_ in sources]
    fields = [(_read(run / file), ends) for (*_, file), ends in zip(sources, limits, strict=True)]
    drawn = [draw_values(voxels, at, view, fields, size) for voxels, at in surfaces]
    cropped = iter(common_crop([picture for pictures in drawn for picture in pictures]))
    drawn = [[next(cropped) for _ in pictures] for pictures in drawn]
    rows = [
        {
            "name": name,
            "unit": unit,
            "file": file,
            "low": limits[place][0],
            "high": limits[place][1],
            "images": [figures.png_data_uri(pictures[place]) for pictures in drawn],
        }
        for place, (_, name, unit, file) in enumerate(sources)
    ]
    return {
        "rows": rows,
        "captions": captions,
        "gradient": ", ".join(VALUE_STOPS),
        "text": _in_words(summary),
        "detectors": _detectors(summary),
        "truth": summary["truth"],
        "queries": summary["queries"][:_QUERIES_LISTED],
        "query_count": len(summary["queries"]),
    }


def _read(path: Path) -> np.ndarray:
    voxels: np.ndarray = read_volume(path).voxels.numpy()
    return voxels


def _in_words(summary: Mapping[str, Any]) -> str:
    """What was measured, and how far the attention says the same."""
    best = summary["queries"][0]
    return (
        f"The flexibility map is the standard deviation of the density over {summary['states']} particles drawn at "
        f"random; {summary['flexible_share']:.0%} of the molecule deviates by more than half of its strongest part. "
        f"The paper reads flexible regions off one attention channel: here the best of {len(summary['queries'])} "
        f"(query {best['query']}) follows the flexibility map with a correlation of {best['correlation']:.2f}, and the "
        f"change of all channels from state to state with {summary['attention_variation_correlation']:.2f}."
    )


def _detectors(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of the table against the truth."""
    truth = summary["truth"]
    if truth is None or truth["roc_auc"] is None:
        return []
    named = (
        ("roc_auc", "Flexibility map", "Standard deviation of our maps over states."),
        ("attention_variation_roc_auc", "Change of attention", "Over states, all channels together."),
        ("attention_roc_auc", f"Attention to query {summary['best_query']}", "Picked by our flexibility map."),
        ("weak_density_roc_auc", "Weak mean density", "What anyone would call flexible in a rigid map: the floor."),
    )
    return [{"name": name, "meaning": meaning, "value": f"{truth[key]:.3f}"} for key, name, meaning in named]


def cluster_section(
    latent: Mapping[str, np.ndarray], volumes: Float[np.ndarray, "clusters box box box"], view: View, size: int
) -> dict[str, Any] | None:
    """Latents coloured by cluster beside the maps of the centres in the same colours; None for one cluster."""
    if not latent or len(volumes) < 2:
        return None
    shown = np.unique(np.linspace(0, len(volumes) - 1, _MOST_CLUSTERS).round().astype(int))
    colours = [cluster_colour(int(number)) for number in shown]
    images = common_crop(figures.surface_pictures(volumes[shown], view, colours, size))
    label = latent["kmeans_label"]
    share = np.bincount(label, minlength=len(volumes)) / max(len(label), 1)
    captions = [f"{number} · {share[number]:.0%}" for number in shown]
    return {
        "scatter": figures.cluster_scatter(latent["pca"], latent["explained_variance"], latent["kmeans_pca"], label),
        "tiles": list(zip(map(figures.png_data_uri, images), captions, strict=True)),
    }
