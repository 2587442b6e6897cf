"""Several ranks on this machine, one process each, that speak by gloo."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

# Imported once, by the process that all ranks are forked from: it takes seconds, and most ranks live for less.
# Optimisers import torch._dynamo when the first one is made.
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", "cryoformer_dist.training.train_rank", "cryoformer_dist.analysis.results", "pytest"]
)


def run_on_ranks(world: int, act: Callable[..., Any], *arguments: object) -> list[Any]:
    """What a module's function returns on each rank: tensors, and lists and dictionaries of them."""
    with tempfile.TemporaryDirectory() as folder:
        rest = (world, folder, act, arguments, dict(os.environ))
        torch.multiprocessing.start_processes(_act_on_rank, args=rest, nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _act_on_rank(
    rank: int,
    world: int,
    folder: str,
    act: Callable[..., Any],
    arguments: tuple[object, ...],
    environment: dict[str, str],
) -> None:
    torch.set_num_threads(1)
    # As it is now, not as it was at the first rank of all; the rest as a launcher says it.
    os.environ.clear()
    os.environ.update(environment | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)})
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        torch.save(act(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
    # An interpreter that ends while a thread of gloo's lets go of a tensor kills that thread inside of C++, and
    # with it the process (SIGABRT, once in some hundred times on a busy machine): this one does not end, it is left.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
