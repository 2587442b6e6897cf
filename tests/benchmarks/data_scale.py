"""A store as large as EMPIAR-10180 (327,490 particles) read by two workers: memory, waiting, completeness.

Each worker is a Ray actor that reads what it owns, as in training: through Ray Data, or once to keep it (`--resident`).
It takes a while over each batch. Printed: images a second, the share of time spent waiting for data, memory of each
worker when it has what it needs beside images, and at its peak, and whether the two have seen every particle exactly
once an epoch. Run by hand.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from data_path import random_store

from cryoformer_dist.data.batch import BatchSource, resident_batches
from cryoformer_dist.data.order import ParticleOrder
from cryoformer_dist.data.ownership import Ownership
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.orchestration.environment import prepare_environment

EMPIAR_10180 = 327_490
WORLD, BATCH = 2, 64


def read_share(path: str, rank: int, seconds_a_batch: float, resident: bool) -> dict[str, Any]:
    """Two epochs of a rank."""
    store = ParticleStore.open(path)
    order = ParticleOrder(np.arange(len(store)), store.shard_size, (0,), 2)
    store.particles()
    before = _peak_mib()
    batches = _source(store, order, rank, resident)(order, rank, WORLD, BATCH)
    # Made at once: small pieces that stay would keep the allocator from using the place of images again.
    seen, read, waited, start = np.empty(order.rows_per_rank(WORLD), np.int64), 0, 0.0, time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        if read:
            # The first batch starts the readers.
            waited += time.perf_counter() - asked
        else:
            start = time.perf_counter()
        seen[read : read + len(batch)] = batch.row.numpy()
        read += len(batch)
        time.sleep(seconds_a_batch)
    elapsed = time.perf_counter() - start
    share = len(Ownership(order.rows, store.shard_size, WORLD).share(rank)) * store.box_size**2 * 2 / 2**20
    return {
        "rows": seen[: len(seen) // 2],
        "data_wait": waited / elapsed,
        "images_per_second": read / elapsed,
        "share_mib": share,
        "before_mib": before,
        "peak_mib": _peak_mib(),
        "peak_less_share_mib": _peak_mib() - share,
    }


def _source(store: ParticleStore, order: ParticleOrder, rank: int, resident: bool) -> BatchSource:
    from cryoformer_dist.data.dataset import ray_batches

    if resident:
        return resident_batches(store, Ownership(order.rows, store.shard_size, WORLD).share(rank))
    return ray_batches(store)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--particles", type=int, default=EMPIAR_10180)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--milliseconds", type=float, default=20, help="that a worker takes over a batch of 64")
    parser.add_argument("--resident", action="store_true", help="workers keep what they own")
    parser.add_argument("--store", type=Path, default=None, help="made when absent, and kept; else a temporary one")
    given = parser.parse_args()
    # Before Ray is imported.
    prepare_environment()
    import ray

    from cryoformer_dist.orchestration.cluster import running_ray

    with tempfile.TemporaryDirectory() as scratch:
        path = (given.store or Path(scratch) / "particles.zarr").resolve()
        if not path.is_dir():
            random_store(path, given.particles, given.box)
        with running_ray():
            actor = ray.remote(num_cpus=0.5)(read_share)
            pause = given.milliseconds / 1000
            shares = ray.get([actor.remote(str(path), rank, pause, given.resident) for rank in range(WORLD)])
    rows = [share.pop("rows") for share in shares]
    together = np.sort(np.concatenate(rows))
    store_mib = given.particles * given.box**2 * 2 / 2**20
    print(json.dumps({"store_mib": round(store_mib), "workers": shares}, indent=1, default=float))
    print("disjoint:", len(np.intersect1d(*rows)) == 0, " complete:", len(together) >= given.particles - WORLD + 1)


if __name__ == "__main__":
    main()
