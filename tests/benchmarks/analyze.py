"""Seconds and memory of `analyze` and `path` for many latents: python tests/benchmarks/analyze.py --particles 1000000.

Latents are synthetic: three Gaussians and a bent bridge between two of them, in eight dimensions, with widths.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cryoformer_dist.analysis.reconstruct import SeriesPlan, choose_latents
from cryoformer_dist.data.selection import ParticleFile, RunState
from cryoformer_dist.exploration.analysis import analyze_latents
from cryoformer_dist.exploration.embedding import embed
from cryoformer_dist.exploration.pathfinding import find_path
from cryoformer_dist.selection.columns import ParticleColumns

DIMENSIONS = 8


def draw_latents(particles: int) -> np.ndarray:
    """Synthetic latents, the same every time."""
    rng = np.random.default_rng(0)
    centres = np.zeros((3, DIMENSIONS))
    centres[:, :2] = [-3, 0], [3, 0], [0, 4]
    place = centres[rng.choice(3, particles, p=[0.4, 0.3, 0.3])]
    bridge = rng.uniform(size=particles) < 0.2
    turn = rng.uniform(0, np.pi, int(bridge.sum()))
    place[bridge] = 0
    place[bridge, 0], place[bridge, 1] = 3 * np.cos(turn), -2 * np.sin(turn)
    return (place + 0.4 * rng.normal(size=place.shape)).astype(np.float32)


def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do it, and print what it took."""
    start, processor = time.perf_counter(), time.process_time()
    done = work(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, own = time.perf_counter() - start, time.process_time() - processor
    print(f"{name:36} {wall:8.1f} s  {own:8.1f} CPU s  peak {peak:5.2f} GiB", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--umap", action="store_true", help="needs umap-learn")
    options = parser.parse_args()
    latents = timed("(drawing the latents)", draw_latents, options.particles)
    rows = np.arange(len(latents))
    series = timed("PCA and k-means, by reconstruct", choose_latents, latents, rows, SeriesPlan())
    table = {**series.table, "latent_deviation": np.full_like(latents, 0.2)}
    run = RunState("synthetic", 0)
    columns = ParticleColumns(ParticleFile("none.star", ""), run, rows, rows, {}, table, None)  # type: ignore[arg-type]
    timed("mixture and landscape", analyze_latents, columns, 8, False)
    for kind in ("straight", "neighbours", "barrier"):
        timed(f"path, {kind}", find_path, columns, "cluster:0", "cluster:9", kind, 9)
    if options.umap:
        timed("UMAP", embed, latents)


if __name__ == "__main__":
    main()
