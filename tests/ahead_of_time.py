"""Compile every Triton kernel for a GPU that need not be there, and say what became of it.

Run as a program, without TRITON_INTERPRET (an interpreted kernel cannot be compiled): prints one JSON object per kernel
and configuration, with registers, bytes spilled to the stack or to local memory, and counts of machine instructions.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cryoformer_dist.model.kernels import fold_attend_triton
from cryoformer_dist.physics import splat_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HOPPER = 90
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "RED", "ATOM", "LDL", "STL")


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of one kernel."""

    kernel: str
    registers: int
    stack: int
    local: int
    instructions: dict[str, int]
    reductions: list[str]


def compiled(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int = 4) -> Compiled:
    """One kernel for Hopper, its pointers as aligned as torch aligns them."""
    names = kernel.arg_names
    pointers = [(names.index(argument),) for argument, kind in types.items() if kind.startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "constexpr") for argument in names},
        constexprs={(names.index(argument),): value for argument, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in pointers},
    )
    built = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, code = (_cuobjdump(option, file.name) for option in ("--dump-resource-usage", "--dump-sass"))
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    counts = {word: len(re.findall(rf"\b{word}[A-Z]*[\. ]", code)) for word in INSTRUCTIONS}
    reductions = sorted(set(re.findall(r"(?:red|atom)\.[\w.:]+", built.asm["ptx"])))
    return Compiled(name, int(registers), int(stack), int(local), counts, reductions)


def _cuobjdump(option: str, file: str) -> str:
    return subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True).stdout


def types_of(kernel: Any, constants: dict[str, Any], **others: str) -> dict[str, str]:
    """Pointers to float32 and 32-bit integers, unless said otherwise."""
    return {
        name: others.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }


def splats() -> Iterator[Compiled]:
    for fixed_point in (False, True):
        constants = {"FIXED_POINT": fixed_point, "BLOCK": splat_triton.BLOCK}
        grid = "*i64" if fixed_point else "*fp32"
        types = types_of(splat_triton.scatter, constants, grid_ptr=grid)
        yield compiled(f"splat scatter fixed={fixed_point}", splat_triton.scatter, types, constants)
    for slopes in (False, True):
        constants = {"SLOPES": slopes, "BLOCK": splat_triton.BLOCK}
        types = types_of(splat_triton.gather, constants)
        yield compiled(f"splat gather slopes={slopes}", splat_triton.gather, types, constants)


def fold_attends(queries: int, width: int, products: str) -> Iterator[Compiled]:
    room = fold_attend_triton
    kernels = (room.forward, room.backward_point_major, room.backward_particle_major)
    for kernel, launch in zip(kernels, room.launches(queries, width), strict=True):
        sizes = {"FEATURES": room.HIDDEN, "QUERIES": queries, "WIDTH": width}
        constants = {**sizes, "BLOCK": launch.block, "PRODUCTS": products}
        if kernel is room.forward:
            constants["GROUP"] = room.GROUP
        name = f"{kernel.fn.__name__} queries={queries} width={width} {products}"
        yield compiled(name, kernel, types_of(kernel, constants), constants, launch.warps)


def every(sizes: list[tuple[int, int]]) -> Iterator[Compiled]:
    yield from splats()
    for queries, width in sizes:
        for products in ("ieee", "tf32", "bf16"):
            yield from fold_attends(queries, width, products)


if __name__ == "__main__":
    for result in every([tuple(map(int, size.split("x"))) for size in sys.argv[1:]]):
        print(json.dumps(asdict(result)), flush=True)
