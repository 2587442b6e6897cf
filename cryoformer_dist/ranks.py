"""What the training processes of a run (ranks) tell one another."""

from collections import deque
from typing import Any, TypeVar

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Rank and world size of this process; (0, 1) outside a process group."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _meeting_device(values: Tensor) -> torch.device:
    """Where ranks exchange values: NCCL takes those on a GPU alone, gloo takes them where they are."""
    if torch.distributed.get_backend() == "nccl" and values.device.type == "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return values.device


def _gather(values: Tensor) -> list[Tensor]:
    """Values of all ranks, all of one shape, where this rank's are."""
    sent = values.to(_meeting_device(values)).contiguous()
    gathered = [torch.empty_like(sent) for _ in range(rank_and_world()[1])]
    torch.distributed.all_gather(gathered, sent)
    return [each.to(values.device) for each in gathered]


def gather_rows(rows: Tensor, values: Float[Tensor, "rows width"]) -> tuple[Tensor, Tensor]:
    """Rows and their float32 values of all ranks, in rank order, as one message; each rank brings equally many."""
    if rank_and_world()[1] == 1:
        return rows, values
    # As integers: the bits of a small row number, read as a float, are one that a processor may flush to zero.
    told = torch.cat(_gather(torch.cat([rows[:, None].int(), values.contiguous().view(torch.int32)], 1)))
    return told[:, 0].to(rows.dtype), told[:, 1:].contiguous().view(torch.float32)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum over ranks."""
    values = values.clone()
    add_over_ranks(values)
    return values


def take_share(count: int) -> slice:
    """Which of so many things are this rank's: a stretch of them. Shares differ by one thing at the most.

    A stretch of particles lies in few shards of the store, so each rank reads its part of the files.
    """
    rank, world = rank_and_world()
    return slice(rank * count // world, (rank + 1) * count // world)


def gather_shares(values: Tensor, count: int) -> Tensor:
    """What all ranks have made of their shares (`take_share`) of ``count`` things, in the order of the things."""
    world = rank_and_world()[1]
    if world == 1:
        return values
    longest = -(-count // world)
    shares = _gather(torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])]))
    lengths = [(rank + 1) * count // world - rank * count // world for rank in range(world)]
    return torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])


def add_over_ranks(values: Tensor) -> None:
    """Element-wise sum over ranks, in place: what is large is not held twice."""
    _reduce(values, torch.distributed.ReduceOp.SUM)


def keep_greatest_over_ranks(values: Tensor) -> None:
    """Element-wise maximum over ranks, in place."""
    _reduce(values, torch.distributed.ReduceOp.MAX)


def _reduce(values: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> None:
    if rank_and_world()[1] > 1:
        reduced = values.to(_meeting_device(values))
        torch.distributed.all_reduce(reduced, operation)
        if reduced is not values:
            values.copy_(reduced)


def gather_own_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """As `gather_rows`, of ranks that have some each, not equally many: one that has fewer says its first again."""
    longest = max(gather_objects(len(rows)))
    place = torch.arange(longest, device=rows.device) % len(rows)
    return gather_rows(rows[place], values[place])


class _DifferentiableSum(torch.autograd.Function):
    """Every rank's loss depends on every rank's values: their gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean over ranks, differentiable; forwards and backwards all ranks take part."""
    total: Tensor = _DifferentiableSum.apply(values)  # type: ignore[no-untyped-call]
    return total / rank_and_world()[1]


class Vote:
    """Whether any rank wants something: all hear of it at the same step, and no step waits for a GPU to say so.

    Parameters
    ----------
    device
        Where votes are counted.
    """

    # A GPU is asked what it said so many steps ago: it is never so far behind.
    _STEPS_LATE = 8

    def __init__(self, device: torch.device) -> None:
        self._late = self._STEPS_LATE if device.type == "cuda" else 0
        self._counts: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def count(self, votes: Float[Tensor, ""]) -> None:
        """Take the sum of all ranks' votes, 0 or 1 each, of one step."""
        if not self._late:
            self._counts.append((votes, None))
            return
        said, event = votes.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._counts.append((said, event))

    def passed(self) -> bool:
        """Whether any rank wanted it; asked after every step."""
        if len(self._counts) <= self._late:
            return False
        said, event = self._counts.popleft()
        if event is not None:
            event.synchronize()
        return bool(said)


def gather_objects(value: T) -> list[T]:
    """Small plain objects of all ranks, in rank order."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def take_from_leader(value: T) -> T:
    """The leader's plain object, on every rank; what the others bring is not looked at."""
    if rank_and_world()[1] == 1:
        return value
    told: list[Any] = [value]
    device = _meeting_device(torch.empty(0))
    torch.distributed.broadcast_object_list(told, 0, device=device)
    taken: T = told[0]
    return taken


def broadcast_from_leader(values: Tensor) -> Tensor:
    """The leader's values, on every rank."""
    if rank_and_world()[1] == 1:
        return values.clone()
    told = values.to(_meeting_device(values), copy=True).contiguous()
    torch.distributed.broadcast(told, 0)
    return told.to(values.device)
