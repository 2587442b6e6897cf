"""What the work asks for, counted, and what the device can do, measured in the same run.

Counts are of the algorithm, not of an implementation. A gathered or scattered number counts as if it came from main
memory each time (an addition twice: read and write); a cache can thus pass 100 % of the copy's bandwidth.
"""

from dataclasses import dataclass

import torch
from gauges import interleaved, sampler

FLOAT_BYTES = 4
_SPLAT_TAPS = 16
_CORNERS = 8


@dataclass(frozen=True)
class Count:
    """Multiply-adds of products between points and queries, and bytes."""

    multiply_adds: float
    bytes: float

    @property
    def operations(self) -> float:
        """Floating-point operations: two per multiply-add."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class Peaks:
    """What was reached by one large matrix product per precision, and by one large copy."""

    operations_per_second: dict[str, float]
    bytes_per_second: float

    def seconds(self, count: Count, products: str = "ieee") -> float:
        """The least time for a count: its arithmetic or its traffic, whichever takes longer."""
        return max(count.operations / self.operations_per_second[products], count.bytes / self.bytes_per_second)


def measured_peaks(device: torch.device, quick: bool) -> Peaks:
    """Peaks of a device, one thread on a CPU."""
    on_gpu = device.type == "cuda"
    side, copied = (8192, 2**28) if on_gpu else (256, 2**20) if quick else (1024, 2**24)
    products = ("ieee", "tf32", "bf16") if on_gpu else ("ieee",)
    rates = {name: 2 * side**3 / _matmul_seconds(side, name, device) for name in products}
    source = torch.zeros(copied, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": sampler(lambda: target.copy_(source), device, 0.05)}, rounds=5)["copy"]
    return Peaks(rates, 2 * copied * FLOAT_BYTES / seconds)


def _matmul_seconds(side: int, products: str, device: torch.device) -> float:
    kind = torch.bfloat16 if products == "bf16" else torch.float32
    left, right = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    try:
        return interleaved({"product": sampler(lambda: left @ right, device, 0.05)}, rounds=5)["product"]
    finally:
        torch.set_float32_matmul_precision(before)


def encode_count(points: int, levels: int, features: int, direction: str) -> Count:
    """Interpolation in the hash grid; ``bwd+dx`` has the slope in the points too."""
    corner_values = points * levels * _CORNERS * features
    values = points * levels * features
    traffic = {"fwd": corner_values + values, "bwd": 2 * corner_values + values}
    traffic["bwd+dx"] = traffic["bwd"] + corner_values + 3 * points
    work = {"fwd": corner_values, "bwd": corner_values, "bwd+dx": 4 * corner_values}
    return Count(work[direction], (traffic[direction] + 3 * points) * FLOAT_BYTES)


def fold_attend_count(points: int, particles: int, hidden: int, queries: int, width: int, direction: str) -> Count:
    """Logits, values and density; backward in one pass that computes attention and activation again."""
    logits, values = hidden * queries, queries * width
    multiply_adds = {"fwd": logits + values + width, "bwd": 3 * (logits + values)}[direction]
    shared = points * hidden * {"fwd": 1, "bwd": 2}[direction]
    return Count(points * particles * multiply_adds, (points * particles + shared) * FLOAT_BYTES)


def splat_count(points: int, particles: int, direction: str) -> Count:
    """Spreading with 16 taps, and gathering for the gradient; ``bwd+pose`` has those of rotation and shift too.

    Places are computed from points that all particles share and that stay in a cache.
    """
    numbers = {"fwd": 1 + 2 * _SPLAT_TAPS, "fixed": 1 + 4 * _SPLAT_TAPS, "bwd": 1 + _SPLAT_TAPS}
    numbers["bwd+pose"] = numbers["bwd"] + 1
    work = {"fwd": _SPLAT_TAPS, "fixed": _SPLAT_TAPS, "bwd": _SPLAT_TAPS, "bwd+pose": 3 * _SPLAT_TAPS}
    total = points * particles
    return Count(total * work[direction], total * numbers[direction] * FLOAT_BYTES)
