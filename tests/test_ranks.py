from collections.abc import Callable

import pytest
import torch
import torch.distributed
from support.rank_processes import run_on_ranks

from cryoformer_dist import ranks
from cryoformer_dist.ranks import (
    Vote,
    broadcast_from_leader,
    gather_own_rows,
    gather_rows,
    gather_shares,
    keep_greatest_over_ranks,
    mean_over_ranks,
    rank_and_world,
    sum_over_ranks,
    take_from_leader,
    take_share,
)
from cryoformer_dist.training.reporting import compare_ranks


def _gather(count: int) -> dict[str, torch.Tensor]:
    things = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor([1.0, 10.0])
    mine = things[take_share(count)]
    return {"mine": mine, "all": gather_shares(mine, count), "sum": sum_over_ranks(mine.sum(0))}


def _agree() -> dict[str, torch.Tensor]:
    rank = rank_and_world()[0]
    greatest = torch.tensor([1.0, 5.0, -3.0]).roll(rank)
    keep_greatest_over_ranks(greatest)
    taken = take_from_leader({"rank": rank, "many": "x" * 10 * rank} if rank < 2 else None)
    return {"greatest": greatest, "taken": torch.tensor(taken["rank"])}


def test_all_ranks_take_what_the_leader_says_and_the_greatest_of_all() -> None:
    assert _agree()["greatest"].tolist() == [1, 5, -3]
    for found in run_on_ranks(3, _agree):
        assert found["greatest"].tolist() == [5, 5, 5]
        assert int(found["taken"]) == 0


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


def _gather_own() -> dict[str, torch.Tensor]:
    rank = rank_and_world()[0]
    rows = torch.arange(rank + 1) + 10 * rank
    found, values = gather_own_rows(rows, rows[:, None] * torch.tensor([1.0, 2.0]))
    return {"rows": found, "values": values}


def test_rows_that_ranks_have_unequally_many_of_reach_all_with_what_was_found_of_them() -> None:
    for told in run_on_ranks(3, _gather_own):
        assert sorted(set(told["rows"].tolist())) == [0, 10, 11, 20, 21, 22]
        assert torch.equal(told["values"], told["rows"][:, None] * torch.tensor([1.0, 2.0]))


def _ask_one_another() -> dict[str, torch.Tensor]:
    rank = rank_and_world()[0]
    mine = torch.tensor([1.0, 10.0]) * (rank + 1)
    learned = mine.clone().requires_grad_(True)
    mean = mean_over_ranks(learned)
    # Each rank's loss has its own slope in the mean.
    ((rank + 1) * mean).sum().backward()
    assert learned.grad is not None
    vote = Vote(mine.device)
    # The last rank alone wants something, at the second of three steps.
    heard = []
    for step in range(3):
        vote.count(sum_over_ranks(torch.tensor(float(rank == rank_and_world()[1] - 1 and step == 1))))
        heard.append(vote.passed())
    # The bits of a row number below 2^23 are a number that a processor may take for zero.
    torch.set_flush_denormal(True)
    rows, values = gather_rows(torch.tensor([7, rank]), mine[None].repeat(2, 1))
    told = {"rows": rows, "values": values, "mean": mean.detach(), "slope": learned.grad, "mine": mine}
    return told | {"heard": torch.tensor(heard), "slowness": torch.tensor(compare_ranks(0.5 * (1 + 7 * rank)))}


def test_rows_votes_and_a_mean_are_the_same_on_all_ranks_and_the_mean_s_slope_is_what_all_losses_say() -> None:
    for rank, found in enumerate(run_on_ranks(2, _ask_one_another)):
        assert found["rows"].tolist() == [7, 0, 7, 1]
        assert found["values"].tolist() == [[1, 10], [1, 10], [2, 20], [2, 20]]
        assert found["mean"].tolist() == [1.5, 15]
        assert found["heard"].tolist() == [False, True, False]
        # Over the shorter time of the two.
        assert found["slowness"].tolist() == [1, 8]
        # Half of what both losses say, since each holds half of the mean.
        assert found["slope"].tolist() == [1.5, 1.5]
        # Only read.
        assert found["mine"].tolist() == [rank + 1, 10 * (rank + 1)]
    alone = _ask_one_another()
    assert alone["rows"].tolist() == [7, 0]
    assert alone["heard"].tolist() == [False, True, False]
    assert torch.equal(alone["mean"], alone["mine"])


@pytest.mark.parametrize(
    "exchange",
    [
        sum_over_ranks,
        broadcast_from_leader,
        lambda values: gather_rows(values.long(), values[:, None])[1],
        lambda values: gather_shares(values, 3),
    ],
)
def test_what_is_in_main_memory_reaches_nccl_on_a_gpu_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, exchange: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """NCCL refuses tensors that are not on a GPU; the device that stands for one here holds no values."""
    there = torch.device("meta")
    seen: list[torch.device] = []

    def see(*arguments: object, **_: object) -> None:
        tensors = [each for part in arguments for each in (part if isinstance(part, list) else [part])]
        seen.extend(each.device for each in tensors if isinstance(each, torch.Tensor))

    for name in ("all_reduce", "broadcast", "all_gather"):
        monkeypatch.setattr(torch.distributed, name, see)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(ranks, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(ranks.torch, "device", lambda *_: there)
    with pytest.raises(NotImplementedError, match="meta"):
        exchange(torch.arange(2.0))
    assert seen
    assert set(seen) == {there}
