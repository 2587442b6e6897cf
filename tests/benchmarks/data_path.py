"""From the store to batches: our local loader and Ray Data against a bare loop over the store. Wall time."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from gauges import interleaved
from speed_report import Table

_BATCH = 64


def data_table(store: Path | None, quick: bool, stand_ins: Sequence[str]) -> Table:
    """Images a second of every loader that this machine has."""
    table = Table("Data path")
    if "zarr" in stand_ins:
        table.notes.append("Skipped: zarr is not installed.")
        return table
    with ExitStack() as open_ended:
        if store is None:
            scratch = Path(open_ended.enter_context(tempfile.TemporaryDirectory()))
            store = random_store(scratch / "particles.zarr", particles=64 if quick else 8192, box=16 if quick else 64)
        with_ray = find_spec("ray") is not None and not quick
        if with_ray:
            from cryoformer_dist.orchestration.cluster import running_ray

            open_ended.enter_context(running_ray(cpus=2))
        else:
            table.notes.append("Ray Data: skipped with --quick." if quick else "Ray Data: skipped, not installed.")
        table.title, table.rows = _measured(store, with_ray, rounds=1 if quick else 3)
    table.notes.append("Wall time, files in the page cache. Ray Data's first second is the start of an execution.")
    return table


def _measured(path: Path, with_ray: bool, rounds: int) -> tuple[str, list[dict[str, object]]]:
    from cryoformer_dist.data.batch import local_batches
    from cryoformer_dist.data.order import ParticleOrder
    from cryoformer_dist.data.store import ParticleStore

    store = ParticleStore.open(path)
    epochs = 1 if len(store) < _BATCH * 10 else 4
    order = ParticleOrder(np.arange(len(store)), store.shard_size, (0,), epochs)
    images = len(store) * epochs

    def bare() -> Iterator[object]:
        for read in order.reads(0, 1):
            yield store.read_images(read.rows)

    loaders: dict[str, Callable[[], Iterator[object]]] = {
        "bare loop over the store": bare,
        "local loader": lambda: local_batches(store)(order, 0, 1, _BATCH),
    }
    if with_ray:
        from cryoformer_dist.data.dataset import ray_batches

        loaders["Ray Data"] = lambda: ray_batches(store)(order, 0, 1, _BATCH)
    samples = {name: lambda loader=loader: _wall_seconds(loader) for name, loader in loaders.items()}
    for sample in samples.values():
        sample()
    seconds = interleaved(samples, rounds)
    bare_seconds = seconds["bare loop over the store"]
    rows: list[dict[str, object]] = [
        {
            "loader": name,
            "images/s": images / spent,
            "MB/s": images * store.box_size**2 * 2 / spent / 1e6,
            "x bare loop": bare_seconds / spent,
        }
        for name, spent in seconds.items()
    ]
    return f"Data path: {images} images of {store.box_size} pixels", rows


def _wall_seconds(loader: Callable[[], Iterator[object]]) -> float:
    start = time.perf_counter()
    for _ in loader():
        pass
    return time.perf_counter() - start


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
