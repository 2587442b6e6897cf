"""The latents unrolled onto a plane, as a picture: by cluster, and by how many particles lie where."""

from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoformer_dist.figures.style import PLAIN
from cryoformer_dist.figures.surfaces import cluster_colour

_SHOWN = 20_000
_SEED = 0
_MOST_CELLS, _FEWEST_CELLS = 70, 12


def draw_embedding(
    file: Path, embedding: Float[np.ndarray, "particles 2"], cluster: Int[np.ndarray, " particles"]
) -> Path:
    """Draw particles on the plane: some of them coloured by their cluster, and all of them counted.

    Parameters
    ----------
    file
        Picture.
    embedding
        Coordinates.
    cluster
        Number of each particle's cluster, as its map is numbered.
    """
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(10.5, 4.6), layout="constrained")
        by_cluster, counted = figure.subplots(1, 2, sharex=True, sharey=True)
        _draw_clusters(by_cluster, embedding, cluster)
        _draw_counts(counted, embedding)
        for axes in (by_cluster, counted):
            # Distances mean little here, coordinates nothing.
            axes.set(xticks=[], yticks=[], xlabel="UMAP 1", aspect="equal")
        by_cluster.set(ylabel="UMAP 2")
        figure.savefig(file, dpi=160)
    return file


def _draw_clusters(axes: Axes, embedding: np.ndarray, cluster: np.ndarray) -> None:
    drawn = np.random.default_rng(_SEED).permutation(len(embedding))[:_SHOWN]
    colours = np.array([cluster_colour(int(number)) for number in cluster[drawn]])
    size = float(np.clip(4000 / len(drawn), 1, 12))
    axes.scatter(embedding[drawn, 0], embedding[drawn, 1], s=size, c=colours, linewidths=0, rasterized=True)
    for number in np.unique(cluster):
        x, y = np.median(embedding[cluster == number], axis=0)
        axes.text(
            x,
            y,
            str(number),
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": cluster_colour(int(number))},
        )
    axes.set(title="Clusters, numbered as their maps")


def _draw_counts(axes: Axes, embedding: np.ndarray) -> None:
    # Of few particles many cells would hold one each.
    cells = int(np.clip(np.sqrt(len(embedding)) / 2, _FEWEST_CELLS, _MOST_CELLS))
    drawn = axes.hexbin(*embedding.T, gridsize=cells, bins="log", mincnt=1, cmap="viridis", linewidths=0)
    axes.set(title="Particles")
    axes.figure.colorbar(drawn, ax=axes, label="particles in a cell")
