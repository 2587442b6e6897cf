from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    """Numbers as the command line's own process has them."""
    threads = torch.get_num_threads()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
