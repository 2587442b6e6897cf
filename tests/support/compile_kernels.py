"""Compile Triton kernels for a GPU that need not be there, and say what became of them.

    python tests/support/compile_kernels.py 90 splat encode 64x64:bf16

Without TRITON_INTERPRET, since an interpreted kernel cannot be compiled. The number is the GPU's compute capability.
Prints one JSON object per kernel: registers, bytes spilled to the stack or to local memory, bytes of shared memory,
counts of machine instructions, atomic additions. A word like 64x64:bf16 stands for fold-attend with so many queries,
such a density width and these products.
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

from cryoformer_dist.model.kernels import encode_triton, fold_attend_triton
from cryoformer_dist.model.kernels.sizes import HIDDEN
from cryoformer_dist.physics import splat_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = ("HGMMA", "HMMA", "RED")


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of one kernel."""

    kernel: str
    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int]
    atomics: list[str]


def compiled(
    capability: int, name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: int
) -> Compiled:
    """One kernel for a GPU, its pointers as aligned as torch aligns them."""
    names = kernel.arg_names
    pointers = [(names.index(argument),) for argument, kind in types.items() if kind.startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "constexpr") for argument in names},
        constexprs={(names.index(argument),): value for argument, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in pointers},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, code = (_cuobjdump(option, file.name) for option in ("--dump-resource-usage", "--dump-sass"))
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    counts = {word: len(re.findall(rf"\b{word}[A-Z]*[\. ]", code)) for word in INSTRUCTIONS}
    atomics = sorted(set(re.findall(r"(?:red|atom)\.global\.[\w.:]+", built.asm["ptx"])))
    return Compiled(name, int(registers), int(stack), int(local), built.metadata.shared, counts, atomics)


def _cuobjdump(option: str, file: str) -> str:
    return subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True).stdout


def types_of(kernel: Any, constants: dict[str, Any], **others: str) -> dict[str, str]:
    """Pointers to float32 and 32-bit integers, unless said otherwise."""
    return {
        name: others.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }


def splats(capability: int) -> Iterator[Compiled]:
    for fixed_point in (False, True):
        constants = {"FIXED_POINT": fixed_point, "BLOCK": splat_triton.BLOCK}
        grid = "*i64" if fixed_point else "*fp32"
        types = types_of(splat_triton.scatter, constants, grid_ptr=grid)
        yield compiled(capability, f"splat scatter fixed={fixed_point}", splat_triton.scatter, types, constants)
    for slopes in (False, True):
        constants = {"SLOPES": slopes, "BLOCK": splat_triton.BLOCK}
        types = types_of(splat_triton.gather, constants)
        yield compiled(capability, f"splat gather slopes={slopes}", splat_triton.gather, types, constants)


def encodes(capability: int) -> Iterator[Compiled]:
    module = encode_triton
    blocks = {
        module.interpolate: module.BLOCK,
        module.table_gradient: module.BLOCK,
        module.point_gradient: module.SLOPE_BLOCK,
    }
    for kernel, block in blocks.items():
        constants = {"FEATURES": 2, "BLOCK": block}
        types = types_of(kernel, constants, levels_ptr="*i32")
        yield compiled(capability, f"encode {kernel.fn.__name__}", kernel, types, constants)


def fold_attends(capability: int, queries: int, width: int, products: str) -> Iterator[Compiled]:
    module = fold_attend_triton
    kernels = (module.forward, module.backward_point_major, module.backward_particle_major)
    for kernel, launch in zip(kernels, module.launches(queries, width, products), strict=True):
        sizes = {"FEATURES": HIDDEN, "QUERIES": queries, "WIDTH": width}
        constants = {**sizes, "BLOCK": launch.block, "PRODUCTS": products}
        constants |= {"GROUP": module.GROUP} if kernel is module.forward else {"SLICE": launch.units}
        name = f"{kernel.fn.__name__} {queries}x{width}:{products}"
        operands = ("hidden_ptr", "key_ptr", "value_ptr", "residual_ptr") if products == "bf16" else ()
        types = types_of(kernel, constants, **dict.fromkeys(operands, "*bf16"))
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        yield compiled(capability, name, kernel, types, constants, **options)


def named(capability: int, word: str) -> Iterator[Compiled]:
    if word == "splat":
        return splats(capability)
    if word == "encode":
        return encodes(capability)
    sizes, products = word.split(":")
    return fold_attends(capability, *map(int, sizes.split("x")), products)


if __name__ == "__main__":
    for word in sys.argv[2:]:
        for result in named(int(sys.argv[1]), word):
            print(json.dumps(asdict(result)), flush=True)
