from pathlib import Path

import numpy as np
from matplotlib import image

from cryoformer_dist.figures.embeddings import draw_embedding
from cryoformer_dist.figures.surfaces import cluster_colour


def test_every_cluster_has_its_colour_and_all_are_counted(tmp_path: Path) -> None:
    cluster = np.arange(30_000) % 3
    spread = np.random.default_rng(0).normal(size=(30_000, 2))
    embedding = (spread + 12 * np.eye(3)[cluster][:, :2]).astype(np.float32)
    pixels = image.imread(draw_embedding(tmp_path / "umap.png", embedding, cluster))[..., :3]
    left, right = np.array_split(pixels, 2, axis=1)
    for number in range(3):
        shown = (np.abs(left - cluster_colour(number)).max(axis=-1) < 0.02).sum()
        assert shown > 500
        assert (np.abs(right - cluster_colour(number)).max(axis=-1) < 0.02).sum() < shown / 20
