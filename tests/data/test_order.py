import itertools

import numpy as np
import pytest

from cryoformer_dist.data.order import ConsumedRows, ParticleOrder

SIZES = [(1, 1), (5, 8), (16, 8), (37, 8), (64, 16), (100, 7), (129, 64)]
WORLDS = [1, 2, 3, 5]
CASES = [(n, shard, world) for n, shard in SIZES for world in WORLDS if n >= world]


def _order(
    n: int, shard: int, epochs: int = 3, seed: int = 0, consumed: tuple[ConsumedRows, ...] = ()
) -> ParticleOrder:
    return ParticleOrder(np.arange(n), shard, (seed, 0), epochs, consumed)


def _stream(order: ParticleOrder, rank: int, world: int) -> np.ndarray:
    """Rows of one rank with their epoch, `(rows, 2)`."""
    parts = [np.stack([read.rows, np.full(len(read.rows), read.epoch)], 1) for read in order.reads(rank, world)]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)


def _streams(order: ParticleOrder, world: int) -> list[np.ndarray]:
    return [_stream(order, rank, world) for rank in range(world)]


def _times_seen(streams: list[np.ndarray], n: int) -> np.ndarray:
    return np.bincount(np.concatenate(streams)[:, 0], minlength=n)


@pytest.mark.parametrize(("n", "shard", "world"), CASES)
def test_all_ranks_have_equally_many_rows_and_say_so_beforehand(n: int, shard: int, world: int) -> None:
    order = _order(n, shard)
    lengths = {len(stream) for stream in _streams(order, world)}
    assert lengths == {order.rows_per_rank(world)}
    assert lengths == {3 * n // world}


@pytest.mark.parametrize(("n", "shard", "world"), CASES)
def test_every_particle_comes_once_an_epoch_and_only_the_last_few_never(n: int, shard: int, world: int) -> None:
    epochs = 3
    streams = _streams(_order(n, shard, epochs), world)
    seen = _times_seen(streams, n)
    missing = epochs - seen
    assert missing.min() >= 0
    assert missing.sum() == epochs * n % world
    # After each epoch, too: what did not divide is what is still owed.
    for epoch in range(epochs):
        so_far = [stream[stream[:, 1] <= epoch] for stream in streams]
        owed = (epoch + 1) - _times_seen(so_far, n)
        assert owed.min() >= 0
        assert owed.sum() == (epoch + 1) * n % world


@pytest.mark.parametrize(("n", "shard", "world"), [case for case in CASES if case[0] % case[2] == 0])
def test_ranks_never_share_a_particle_in_an_epoch_that_divides(n: int, shard: int, world: int) -> None:
    streams = _streams(_order(n, shard), world)
    for epoch in range(3):
        rows = np.concatenate([stream[stream[:, 1] == epoch, 0] for stream in streams])
        assert sorted(rows) == list(range(n))


def test_rows_that_did_not_divide_come_first_in_the_next_epoch() -> None:
    streams = _streams(_order(10, 4, epochs=2), 3)
    first = np.concatenate([stream[stream[:, 1] == 0, 0] for stream in streams])
    (left,) = set(range(10)) - set(first)
    second = streams[0][streams[0][:, 1] == 1, 0]
    assert second[0] == left


@pytest.mark.parametrize(("n", "shard"), SIZES)
def test_a_piece_is_never_empty_and_never_leaves_its_shard(n: int, shard: int) -> None:
    for world, rank in [(1, 0), (2, 1), (3, 0)]:
        for read in _order(n, shard).reads(rank, world):
            assert len(read.rows)
            assert set(read.rows // shard) == {read.shard}


def test_only_the_given_rows_are_dealt() -> None:
    rows = np.array([1, 2, 9, 11, 30, 31, 32, 47])
    order = ParticleOrder(rows, 8, (0, 0), 1)
    assert sorted(_stream(order, 0, 1)[:, 0]) == rows.tolist()


def test_a_rank_reads_few_shards_and_its_rows_are_shuffled_within_and_across_them() -> None:
    order = _order(160, 16, epochs=1)
    for rank in range(2):
        shards = [read.shard for read in order.reads(rank, 2)]
        assert len(shards) == len(set(shards)) == 5
    rows = _stream(order, 0, 1)[:, 0]
    shards = rows[::16] // 16
    assert shards.tolist() != sorted(shards.tolist())
    assert all((np.diff(part) < 0).any() for part in np.split(rows, 10))


def test_the_seed_alone_decides_and_epochs_differ() -> None:
    one, same, other = (_stream(_order(64, 16, seed=seed), 0, 1) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one[:, 0] != other[:, 0]).any()
    epochs = [one[one[:, 1] == epoch, 0] for epoch in range(3)]
    for first, second in itertools.combinations(epochs, 2):
        assert (first != second).any()


def test_the_order_of_an_epoch_does_not_depend_on_how_many_epochs_there_are() -> None:
    short, long = _stream(_order(37, 8, epochs=1), 0, 2), _stream(_order(37, 8, epochs=4), 0, 2)
    np.testing.assert_array_equal(short, long[: len(short)])


@pytest.mark.parametrize(("n", "shard", "world"), [case for case in CASES if case[0] <= 37])
def test_resumed_at_the_same_world_the_rest_follows_exactly(n: int, shard: int, world: int) -> None:
    whole = _order(n, shard)
    streams = _streams(whole, world)
    for taken in range(len(streams[0]) + 1):
        resumed = _order(n, shard, consumed=whole.after(world, taken))
        assert resumed.rows_per_rank(world) == len(streams[0]) - taken
        for rank, stream in enumerate(streams):
            np.testing.assert_array_equal(_stream(resumed, rank, world), stream[taken:])


def test_two_interruptions_at_the_same_world_add_up() -> None:
    once = _order(37, 8).after(2, 9)
    again = _order(37, 8, consumed=once).after(2, 5)
    assert again == (ConsumedRows(2, 14),)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (3, 2), (2, 1, 3), (1, 3, 2, 5), (2, 3, 2)])
@pytest.mark.parametrize(("n", "shard"), [(16, 8), (37, 8), (100, 7)])
def test_resumed_at_other_worlds_nothing_is_lost_or_repeated(worlds: tuple[int, ...], n: int, shard: int) -> None:
    epochs = 3
    rng = np.random.default_rng([*worlds, n])
    for _ in range(8):
        consumed: tuple[ConsumedRows, ...] = ()
        seen = np.zeros(n, np.int64)
        for world in worlds[:-1]:
            order = _order(n, shard, epochs, consumed=consumed)
            taken = int(rng.integers(0, order.rows_per_rank(world) // 2 + 1))
            seen += _times_seen([stream[:taken] for stream in _streams(order, world)], n)
            consumed = order.after(world, taken)
        rest = _order(n, shard, epochs, consumed=consumed)
        streams = _streams(rest, worlds[-1])
        assert {len(stream) for stream in streams} == {rest.rows_per_rank(worlds[-1])}
        seen += _times_seen(streams, n)
        missing = epochs - seen
        assert missing.min() >= 0
        assert missing.sum() < worlds[-1]


def test_after_the_end_nothing_is_left_at_any_world() -> None:
    whole = _order(37, 8)
    done = _order(37, 8, consumed=whole.after(2, whole.rows_per_rank(2)))
    assert [done.rows_per_rank(world) for world in (1, 2, 3)] == [0, 0, 0]
