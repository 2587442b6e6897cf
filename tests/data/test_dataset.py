import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from cryoformer_dist.data import dataset
from cryoformer_dist.data.batch import local_batches
from cryoformer_dist.data.dataset import ShardReadDatasource, ray_batches
from cryoformer_dist.data.order import Consumed, ConsumedRows, ParticleOrder
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.orchestration.cluster import running_ray

# Ray drops the handles of its processes while they still end; that they end is its business.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with running_ray(cpus=2):
        yield
    gc.collect()


def _order(store: ParticleStore, epochs: int = 1, consumed: Consumed = Consumed()) -> ParticleOrder:
    return ParticleOrder(np.arange(len(store)), store.shard_size, (5, 0), epochs, consumed)


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("rank", "world", "consumed"),
    [
        (0, 1, Consumed()),
        (1, 2, Consumed(0, (ConsumedRows(2, 12),))),
        (0, 2, Consumed(0, (ConsumedRows(1, 20), ConsumedRows(2, 6)))),
    ],
)
def test_ray_gives_exactly_the_batches_of_the_local_reader_in_their_order(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, rank: int, world: int, consumed: Consumed
) -> None:
    # Several executions must follow one another without a seam.
    monkeypatch.setattr(dataset, "_READS_PER_EXECUTION", 5)
    monkeypatch.setattr(dataset, "_TASK_BYTES", 2 * 16 * (16 * 16 * 2 + 16))
    store = ParticleStore.open(tiny_store)
    order = _order(store, epochs=2, consumed=consumed)
    expected = list(local_batches(store)(order, rank, world, 12))
    found = list(ray_batches(store)(order, rank, world, 12))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.row, other.row)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.pose.rotation, other.pose.rotation)
        assert torch.equal(one.ctf.defocus_u_angstrom, other.ctf.defocus_u_angstrom)
        assert one.epoch == other.epoch


@pytest.mark.usefixtures("_ray")
def test_workers_that_hold_every_cpu_do_not_starve_their_readers(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=2)
    class Worker:
        def there(self) -> bool:
            return True

    worker = Worker.remote()
    assert ray.get(worker.there.remote())
    assert ray.available_resources().get("CPU", 0) == 0
    monkeypatch.setattr(dataset, "_TASK_BYTES", 2 * 16 * (16 * 16 * 2 + 16))
    store = ParticleStore.open(tiny_store)
    assert sum(len(batch.row) for batch in ray_batches(store)(_order(store, epochs=3), 0, 1, 12)) == 3 * len(store)
    ray.kill(worker)


@pytest.mark.parametrize(("task_bytes", "tasks"), [(1, 4), (2 * 16 * (16 * 16 * 2 + 16), 2), (2**20, 1)])
def test_tasks_take_consecutive_reads_up_to_a_size_one_block_each(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, task_bytes: int, tasks: int
) -> None:
    monkeypatch.setattr(dataset, "_TASK_BYTES", task_bytes)
    store = ParticleStore.open(tiny_store)
    reads = list(_order(store).reads(0, 1))
    source = ShardReadDatasource(store, reads)
    made = source.get_read_tasks(parallelism=1)
    assert len(made) == source.task_count == tasks
    blocks = [block["row"].to_pylist() for task in made for block in task()]
    assert blocks == [read.rows.tolist() for read in reads]
    assert source.estimate_inmemory_data_size() == 64 * (16 * 16 * 2 + 16)
