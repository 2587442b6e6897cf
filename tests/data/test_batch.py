import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.data.batch import (
    ImageBlock,
    ParticleBatch,
    local_batches,
    make_batch,
    rebatch,
    resident_batches,
)
from cryoformer_dist.data.order import Consumed, ConsumedRows, ParticleOrder
from cryoformer_dist.data.ownership import Ownership
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.ctf import CTF_NUMBERS, NoiseFilter


def _order(store: ParticleStore, epochs: int = 1, consumed: Consumed = Consumed()) -> ParticleOrder:
    return ParticleOrder(np.arange(len(store)), store.shard_size, (0, 0), epochs, consumed)


def _rows_of(order: ParticleOrder, rank: int, world: int) -> list[int]:
    return [int(row) for read in order.reads(rank, world) for row in read.rows]


def test_batches_follow_the_order_across_shards_and_the_last_is_smaller(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    order = _order(store)
    for rank, world in [(0, 1), (0, 3), (2, 3)]:
        batches = list(local_batches(store)(order, rank, world, 12))
        rows = _rows_of(order, rank, world)
        assert [len(batch) for batch in batches] == [12] * (len(rows) // 12) + [len(rows) % 12]
        assert torch.cat([batch.row for batch in batches]).tolist() == rows


def test_every_image_travels_with_the_metadata_of_its_own_row(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    particles = store.particles()
    images = store.read_images(np.arange(len(store))).astype(np.float32)
    assert len(np.unique(particles.defocus_u_angstrom)) == len(store)
    for batch in local_batches(store)(_order(store), 0, 1, 10):
        rows = batch.row.numpy()
        np.testing.assert_array_equal(batch.images.numpy(), images[rows])
        np.testing.assert_array_equal(batch.pose.rotation.numpy(), particles.rotation[rows])
        np.testing.assert_array_equal(batch.pose.shift_angstrom.numpy(), particles.shift_angstrom[rows])
        np.testing.assert_array_equal(batch.pixel_size_angstrom.numpy(), particles.pixel_size_angstrom[rows])
        for name in CTF_NUMBERS:
            np.testing.assert_array_equal(getattr(batch.ctf, name).numpy(), getattr(particles, name)[rows])


def test_a_batch_goes_on_into_the_next_epoch_and_belongs_to_that(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    batches = list(local_batches(store)(_order(store, epochs=2), 0, 1, 48))
    assert [(len(batch), batch.epoch) for batch in batches] == [(48, 0), (48, 1), (32, 1)]


def test_what_was_consumed_does_not_come_again(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    whole = list(local_batches(store)(_order(store), 0, 1, 8))
    rest = list(local_batches(store)(_order(store, consumed=Consumed(0, (ConsumedRows(1, 24),))), 0, 1, 8))
    assert len(rest) == len(whole) - 3
    for one, other in zip(rest, whole[3:], strict=True):
        assert torch.equal(one.row, other.row)
        assert torch.equal(one.images, other.images)


def test_nothing_left_means_no_batch(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    assert list(local_batches(store)(_order(store, consumed=Consumed(1)), 0, 1, 8)) == []


def test_stopping_early_leaves_no_reader_behind(tiny_store: Path) -> None:
    import threading

    store = ParticleStore.open(tiny_store)
    before = threading.active_count()
    batches = local_batches(store)(_order(store, epochs=50), 0, 1, 4)
    next(batches)
    # One reads, one makes batches.
    assert threading.active_count() == before + 2
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_rebatching_keeps_the_stream_for_any_sizes_of_blocks() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 7, 50):
        lengths = rng.integers(0, 9, 12)
        rows = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
        blocks = [
            ImageBlock(np.tile(part[:, None, None], (1, 2, 2)).astype(np.float16), part, part // 10) for part in rows
        ]
        cut = list(rebatch(blocks, size))
        assert {len(block.row) for block in cut[:-1]} <= {size}
        assert 0 < len(cut[-1].row) <= size
        for name in ("images", "row", "epoch"):
            joined = np.concatenate([getattr(block, name) for block in cut])
            np.testing.assert_array_equal(joined, np.concatenate([getattr(block, name) for block in blocks]))


def test_moving_a_batch_moves_all_of_it(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    rows = np.arange(5)
    batch = make_batch(ImageBlock(store.read_images(rows), rows, np.zeros(5, np.int64)), store.particles())
    moved = batch.to(torch.device("meta"))
    tensors = [moved.images, moved.row, moved.pixel_size_angstrom, moved.pose.rotation, moved.pose.shift_angstrom]
    tensors += [getattr(moved.ctf, name) for name in CTF_NUMBERS]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (len(moved), moved.epoch) == (5, 0)


def test_a_batch_without_a_row_shows_another_in_its_place_with_its_own_noise(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    rows = np.arange(4)
    batch = make_batch(ImageBlock(store.read_images(rows), rows, np.zeros(4, np.int64)), store.particles())
    curves = NoiseFilter(torch.tensor([0, 0, 1, 1]), torch.rand(2, 9), torch.tensor([230.0, 200.0]))
    weight, amplitude = torch.tensor([1.0, 0.5, 0.5, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    batch = replace(batch, ctf=replace(batch.ctf, noise_filter=curves), weight=weight, amplitude=amplitude)
    left = batch.without(torch.tensor([0, 2]))
    assert left.row.tolist() == [1, 1, 1, 3]
    assert left.weight is not None
    assert left.weight.tolist() == [0, 0.5, 0, 1]
    assert left.amplitude is not None
    assert left.amplitude.tolist() == [2, 2, 2, 4]
    assert left.ctf.noise_filter is not None
    assert left.ctf.noise_filter.group.tolist() == [0, 0, 0, 1]
    assert torch.equal(left.ctf.noise_filter.gain, curves.gain)


def _assert_same(one: ParticleBatch, other: ParticleBatch) -> None:
    assert one.epoch == other.epoch
    for name in ("images", "row", "pixel_size_angstrom"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.pose.rotation, other.pose.rotation)
    assert torch.equal(one.pose.shift_angstrom, other.pose.shift_angstrom)
    for name in CTF_NUMBERS:
        assert torch.equal(getattr(one.ctf, name), getattr(other.ctf, name)), name


@pytest.mark.parametrize(
    ("rank", "world", "consumed"), [(0, 1, Consumed()), (1, 2, Consumed(0, (ConsumedRows(2, 6),)))]
)
def test_resident_images_give_exactly_the_batches_of_the_local_reader(
    tiny_store: Path, rank: int, world: int, consumed: Consumed
) -> None:
    store = ParticleStore.open(tiny_store)
    # One half-set: rows with gaps.
    rows = np.flatnonzero(np.arange(len(store)) % 3 != 1)
    order = ParticleOrder(rows, store.shard_size, (0, 0), 2, consumed)
    resident = resident_batches(store, rows, torch.device("cpu"))
    found, expected = (list(source(order, rank, world, 12)) for source in (resident, local_batches(store)))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        _assert_same(one, other)


@pytest.mark.gpu
def test_batches_copied_ahead_to_a_gpu_are_the_same_in_the_same_order(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    rows, gpu = np.arange(len(store)), torch.device("cuda")
    expected = list(local_batches(store)(_order(store), 0, 1, 12))
    pinned = resident_batches(store, rows, gpu, home=torch.device("cpu"))
    for source in (local_batches(store, gpu), resident_batches(store, rows, gpu), pinned):
        moved = list(source(_order(store), 0, 1, 12))
        assert all(batch.images.is_cuda and batch.ctf.voltage_kv.is_cuda for batch in moved)
        for one, other in zip(moved, expected, strict=True):
            _assert_same(one.to(torch.device("cpu")), other)


def test_a_rank_keeps_the_images_of_its_share_and_gives_a_sign_of_life_at_each_piece(tiny_store: Path) -> None:
    store, alive = ParticleStore.open(tiny_store), []
    order = _order(store, epochs=2)
    for rank in range(3):
        share = Ownership(np.arange(len(store)), store.shard_size, 3).share(rank)
        resident = resident_batches(store, share, alive=lambda: alive.append(1))
        expected = list(local_batches(store)(order, rank, 3, 5))
        for one, other in zip(resident(order, rank, 3, 5), expected, strict=True):
            _assert_same(one, other)
    assert len(alive) == sum(-(-len(Ownership(np.arange(64), 16, 3).share(rank)) // 16) for rank in range(3))


def test_a_batch_does_not_change_what_stays(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    resident = resident_batches(store, np.arange(len(store)))
    for batch in resident(_order(store), 0, 1, 12):
        batch.images.zero_()
        batch.pose.rotation.zero_()
    for one, other in zip(
        resident(_order(store), 0, 1, 12), local_batches(store)(_order(store), 0, 1, 12), strict=True
    ):
        _assert_same(one, other)


def test_batches_are_those_that_images_and_metadata_make_together(tiny_store: Path) -> None:
    store = ParticleStore.open(tiny_store)
    for batch in local_batches(store)(_order(store), 0, 1, 12):
        rows = batch.row.numpy()
        _assert_same(batch, make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles()))


def test_the_next_piece_is_read_while_a_batch_is_worked_on(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParticleStore.open(tiny_store)
    second_read, read, asked = threading.Event(), store.read_images, []

    def noted(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        if len(asked) == 2:
            second_read.set()
        return read(rows)

    monkeypatch.setattr(store, "read_images", noted)
    batches = local_batches(store)(_order(store), 0, 1, 8)
    next(batches)
    assert second_read.wait(timeout=60)
    batches.close()
