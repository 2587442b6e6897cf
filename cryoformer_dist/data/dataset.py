"""The store as Ray Data: read tasks over the cluster feed each worker the particles that the order gives it.

``ray.data.read_zarr`` refuses zarr 3, and its blocks could not follow our order; hence a datasource of our own with one
block per read of a shard.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from cryoformer_dist.data.batch import (
    CPU,
    BatchMaker,
    BatchSource,
    ImageBlock,
    ParticleBatch,
    images_as_read,
    read_here,
    rebatch,
)
from cryoformer_dist.data.order import ParticleOrder, ShardRead
from cryoformer_dist.data.store import ParticleStore

# Training workers hold the CPUs, and Ray Data shares what is left among all ranks: readers that asked for any would
# starve beside many workers, and on wide machines start by the hundred. So they ask for none, and few read at a time.
_READERS_PER_WORKER = 2
# One Ray Data execution costs about a second to start: it spans epochs, but its task list must stay small.
_READS_PER_EXECUTION = 512
# A task may cost the start of a process, seconds of a small machine: it must have something to read.
_TASK_BYTES = 64 * 2**20


def _row_bytes(store: ParticleStore) -> int:
    return store.box_size**2 * 2 + 16


def _rows_per_task(store: ParticleStore) -> int:
    return max(1, _TASK_BYTES // _row_bytes(store))


class ShardReadDatasource(Datasource):
    """Reads shards in the order given, one block each.

    Parameters
    ----------
    store
        Particle store.
    reads
        What to read.
    """

    def __init__(self, store: ParticleStore, reads: Sequence[ShardRead]) -> None:
        super().__init__()
        self._path = str(store.path)
        self._reads = reads
        self._row_bytes, self._rows_per_task = _row_bytes(store), _rows_per_task(store)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks together."""
        return self._row_bytes * sum(len(shard.rows) for shard in self._reads)

    @property
    def task_count(self) -> int:
        """How many tasks read them."""
        return len(self._group_reads())

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Tasks of some 64 MiB; ``parallelism`` is Ray's wish, our order is the law."""
        return [self._make_task(group, per_task_row_limit) for group in self._group_reads()]

    def _group_reads(self) -> list[list[ShardRead]]:
        """Divide into consecutive reads of one task each."""
        groups: list[list[ShardRead]] = []
        free = 0
        for shard in self._reads:
            if len(shard.rows) > free:
                groups.append([])
                free = self._rows_per_task
            groups[-1].append(shard)
            free -= len(shard.rows)
        return groups

    def _make_task(self, group: Sequence[ShardRead], per_task_row_limit: int | None) -> ReadTask:
        # Plain values only: a task that captured this object would carry all reads.
        path, rows_and_epochs = self._path, [(shard.rows, shard.epoch) for shard in group]

        def read() -> Iterator[Any]:
            store = ParticleStore.open(path)
            for rows, epoch in rows_and_epochs:
                columns = {"images": store.read_images(rows), "row": rows, "epoch": np.full(len(rows), epoch)}
                yield BlockAccessor.batch_to_block(columns)

        count = sum(len(shard.rows) for shard in group)
        metadata = BlockMetadata(num_rows=count, size_bytes=count * self._row_bytes, input_files=None, exec_stats=None)
        return ReadTask(read, metadata, per_task_row_limit=per_task_row_limit)


def ray_batches(store: ParticleStore, device: torch.device = CPU) -> BatchSource:
    """Batches of this worker through Ray Data, read ahead by tasks anywhere in the cluster.

    Ray's first task takes seconds to start: what it would read of the first epoch is read here meanwhile.
    """
    maker = BatchMaker(store.particles(), device)

    def batches(order: ParticleOrder, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
        here = _take_first_epoch(islice(order.reads(rank, world), max(1, _rows_per_task(store) // store.shard_size)))
        there = _read_through_ray(store, islice(order.reads(rank, world), len(here), None))
        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(next, there, None)
            blocks = chain(read_here(store, here), _await_first(coming, there))
            yield from maker.batches(rebatch(blocks, size), images_as_read)

    return batches


def _take_first_epoch(reads: Iterator[ShardRead]) -> list[ShardRead]:
    return [shard for _, epoch in islice(groupby(reads, key=attrgetter("epoch")), 1) for shard in epoch]


def _await_first(first: Future[ImageBlock | None], blocks: Iterator[ImageBlock]) -> Iterator[ImageBlock]:
    """All blocks, of which the first is on its way."""
    block = first.result()
    if block is not None:
        yield block
        yield from blocks


def _read_through_ray(store: ParticleStore, reads: Iterator[ShardRead]) -> Iterator[ImageBlock]:
    context = ray.data.DataContext.get_current()
    # The order of particles is a function of the seed; without this, blocks come as they finish.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # A rank that is busy elsewhere (a long search of latents) reads nothing meanwhile; hangs are found by our reporter.
    context.execution_no_progress_timeout_s = -1
    while window := list(islice(reads, _READS_PER_EXECUTION)):
        source = ShardReadDatasource(store, window)
        tasks = source.task_count
        at_once = min(tasks, _READERS_PER_WORKER)
        dataset = ray.data.read_datasource(source, override_num_blocks=tasks, num_cpus=0, concurrency=at_once)
        for columns in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
            yield ImageBlock(columns["images"], columns["row"], columns["epoch"])
