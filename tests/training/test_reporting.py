import time

import pytest
import torch

from cryoformer_dist.errors import TrainingError
from cryoformer_dist.training import reporting
from cryoformer_dist.training.reporting import (
    LossFaults,
    OwnTime,
    Stopwatch,
    Stragglers,
    compare_ranks,
    memory_gib,
)


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


def test_the_first_loss_that_is_not_finite_is_named_and_stops_all_that_follow() -> None:
    faults, stopped = LossFaults(torch.device("cpu")), []
    for step, errors in enumerate(([1.0, 2.0], [1.0, torch.inf], [torch.nan, 1.0], [1.0, 1.0])):
        faults.look(torch.tensor(errors).mean())
        stopped.append(float(faults.settle(step, torch.tensor([10 * step, 10 * step + 1]), torch.tensor(errors))))
    assert stopped == [0, 1, 1, 1]
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite on 1 of 1 ranks; store rows \[11\]\."):
        faults.tell()


def test_while_all_losses_are_finite_there_is_nothing_to_tell() -> None:
    faults = LossFaults(torch.device("cpu"))
    faults.tell()
    faults.look(torch.ones(()))
    assert float(faults.settle(0, torch.tensor([3]), torch.ones(1))) == 0
    faults.tell()
