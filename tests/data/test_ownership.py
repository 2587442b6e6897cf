import itertools

import numpy as np
import pytest

from cryoformer_dist.data.ownership import Ownership

CASES = list(itertools.product([1, 5, 16, 37, 64, 100, 129, 1000], [1, 7, 8, 64], [1, 2, 3, 5]))


@pytest.mark.parametrize(("n", "shard", "world"), CASES)
def test_every_row_has_one_owner_and_no_rank_owns_more_than_one_row_more_than_another(
    n: int, shard: int, world: int
) -> None:
    # Rows with gaps, as those of one half-set.
    rows = np.sort(np.random.default_rng(n).permutation(3 * n)[:n])
    ownership = Ownership(rows, shard, world)
    shares = [ownership.share(rank) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == rows.tolist()
    assert all((np.diff(share) > 0).all() for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == ownership.largest_share


def test_one_rank_owns_everything() -> None:
    rows = np.array([1, 4, 9])
    assert Ownership(rows, 2, 1).share(0).tolist() == [1, 4, 9]


def test_whole_shards_go_round_and_the_last_few_are_divided() -> None:
    # Five shards of eight and two rows: two rounds of two shards each, ten rows left.
    owners = Ownership(np.arange(42), 8, 2).owners()
    assert owners.tolist() == [0] * 8 + [1] * 8 + [0] * 8 + [1] * 8 + [0] * 5 + [1] * 5


def test_the_first_rows_belong_to_all_ranks_alike() -> None:
    ownership = Ownership(np.arange(100_000), 512, 8)
    first = np.bincount(ownership.owners()[:10_000])
    assert len(first) == 8
    assert first.max() - first.min() <= 512
