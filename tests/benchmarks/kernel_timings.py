"""Encode, fold-attend and splat on their own: every implementation, forward and backward, beside one another."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gauges import interleaved, sampler
from roofline import Count, Peaks, encode_count, fold_attend_count, splat_count
from speed_report import Table
from torch import Tensor

from cryoformer_dist.model.grid_layout import GridLayout
from cryoformer_dist.model.kernels.encode import LatticeOperator, encode
from cryoformer_dist.model.kernels.fold_attend import fold_attend
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.splat import splat

HIDDEN, FEATURES = 16, 2
_CONSTANT = "constant sparse matrix"
# What errors are judged on: float64 of the whole lattice would take longer than all the rest.
_JUDGED_POINTS, _JUDGED_PARTICLES = 2048, 2


@dataclass(frozen=True)
class Sizes:
    """Of the lattice, the batch and the grid."""

    points: int
    particles: int
    box: int
    levels: int

    @staticmethod
    def of(device: torch.device, quick: bool) -> "Sizes":
        """A tenth of a box of 128 on a GPU, of 64 on a CPU; toys when in a hurry."""
        if quick:
            return Sizes(points=60, particles=2, box=16, levels=2)
        box, particles = (128, 32) if device.type == "cuda" else (64, 16)
        return Sizes(box**3 // 10, particles, box, 16)

    @property
    def judged(self) -> "Sizes":
        return Sizes(min(self.points, _JUDGED_POINTS), min(self.particles, _JUDGED_PARTICLES), self.box, self.levels)


@dataclass(frozen=True)
class Case:
    """One row: a function of tensors, and the gradients it is asked for (none: its value)."""

    kernel: str
    implementation: str
    direction: str
    function: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    inputs: Callable[[Sizes], list[Tensor]]
    wanted: tuple[int, ...]
    count: Count
    products: str = "ieee"
    deterministic: bool = False

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.implementation}, {self.direction}"


def kernel_table(device: torch.device, peaks: Peaks, quick: bool) -> Table:
    """Time, rate, share of the roofline and error of every kernel."""
    sizes = Sizes.of(device, quick)
    table = Table(f"Kernels: {sizes.points} points, {sizes.particles} particles, {sizes.levels} levels")
    for cases in (_encodes(sizes, device), _fold_attends(sizes, device), _splats(sizes, device)):
        # One kernel's rows take turns; its tensors are let go before the next kernel.
        table.rows += _rows(list(cases), sizes, device, peaks, rounds=1 if quick else 5)
    if _triton_is_interpreted():
        table.notes.append("Triton's rows are its interpreter's: their times say nothing.")
    return table


def _rows(cases: Sequence[Case], sizes: Sizes, device: torch.device, peaks: Peaks, rounds: int) -> list[dict[str, Any]]:
    at_least = 0.05 if rounds > 1 else 0.0
    samples = {case.name: sampler(_work(case, case.inputs(sizes)), device, at_least) for case in cases}
    seconds = interleaved(samples, rounds)
    return [_row(case, seconds[case.name], peaks, _error(case, case.inputs(sizes.judged))) for case in cases]


def _row(case: Case, seconds: float, peaks: Peaks, error: float) -> dict[str, Any]:
    return {
        "kernel": case.kernel,
        "implementation": case.implementation,
        "pass": case.direction,
        "ms": seconds * 1e3,
        "GFLOP/s": case.count.operations / seconds / 1e9,
        "GB/s": case.count.bytes / seconds / 1e9,
        "% of roofline": 100 * peaks.seconds(case.count, case.products) / seconds,
        "error": f"{error:.1e}",
    }


def _work(case: Case, inputs: list[Tensor]) -> Callable[[], object]:
    """The forward pass without a graph, or the backward pass alone."""
    if not case.wanted:

        def forward() -> None:
            with torch.no_grad():
                _value(case, inputs)

        return forward
    leaves = [inputs[number].requires_grad_() for number in case.wanted]
    value = _value(case, inputs)
    incoming = torch.rand_like(value)
    return lambda: torch.autograd.grad(value, leaves, incoming, retain_graph=True)


def _value(case: Case, inputs: Sequence[Tensor]) -> Tensor:
    torch.use_deterministic_algorithms(case.deterministic)
    try:
        return case.function(*inputs)
    finally:
        torch.use_deterministic_algorithms(False)


def _error(case: Case, inputs: list[Tensor]) -> float:
    """Relative difference from the exact function in float64; the worst of the gradients."""
    exact = [tensor.detach().double() for tensor in inputs]
    if not case.wanted:
        return _relative(_value(case, inputs), case.exact(*exact))
    leaves = [inputs[number].requires_grad_() for number in case.wanted]
    exact_leaves = [exact[number].requires_grad_() for number in case.wanted]
    value, expected = _value(case, inputs), case.exact(*exact)
    incoming = torch.rand_like(value)
    found = torch.autograd.grad(value, leaves, incoming)
    wanted = torch.autograd.grad(expected, exact_leaves, incoming.double())
    return max(_relative(one, other) for one, other in zip(found, wanted, strict=True))


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def _triton_is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" or _triton_is_interpreted()


class _ConstantMatrix:
    """The torch backend's operator, made once for a lattice as in training."""

    def __init__(self, layout: GridLayout) -> None:
        self._layout = layout
        self._points: Tensor | None = None

    def __call__(self, table: Tensor, points: Tensor) -> Tensor:
        if points is not self._points:
            self._points, self._operator = points, LatticeOperator(self._layout, points)
        return self._operator.of(table)


def _encodes(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    growth = (sizes.box / 16) ** (1 / max(sizes.levels - 1, 1)) * 1.0003
    layout = GridLayout.of(sizes.levels, 16 if sizes.box > 16 else 4, growth, 2**15)

    def inputs(sizes: Sizes) -> list[Tensor]:
        table = torch.empty(layout.entries, FEATURES, device=device).uniform_(-1, 1)
        return [table, torch.rand(sizes.points, 3, device=device)]

    def by_torch(table: Tensor, points: Tensor) -> Tensor:
        return encode(table, points, layout)

    implementations: dict[str, Callable[..., Tensor]] = {"torch": by_torch, _CONSTANT: _ConstantMatrix(layout)}
    if _has_triton(device):
        from cryoformer_dist.model.kernels.encode_triton import encode as encode_triton

        implementations["triton"] = lambda table, points: encode_triton(table, points, layout)
    for name, function in implementations.items():
        for direction, wanted in (("fwd", ()), ("bwd", (0,)), ("bwd+dx", (0, 1))):
            if name == _CONSTANT and 1 in wanted:
                continue
            count = encode_count(sizes.points, sizes.levels, FEATURES, direction)
            yield Case("encode", name, direction, function, by_torch, inputs, wanted, count)


def written_out(
    hidden: Tensor,
    key: Tensor,
    key_bias: Tensor,
    value: Tensor,
    residual: Tensor,
    offset: Tensor,
    output: Tensor,
    bias: Tensor,
    scale: Tensor,
) -> Tensor:
    """Fold-attend's formula, every intermediate for every point and particle kept."""
    attention = torch.softmax(hidden @ key + key_bias[:, None], dim=-1)
    activation = torch.relu(attention @ value + (hidden @ residual.T + offset))
    return (activation @ output + bias) * scale[:, None]


def _fold_attends(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    for queries, width in ((16, 32), (64, 64)):
        yield from _fold_attends_of(sizes, device, queries, width)


def _fold_attends_of(sizes: Sizes, device: torch.device, queries: int, width: int) -> Iterator[Case]:
    def inputs(sizes: Sizes) -> list[Tensor]:
        particles = sizes.particles
        shapes = [(sizes.points, HIDDEN), (particles, HIDDEN, queries), (particles, queries)]
        shapes += [(particles, queries, width), (width, HIDDEN), (width,), (width,), (), (particles,)]
        return [torch.randn(shape, device=device) for shape in shapes]

    implementations: dict[str, tuple[Callable[..., Tensor], str]] = {
        "written out": (written_out, "ieee"),
        "torch, tiled": (fold_attend, "ieee"),
    }
    if _has_triton(device):
        from cryoformer_dist.model.kernels.fold_attend_triton import fold_attend as fold_attend_triton

        for products in ("ieee",) if _triton_is_interpreted() else ("ieee", "tf32", "bf16"):

            def by_triton(*tensors: Tensor, products: Any = products) -> Tensor:
                return fold_attend_triton(*tensors, products)

            implementations[f"triton {products}"] = (by_triton, products)
    for name, (function, products) in implementations.items():
        for direction, wanted in (("fwd", ()), ("bwd", tuple(range(8)))):
            count = fold_attend_count(sizes.points, sizes.particles, HIDDEN, queries, width, direction)
            kernel = f"fold-attend {queries}/{width}"
            yield Case(kernel, name, direction, function, written_out, inputs, wanted, count, products)


def _splats(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    grid = 2 * sizes.box

    def inputs(sizes: Sizes) -> list[Tensor]:
        # A ball: its shadow is denser in the middle, as a molecule's is.
        places = torch.nn.functional.normalize(torch.randn(sizes.points, 3, device=device), dim=-1)
        radius = torch.rand(sizes.points, 1, device=device) ** (1 / 3) * 0.29 * grid
        rotation = random_rotations(sizes.particles, torch.Generator().manual_seed(0)).to(device)
        density = torch.rand(sizes.particles, sizes.points, device=device)
        return [density, places * radius, rotation[:, :2].contiguous(), torch.zeros(sizes.particles, 2, device=device)]

    def by_torch(*tensors: Tensor) -> Tensor:
        return splat(*tensors, grid, "torch")

    implementations: dict[str, Callable[..., Tensor]] = {"torch": by_torch}
    if _has_triton(device):
        from cryoformer_dist.physics.splat_triton import splat as splat_triton

        implementations["triton"] = lambda *tensors: splat_triton(*tensors, grid)
    for name, function in implementations.items():
        for direction, wanted in (("fwd", ()), ("fixed", ()), ("bwd", (0,)), ("bwd+pose", (0, 2, 3))):
            if direction == "fixed" and name == "torch":
                continue
            count = splat_count(sizes.points, sizes.particles, direction)
            fixed = direction == "fixed"
            yield Case("splat", name, direction, function, by_torch, inputs, wanted, count, deterministic=fixed)
