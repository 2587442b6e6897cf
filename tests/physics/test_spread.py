import numpy as np
import pytest

from cryoformer_dist.physics.spread import spread_indices, spread_step


def test_picks_are_even_and_hold_both_ends() -> None:
    assert spread_indices(11, 3).tolist() == [0, 5, 10]
    assert spread_indices(100, 4).tolist() == [0, 33, 66, 99]


@pytest.mark.parametrize("most", [5, 6, 50])
def test_all_are_picked_where_there_are_no_more(most: int) -> None:
    assert spread_indices(5, most).tolist() == [0, 1, 2, 3, 4]


def test_one_pick_is_the_first_and_none_are_picked_of_nothing() -> None:
    assert spread_indices(9, 1).tolist() == [0]
    assert spread_indices(0, 3).tolist() == []


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 12_345])
def test_a_step_takes_what_is_wanted_or_up_to_twice_as_many(count: int) -> None:
    taken = len(np.arange(count)[:: spread_step(count, 1000)])
    assert taken == count if count < 2000 else 1000 <= taken <= 2000
