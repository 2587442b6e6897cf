"""Peak memory of training steps on random particles, beside what the planner predicts.

    python tests/benchmarks/memory.py --box 128 --occupancy 0.1 --batch 16 [--set model.pose.form=table] [--gpu-pieces]

Two measures of the same steps: growth of the process (its resident peak since before the network was made), and bytes
of live tensors at their highest, counted at every operation. ``--gpu-pieces`` works on all particles of a batch
at a time, as torch does on a GPU, and ``--triton`` runs the kernels in Triton's interpreter, slowly: the tensors
counted then are those a GPU would hold.
"""

import argparse
import json
import time
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoformer_dist.config.loading import parse_overrides
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.model import decoder, hash_grid
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball
from cryoformer_dist.physics import splat
from cryoformer_dist.training import objectives
from cryoformer_dist.training.memory import Workload, plan_memory
from cryoformer_dist.training.objectives import keeps_operators


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensor storages alive, and the highest they were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def resident(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", type=int, required=True)
    parser.add_argument("--occupancy", type=float, default=0.1, help="share of the box; 0.53 is the sphere")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--gpu-pieces", action="store_true", help="torch's kernels, as on a GPU")
    parser.add_argument("--triton", action="store_true", help="Triton's kernels, interpreted; needs TRITON_INTERPRET=1")
    parser.add_argument("--hash-afresh", action="store_true", help="keep no operators")
    parser.add_argument("--count", action="store_true", help="count live tensors too: slower")
    options = parser.parse_args()
    if options.gpu_pieces:
        splat.CACHED_POINTS = 2**62
    if options.hash_afresh:
        objectives._KEPT_OPERATORS_BYTES = 0
    if options.triton:
        for module in (decoder, hash_grid, splat):
            module.uses_triton = lambda kernels, device: kernels == "auto"
        objectives.keeps_operators = lambda config, points, on_gpu: keeps_operators(config, points, on_gpu=True)
    overrides = ["dataset.store=none", "training.engine=torch", *["model.kernels=torch"] * options.gpu_pieces]
    config = parse_overrides([*overrides, *options.set], RunConfig, "memory")
    # What the first step loads is not the run's.
    StepBenchmark.of(config, ball(16, 0.2), 2, torch.device("cpu")).step(0)
    mask = ball(options.box, options.occupancy)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    counter = LiveBytes()
    result = {"box": options.box, "batch": options.batch, "points": int(mask.sum())}
    result["predicted_mib"] = predicted(config, result, options.gpu_pieces or options.triton) / 2**20
    with counter if options.count else nullcontext():
        run(config, mask, options, result, before, counter)
    print(json.dumps({key: round(value, 2) for key, value in result.items()}))


def predicted(config: RunConfig, sizes: dict[str, Any], on_gpu: bool) -> int:
    """What the planner says of all but the program or a GPU's context, and of what happens between steps."""
    points, batch = sizes["points"], sizes["batch"]
    work = Workload(sizes["box"], points, rows=batch, trained=batch, shard_rows=1)
    plan = replace(plan_memory(config, work, batch, WorkerMemory(2**60, on_gpu=on_gpu)), search=0)
    return plan.peak - plan.kept.get("program", 0) - plan.kept.get("CUDA context", 0)


def run(
    config: RunConfig, mask: torch.Tensor, options: Any, result: dict[str, Any], before: int, counter: LiveBytes
) -> None:
    steps = options.steps
    start = time.perf_counter()
    rehearsal = StepBenchmark.of(config, mask, options.batch, torch.device("cpu"))
    result["setup_s"] = time.perf_counter() - start
    result["setup_peak_mib"] = (resident("VmHWM") - before) / 2**20
    result["setup_mib"] = (resident("VmRSS") - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    result["setup_live_mib"], result["kept_live_mib"] = counter.highest / 2**20, counter.now / 2**20
    counter.highest = counter.now
    start = time.perf_counter()
    for number in range(steps):
        rehearsal.step(number)
    result["step_s"] = (time.perf_counter() - start) / steps
    result["step_live_mib"] = counter.highest / 2**20
    result["step_peak_mib"] = (resident("VmHWM") - before) / 2**20


if __name__ == "__main__":
    main()
