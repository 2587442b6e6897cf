"""What the assembler makes of the kernels: compiled here, without a GPU, in a process that does not interpret."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

PROGRAM = Path(__file__).resolve().parents[2] / "support" / "compile_kernels.py"
HOPPER = 90
# Of one program, by compute capability: no GPU since Ampere has less than 8.6, that of its GeForce cards.
SHARED_BYTES = {HOPPER: 227 * 2**10, 86: 99 * 2**10}
SIZES = (16, 32, 64, 128)
ALL = [f"{queries}x{width}:{products}" for queries in SIZES for width in SIZES for products in ("ieee", "tf32", "bf16")]


def compile_kernels(capability: int, *words: str) -> dict[str, dict[str, Any]]:
    """Everything `compile_kernels` says, by kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), str(capability), *words]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    return {result["kernel"]: result for result in results}


def spilled(kernels: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{name}: {found}" for name, found in kernels.items() if found["stack"] or found["local"]]


def crowded(kernels: dict[str, dict[str, Any]], capability: int) -> list[str]:
    return [f"{name}: {found}" for name, found in kernels.items() if found["shared"] > SHARED_BYTES[capability]]


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """The kernels of the paper's sizes, in the precisions that are meant to be fast."""
    return compile_kernels(HOPPER, "splat", "encode", "64x64:tf32", "64x64:bf16")


def test_no_register_is_spilled_and_shared_memory_is_enough(compiled):
    assert len(compiled) == 4 + 3 + 2 * 3
    assert spilled(compiled) == []
    assert crowded(compiled, HOPPER) == []


@pytest.mark.parametrize("products", ["tf32", "bf16"])
@pytest.mark.parametrize("kernel", ["forward", "backward_point_major", "backward_particle_major"])
def test_fold_attend_multiplies_on_tensor_cores(compiled, kernel, products):
    assert compiled[f"{kernel} 64x64:{products}"]["instructions"]["HGMMA"] > 0


def test_both_features_of_an_entry_are_added_by_one_instruction(compiled):
    assert any(".v2.f32" in atomic for atomic in compiled["encode table_gradient"]["atomics"])
    # One per corner and point: a block of 256 points on 128 threads, where two threads may share a point.
    assert compiled["encode table_gradient"]["instructions"]["RED"] <= 8 * 4


def test_only_sums_that_may_change_order_use_atomics(compiled):
    assert {name for name, found in compiled.items() if found["atomics"]} == {
        "splat scatter fixed=False",
        "splat scatter fixed=True",
        "encode table_gradient",
    }
    assert all("u64" in atomic for atomic in compiled["splat scatter fixed=True"]["atomics"])


@pytest.mark.slow
@pytest.mark.parametrize("word", ALL)
def test_no_register_is_spilled_at_any_size(word):
    assert spilled(compile_kernels(HOPPER, word)) == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("word", ALL)
def test_every_size_fits_in_shared_memory(word, capability):
    assert crowded(compile_kernels(capability, word), capability) == []
