"""Some out of many, evenly spread."""

import numpy as np
from numpy.typing import NDArray


def spread_indices(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the indices ``0 .. count - 1``, ascending; the first and the last are among them.

    All of them where there are no more; ``most`` is at least 1, and one alone is the first.
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def spread_step(count: int, wanted: int) -> int:
    """Step of a slice that takes ``wanted`` out of ``count`` or up to twice as many; all where there are fewer."""
    return max(1, count // wanted)
