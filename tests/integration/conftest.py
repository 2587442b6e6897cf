from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cluster_in_a_box.box import Box, cluster_in_a_box
from cluster_in_a_box.requirements import find_obstacle
from support.tiny_runs import write_set


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    """Numbers as the command line's own process has them."""
    threads = torch.get_num_threads()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def box_possible() -> None:
    """Skips what needs a cluster in a box where none can be made."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)


@pytest.fixture(scope="module")
def box(box_possible: None) -> Iterator[Box]:
    """A login node and two others with real Slurm and ssh, for the tests of a file."""
    with cluster_in_a_box() as up:
        yield up


@pytest.fixture(scope="module")
def boxed_store(box: Box) -> Path:
    """The tiny store, where all nodes of the box see it."""
    return write_set(box.shared)
