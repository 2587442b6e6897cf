"""Who computes the costly sums: Triton on a GPU, torch on a CPU, and never another than that by accident."""

from importlib.util import find_spec
from typing import Literal

import torch

from cryoformer_dist.errors import BackendUnavailableError

Kernels = Literal["auto", "torch"]


def uses_triton(kernels: Kernels, device: torch.device) -> bool:
    """Whether the Triton twin is to run on tensors of a device.

    Raises
    ------
    BackendUnavailableError
        The tensors are on a GPU, nobody asked for torch, and Triton is not installed.
    """
    if kernels == "torch" or device.type != "cuda":
        return False
    require_triton("set model.kernels: torch, which is slower")
    return True


def require_triton(otherwise: str) -> None:
    """Refuse at once, with the remedy, where Triton is needed and not installed."""
    if find_spec("triton") is None:
        raise BackendUnavailableError(
            "triton is not installed, and the kernels for GPUs are written in it: install the CUDA build of torch, "
            f"which brings the triton it was tested with, or {otherwise}"
        )
