import numpy as np
import pytest

from cryoformer_dist.data.thinning import stride_for


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 12_345])
def test_a_step_takes_what_is_wanted_or_up_to_twice_as_many(count: int) -> None:
    taken = len(np.arange(count)[:: stride_for(count, 1000)])
    assert taken == count if count < 2000 else 1000 <= taken <= 2000
