import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.runs.checkpoint import Position
from cryoformer_dist.training import reporting
from cryoformer_dist.training.reporting import (
    Interval,
    OwnTime,
    StepFaults,
    Stopwatch,
    Stragglers,
    compare_ranks,
    memory_gib,
)
from cryoformer_dist.training.stages import Moment, Stage


def test_the_stopwatch_tells_the_interval_from_the_whole() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    watch.restart()
    watch.trained(30)
    watch.trained(10)
    watch.waited(0.005)
    time.sleep(0.02)
    pace = watch.measure()
    elapsed = 40 / pace.particles_per_second
    assert 0.02 <= elapsed <= pace.seconds - 0.02
    assert pace.data_wait_share == pytest.approx(0.005 / elapsed)
    watch.restart()
    assert watch.measure().particles_per_second == 0
    assert watch.measure().data_wait_share == 0


def test_the_pace_is_that_of_the_stretch_under_way() -> None:
    watch = Stopwatch()
    watch.enter("reconstruction", True)
    watch.trained(10)
    time.sleep(0.2)
    watch.enter("reconstruction", False)
    for _ in range(4):
        watch.enter("reconstruction", False)
        watch.trained(10)
        time.sleep(0.01)
    pace = watch.measure()
    assert 0.01 <= pace.seconds_per_step <= (pace.seconds - 0.2) / 4


def test_a_rank_s_own_time_is_the_median_of_its_steps_without_what_lies_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, now = OwnTime(torch.device("cpu")), 0.0
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now)
    for seconds in (1.0, 50.0, 2.0):
        own.begin()
        now += seconds
        own.end()
        now += 100.0
    # Asked for another batch, when there was none.
    own.begin()
    assert own.take_median() == 2.0
    assert own.take_median() == 0.0


def test_a_rank_that_is_slow_twice_is_named_once() -> None:
    stragglers = Stragglers(["node-a", "node-b", "node-c"])
    assert stragglers.look([1.0, 4.0, 1.0]) == []
    assert stragglers.look([1.0, 3.0, 1.0]) == []
    assert stragglers.look([1.0, 5.0, 1.0]) == []
    (told,) = stragglers.look([1.0, 4.04, 9.0])
    assert "rank 1 on node-b is a straggler" in told
    assert "4.0 times the median" in told
    assert stragglers.look([1.0, 5.0, 1.0]) == []


def test_one_rank_is_as_slow_as_the_median() -> None:
    assert compare_ranks(0.5) == compare_ranks(0.0) == [1.0]


def test_memory_of_this_process_is_in_gib() -> None:
    assert 0.05 < memory_gib(torch.device("cpu")) < 100


Settle = Callable[..., float]


@pytest.fixture
def settle(store: ParticleStore) -> Settle:
    """Has faults look at a step with rows 10, 11 .. of step 1, 20 .. of step 2; returns whether they stop it."""

    def look(
        faults: StepFaults, step: int, errors: list[float], leaf: Tensor | None = None, norm: float = 1.0
    ) -> float:
        rows = np.arange(len(errors)) + 10 * step
        block = ImageBlock(store.read_images(rows), rows, np.zeros_like(rows))
        batch = make_batch(block, store.particles())
        moment = Moment(Stage("reconstruction", 1), Position(step=step), Position(step=step + 1), 9)
        leaves = [] if leaf is None else [leaf]
        return float(faults.settle(faults.look(moment, batch, torch.tensor(errors), leaves, torch.tensor(norm))))

    return look


def test_the_first_step_that_is_not_finite_is_named_and_stops_all_that_follow_until_it_is_told(
    settle: Settle,
) -> None:
    faults = StepFaults(torch.device("cpu"))
    losses = ([1.0, 2.0], [1.0, torch.inf], [torch.nan, 1.0], [1.0, 1.0])
    assert [settle(faults, step, errors) for step, errors in enumerate(losses)] == [0, 1, 1, 1]
    fault = faults.find()
    assert fault is not None
    assert (fault.moment.before.step, fault.ranks, fault.rows) == (1, 1, (11,))
    assert faults.find() is None
    assert settle(faults, 4, [1.0, 1.0]) == 0
    assert faults.find() is None


def test_a_gradient_of_a_row_names_the_row_and_one_of_the_network_all_of_the_step(settle: Settle) -> None:
    faults = StepFaults(torch.device("cpu"))
    leaf = torch.zeros(2, 3, requires_grad=True)
    leaf.grad = torch.tensor([[0.0, 1.0, 2.0], [0.0, torch.nan, 0.0]])
    assert settle(faults, 1, [1.0, 2.0], leaf) == 1
    assert faults.find().rows == (11,)  # type: ignore[union-attr]
    # Its square does not fit float32, and would be kept by the optimiser.
    leaf.grad = torch.tensor([[0.0, 1e30, 2.0], [0.0, 0.0, 0.0]])
    assert settle(faults, 2, [1.0, 2.0], leaf) == 1
    assert faults.find().rows == (20,)  # type: ignore[union-attr]
    assert settle(faults, 3, [1.0, 2.0], norm=torch.nan) == 1
    assert faults.find().rows == (30, 31)  # type: ignore[union-attr]


def test_a_step_that_was_not_taken_does_not_count() -> None:
    interval = Interval(torch.device("cpu"))
    interval.add(torch.tensor([torch.nan, 1.0]), torch.ones(2), torch.ones(()))
    assert interval.is_empty
    interval.add(torch.tensor([2.0, 1.0]), torch.ones(2), torch.zeros(()))
    assert interval.totals.tolist() == [3, 2, 2]
