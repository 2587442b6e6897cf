import pytest
import torch
from support.rank_processes import run_on_ranks

from cryoformer_dist.ranks import gather_shares, rank_and_world, sum_over_ranks, take_share


def _gather(count: int) -> dict[str, torch.Tensor]:
    things = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor([1.0, 10.0])
    mine = things[take_share(count)]
    return {"mine": mine, "all": gather_shares(mine, count), "sum": sum_over_ranks(mine.sum(0))}


@pytest.mark.parametrize("count", [7, 9, 2])
def test_shares_are_everything_once_and_come_back_in_order(count: int) -> None:
    expected = _gather(count)["all"]
    assert rank_and_world() == (0, 1)
    ranks = run_on_ranks(3, _gather, count)
    assert sorted(row for rank in ranks for row in rank["mine"][:, 0].tolist()) == list(range(count))
    lengths = [len(rank["mine"]) for rank in ranks]
    assert max(lengths) - min(lengths) <= 1
    for rank in ranks:
        assert torch.equal(rank["all"], expected)
        assert torch.equal(rank["sum"], expected.sum(0))
