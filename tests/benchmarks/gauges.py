"""Time and memory of what is called: CPU seconds of this process on a CPU, events and the allocator's peak on a GPU.

Needs nothing but torch: cryoDRGN's environment reads it too.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

Work = Callable[[], object]
Sample = Callable[[], float]


def seconds_of(work: Work, calls: int, device: torch.device) -> float:
    """Seconds per call."""
    if device.type != "cuda":
        start = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def sampler(work: Work, device: torch.device, at_least_seconds: float) -> Sample:
    """Seconds per call, of as many calls as make a sample long enough to be read; of one if zero seconds are enough.

    The first call is not counted: it compiles, allocates and fills caches.
    """
    work()
    calls = 1 if not at_least_seconds else max(1, round(at_least_seconds / max(seconds_of(work, 1, device), 1e-7)))
    return lambda: seconds_of(work, calls, device)


def interleaved(samples: dict[str, Sample], rounds: int) -> dict[str, float]:
    """Median of each contestant, all taking turns: what slows the machine for a while slows them alike."""
    found: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(rounds):
        for name, sample in samples.items():
            found[name].append(sample())
    return {name: median(values) for name, values in found.items()}


class PeakMemory:
    """Most memory of a GPU in use since the start, beyond what was in use then; unknown on a CPU.

    There the allocator keeps what was freed: a contestant after a larger one would seem to need nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def read(self) -> int | None:
        """Bytes."""
        if self._device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self._device) - self._before
