import itertools

import numpy as np
import pytest

from cryoformer_dist.data.order import Consumed, ConsumedRows, ParticleOrder
from cryoformer_dist.data.ownership import Ownership

SIZES = [(1, 1), (5, 8), (16, 8), (37, 8), (64, 16), (100, 7), (129, 64)]
WORLDS = [1, 2, 3, 5]
CASES = [(n, shard, world) for n, shard in SIZES for world in WORLDS if n >= world]


def _order(n: int, shard: int, epochs: int = 3, seed: int = 0, consumed: Consumed = Consumed()) -> ParticleOrder:
    return ParticleOrder(np.arange(n), shard, (seed, 0), epochs, consumed)


def _stream(order: ParticleOrder, rank: int, world: int) -> np.ndarray:
    """Rows of one rank with their epoch, `(rows, 2)`."""
    parts = [np.stack([read.rows, np.full(len(read.rows), read.epoch)], 1) for read in order.reads(rank, world)]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)


def _streams(order: ParticleOrder, world: int) -> list[np.ndarray]:
    return [_stream(order, rank, world) for rank in range(world)]


def _shares(n: int, shard: int, world: int) -> list[set[int]]:
    return [set(Ownership(np.arange(n), shard, world).share(rank)) for rank in range(world)]


@pytest.mark.parametrize(("n", "shard", "world"), CASES)
def test_all_ranks_have_equally_many_rows_and_say_so_beforehand(n: int, shard: int, world: int) -> None:
    order = _order(n, shard)
    lengths = {len(stream) for stream in _streams(order, world)}
    assert lengths == {order.rows_per_rank(world)}
    assert lengths == {3 * -(-n // world)}


@pytest.mark.parametrize(("n", "shard", "world"), CASES)
def test_in_every_epoch_a_rank_sees_each_row_it_owns_and_no_other(n: int, shard: int, world: int) -> None:
    streams = _streams(_order(n, shard), world)
    for stream, share in zip(streams, _shares(n, shard, world), strict=True):
        for epoch in range(3):
            rows = stream[stream[:, 1] == epoch, 0]
            assert set(rows) == share
            # Only the first comes again, and only where another rank owns one more.
            assert len(rows) - len(share) == (len(share) < -(-n // world))
            assert set(rows[len(share) :]) <= {rows[0]}


@pytest.mark.parametrize(("n", "shard", "world"), [case for case in CASES if case[0] % case[2] == 0])
def test_ranks_never_share_a_particle_in_an_epoch_that_divides(n: int, shard: int, world: int) -> None:
    streams = _streams(_order(n, shard), world)
    for epoch in range(3):
        rows = np.concatenate([stream[stream[:, 1] == epoch, 0] for stream in streams])
        assert sorted(rows) == list(range(n))


def test_one_rank_sees_shards_and_rows_within_them_as_they_are_drawn() -> None:
    # Written out: this order must not change, or runs of one worker would.
    found = _stream(_order(21, 8, epochs=2, seed=3), 0, 1)
    expected = []
    for epoch in range(2):
        for group in np.random.default_rng([3, 0, epoch]).permutation(3):
            rows = np.arange(21)[8 * group : 8 * group + 8]
            expected += np.random.default_rng([3, 0, epoch, group]).permutation(rows).tolist()
    assert found[:, 0].tolist() == expected


def test_many_ranks_see_their_rows_in_the_order_in_which_one_sees_them() -> None:
    one = _stream(_order(100, 7, epochs=1), 0, 1)[:, 0]
    for rank, share in enumerate(_shares(100, 7, 4)):
        own = [row for row in one if row in share]
        assert _stream(_order(100, 7, epochs=1), rank, 4)[:, 0].tolist() == own


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
    assert once == Consumed(0, (ConsumedRows(2, 9),))
    again = _order(37, 8, consumed=once).after(2, 5)
    assert again == Consumed(0, (ConsumedRows(2, 14),))
    assert _order(37, 8, consumed=again).after(2, 5) == Consumed(1)
    assert _order(37, 8, consumed=again).after(2, 5 + 19 + 3) == Consumed(2, (ConsumedRows(2, 3),))


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (3, 2), (2, 1, 3), (1, 3, 2, 5), (2, 3, 2)])
@pytest.mark.parametrize(("n", "shard"), [(16, 8), (37, 8), (100, 7)])
def test_resumed_at_other_worlds_no_particle_is_left_out_of_any_epoch(
    worlds: tuple[int, ...], n: int, shard: int
) -> None:
    epochs = 4
    rng = np.random.default_rng([*worlds, n])
    for _ in range(8):
        consumed = Consumed()
        seen = []
        for world in worlds[:-1]:
            order = _order(n, shard, epochs, consumed=consumed)
            taken = int(rng.integers(0, order.rows_per_rank(world) // 2 + 1))
            seen += [stream[:taken] for stream in _streams(order, world)]
            consumed = order.after(world, taken)
        rest = _order(n, shard, epochs, consumed=consumed)
        streams = _streams(rest, worlds[-1])
        assert {len(stream) for stream in streams} == {rest.rows_per_rank(worlds[-1])}
        together = np.concatenate([*seen, *streams])
        for epoch in range(epochs):
            assert set(together[together[:, 1] == epoch, 0]) == set(range(n))


def test_alone_after_two_ranks_the_rest_of_the_epoch_is_what_neither_has_seen() -> None:
    whole = _order(40, 8, epochs=1)
    first = [stream[:13, 0] for stream in _streams(whole, 2)]
    rest = _stream(_order(40, 8, epochs=1, consumed=whole.after(2, 13)), 0, 1)[:, 0]
    assert sorted(np.concatenate([*first, rest])) == list(range(40))


def test_dealt_anew_a_rank_sees_what_is_left_of_its_share_and_then_its_share_again() -> None:
    n, shard = 48, 8
    one = _order(n, shard, epochs=1)
    seen = set(_stream(one, 0, 1)[:20, 0])
    rest = _order(n, shard, epochs=1, consumed=one.after(1, 20))
    shares = _shares(n, shard, 3)
    most = max(len(share - seen) for share in shares)
    assert rest.rows_per_rank(3) == most
    for stream, share in zip(_streams(rest, 3), shares, strict=True):
        new = len(share - seen)
        assert set(stream[:new, 0]) == share - seen
        assert set(stream[new:, 0]) <= share
        assert len(stream) == most


def test_after_the_end_nothing_is_left_at_any_world() -> None:
    whole = _order(37, 8)
    assert whole.after(2, whole.rows_per_rank(2)) == Consumed(3)
    done = _order(37, 8, consumed=Consumed(3))
    assert [done.rows_per_rank(world) for world in (1, 2, 3)] == [0, 0, 0]
    assert [len(_stream(done, 0, world)) for world in (1, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_of_a_sample_each_rank_sees_its_own_once(world: int) -> None:
    owned, sample = np.arange(5, 105), np.arange(5, 38)
    order = ParticleOrder(sample, 8, (0, 0), 1, owned=owned, even=False)
    streams = _streams(order, world)
    for rank, stream in enumerate(streams):
        share = Ownership(owned, 8, world).share(rank)
        assert sorted(stream[:, 0]) == np.intersect1d(sample, share).tolist()
