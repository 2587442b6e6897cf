import numpy as np
import pytest

from cryoformer_dist.physics.spread import spread_step


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 12_345])
def test_a_step_takes_what_is_wanted_or_up_to_twice_as_many(count: int) -> None:
    taken = len(np.arange(count)[:: spread_step(count, 1000)])
    assert taken == count if count < 2000 else 1000 <= taken <= 2000
