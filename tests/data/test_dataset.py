import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.data import dataset
from cryoformer_dist.data.batch import local_batches
from cryoformer_dist.data.dataset import PieceDatasource, ray_batches
from cryoformer_dist.data.order import ParticleOrder, Phase
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.orchestration.cluster import running_ray

# Ray drops the handles of its processes while they still end; that they end is its business.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with running_ray(cpus=2):
        yield
    gc.collect()


def _order(store: ParticleStore, epochs: int = 1, consumed: tuple[Phase, ...] = ()) -> ParticleOrder:
    return ParticleOrder(np.arange(len(store)), store.shard_size, (5, 0), epochs, consumed)


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("rank", "world", "consumed"), [(0, 1, ()), (1, 2, (Phase(2, 12),)), (0, 2, (Phase(1, 20), Phase(2, 6)))]
)
def test_ray_gives_exactly_the_batches_of_the_local_reader_in_their_order(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, rank: int, world: int, consumed: tuple[Phase, ...]
) -> None:
    # Several executions must follow one another without a seam.
    monkeypatch.setattr(dataset, "_PIECES_PER_EXECUTION", 5)
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


def test_there_is_one_task_per_piece_whatever_ray_would_like(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    pieces = list(_order(store).pieces(0, 1))
    source = PieceDatasource(store, pieces)
    tasks = source.get_read_tasks(parallelism=1)
    assert len(tasks) == len(pieces) == 4
    for task, piece in zip(tasks, pieces, strict=True):
        (block,) = task()
        assert block["row"].to_pylist() == piece.rows.tolist()
    assert source.estimate_inmemory_data_size() == 64 * (16 * 16 * 2 + 16)
