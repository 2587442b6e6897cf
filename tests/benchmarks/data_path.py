"""From the store to batches: our loaders and Ray Data against a bare loop over the store. Wall time, and what of it
the training step's own thread computes."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from speed_report import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_BATCH = 64
# Pixels and particles: 268 MB each, of which Ray Data's worker reads the first 64 by itself.
_SETS = {64: 32_768, 128: 8192, 256: 2048}
_BARE = "bare loop over the store"


def data_table(store: Path | None, quick: bool, stand_ins: Sequence[str]) -> Table:
    """Images a second of every loader that this machine has."""
    table = Table("Data path")
    if "zarr" in stand_ins:
        table.notes.append("Skipped: zarr is not installed.")
        return table
    sets = {16: 64} if quick else _SETS
    with ExitStack() as open_ended:
        scratch = Path(open_ended.enter_context(tempfile.TemporaryDirectory()))
        stores = [store] if store else [random_store(scratch / f"{box}.zarr", sets[box], box) for box in sets]
        with_ray = find_spec("ray") is not None and not quick
        if with_ray:
            from cryoformer_dist.orchestration.cluster import running_ray

            open_ended.enter_context(running_ray(cpus=2))
        else:
            table.notes.append("Ray Data: skipped with --quick." if quick else "Ray Data: skipped, not installed.")
        for path in stores:
            table.rows += _measured(path, with_ray, rounds=1 if quick else 3)
    table.notes.append(
        "Wall time, files in the page cache; own thread: CPU of the thread that asks for batches. Ray Data's first "
        "second is the start of an execution; what stays is read before the clock starts."
    )
    return table


def _measured(path: Path, with_ray: bool, rounds: int) -> list[dict[str, object]]:
    from cryoformer_dist.data.batch import local_batches, resident_batches
    from cryoformer_dist.data.order import ParticleOrder
    from cryoformer_dist.data.store import ParticleStore

    store = ParticleStore.open(path)
    epochs = 1 if len(store) < _BATCH * 2 else 3
    order = ParticleOrder(np.arange(len(store)), store.shard_size, (0,), epochs)
    images = len(store) * epochs

    def bare() -> Iterator[object]:
        for read in order.reads(0, 1):
            yield store.read_images(read.rows)

    sources = {"local": local_batches(store), "resident": resident_batches(store, order.rows)}
    if with_ray:
        from cryoformer_dist.data.dataset import ray_batches

        sources["Ray Data"] = ray_batches(store)
    loaders: dict[str, Callable[[], Iterator[object]]] = {_BARE: bare} | {
        name: lambda source=source: source(order, 0, 1, _BATCH) for name, source in sources.items()
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name, loader in loaders.items():
            seconds = _seconds(loader)
            # The first turn fills caches.
            if turn:
                found[name].append(seconds)
    wall, own = ({name: median(pair[kind] for pair in found[name]) for name in found} for kind in (0, 1))
    return [
        {
            "pixels": store.box_size,
            "images": images,
            "loader": name,
            "images/s": images / wall[name],
            "x bare loop": wall[_BARE] / wall[name],
            "x Ray Data": wall["Ray Data"] / wall[name] if with_ray else None,
            "own thread, ms/image": 1e3 * own[name] / images,
        }
        for name in loaders
    ]


def _seconds(loader: Callable[[], Iterator[object]]) -> tuple[float, float]:
    """On the wall's clock, and of this thread's."""
    wall, own = time.perf_counter(), time.thread_time()
    for _ in loader():
        pass
    return time.perf_counter() - wall, time.thread_time() - own


def random_store(path: Path, particles: int, box: int) -> Path:
    """A finished store of noise."""
    from support.store_attributes import store_attributes

    from cryoformer_dist.data.store import complete_store, create_store, write_shard
    from cryoformer_dist.data.stored_particles import COLUMNS, StoreLayout

    layout = StoreLayout(particles, box)
    create_store(path, layout)
    generator = np.random.default_rng(0)
    for shard in range(layout.shards):
        start, stop = layout.shard_range(shard)
        images = generator.standard_normal((stop - start, box, box), dtype=np.float32)
        write_shard(path, shard, images.astype(np.float16))
    columns = {name: np.zeros((particles, *shape), dtype) for name, (dtype, shape) in COLUMNS.items()}
    complete_store(path, store_attributes(box), columns)
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=None, help="else noise of 64, 128 and 256 pixels")
    print(data_table(parser.parse_args().store, quick=False, stand_ins=()).markdown())


if __name__ == "__main__":
    # Before Ray is imported.
    from cryoformer_dist.orchestration.environment import prepare_environment

    prepare_environment()
    main()
