"""What passes over particles would take a GPU: counted, never timed. Bytes moved, at half of an H200's bandwidth.

Scattered additions and gathers are charged whole sectors of 32 bytes, though most tables here fit in the caches; what
streams is charged its own bytes. Arithmetic is left out: none of these passes has 10 operations for a byte.
"""

from collections.abc import Sequence
from math import pi

from cryoformer_dist.initialization.search_rounds import SearchRound

EFFICIENCY = 0.5
BYTES_PER_SECOND = EFFICIENCY * 4.8e12
# From pinned main memory, over PCIe 5; the start of a kernel.
COPIED_BYTES_PER_SECOND = EFFICIENCY * 55e9
LAUNCH_SECONDS = 5e-6
_SECTOR = 32
# Read and written.
_ADDED = 2 * _SECTOR
_CORNERS, _SUMS, _TAPS = 8, 3, 16
# Of the steps before: positions, shares, CTF, phases of a coefficient; 30 numbers written and read.
_PREPARED = 30 * 8
# Points of the linear model, at most, of its box: a mask of a twentieth, widened.
_LINEAR_OCCUPANCY = 0.1
_DESCENTS = 3


def _coefficients(radius: float) -> float:
    """Of half a disc."""
    return pi * radius**2 / 2


def count_inserted(box: int) -> float:
    """Seconds to insert an image into a back-projection."""
    moved = _coefficients(box / 2) * (_CORNERS * _SUMS * _ADDED + _PREPARED)
    return moved / BYTES_PER_SECOND + count_cropped(box)


def count_cropped(box: int) -> float:
    """Seconds to copy an image to the device and to transform it: six passes in single precision."""
    return 2 * box**2 / COPIED_BYTES_PER_SECOND + 6 * 8 * box**2 / BYTES_PER_SECOND


def count_searched(rounds: Sequence[SearchRound]) -> float:
    """Seconds to search an image's pose, all rounds: slices gathered, written, read twice; its insertions."""
    moved = 0.0
    for each in rounds:
        # Corners beside one another share a sector.
        gathered = each.candidates * _coefficients(each.shell) * (_CORNERS / 2 * _SECTOR + 12 * 8)
        moved += gathered + _coefficients(each.box / 2) * (_CORNERS * _SUMS * _ADDED + _PREPARED)
    # 60 kernels for 512 images and a round.
    return moved / BYTES_PER_SECOND + len(rounds) * 60 * LAUNCH_SECONDS / 512


def count_solved(box: int) -> float:
    """Seconds to solve a map: 40 numbers read or written for each coefficient of the half lattice."""
    return (2 * box) ** 2 * (box + 1) * 40 * 4 / BYTES_PER_SECOND


def count_linear(box: int, dimensions: int) -> tuple[float, float]:
    """Seconds an image takes in a fit of the linear model's maps, and in one of its coordinates."""
    splat = _LINEAR_OCCUPANCY * box**3 * (_TAPS * _ADDED + _PREPARED)
    return (1 + _DESCENTS) * 2 * splat / BYTES_PER_SECOND, (1 + dimensions) * splat / BYTES_PER_SECOND


def count_clustered(clusters: int, dimensions: int, points: int = 20_000, rounds: int = 20) -> float:
    """Seconds of k-means: eight kernels to draw a first centre, ten a round; distances written and read."""
    moved = rounds * points * clusters * 3 * 8 + clusters * points * (dimensions + 4) * 8
    return moved / BYTES_PER_SECOND + (8 * clusters + 10 * rounds) * LAUNCH_SECONDS
