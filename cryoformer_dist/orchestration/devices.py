"""Processors, memory and GPUs of this machine, and whether torch, the driver and the container let them work."""

import itertools
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cryoformer_dist.machine import free_bytes, gib, usable_cores

_DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver with which programs of a CUDA family run, by CUDA's major version (release notes of CUDA 13.0, table
# of minimum drivers).
_OLDEST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
_SHARED_MEMORY = Path("/dev/shm")
# Docker gives 64 MiB. Ray's objects and NCCL's buffers between GPUs of a node lie there.
_ENOUGH_SHARED_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    name
        What was looked at.
    state
        ``ok``; ``absent``: the program does without it; ``broken``: it does not.
    detail
        What was found, or why not, and what to do about it.
    """

    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str


def examine_devices() -> Iterator[Finding]:
    """Processors, memory, GPUs and what GPUs need."""
    yield Finding(
        "CPU", "ok", f"{usable_cores()} cores for this process, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    yield Finding("memory", "ok", f"{gib(free_bytes())} free, container limits counted")
    yield from examine_shared_memory()
    yield from examine_driver()
    for number in range(torch.cuda.device_count()):
        yield _examine_gpu(number)
    if not torch.cuda.is_available():
        yield Finding("GPU", "absent", explain_missing_gpu())
        return
    yield _examine_nccl()
    if torch.cuda.device_count() > 1:
        yield _examine_peers(torch.cuda.device_count())


def examine_shared_memory() -> Iterator[Finding]:
    """The room in shared memory; nothing where the system has none to look at."""
    if not _SHARED_MEMORY.is_dir():
        return
    statistics = os.statvfs(_SHARED_MEMORY)
    size = statistics.f_blocks * statistics.f_frsize
    if size >= _ENOUGH_SHARED_BYTES:
        yield Finding("shared memory", "ok", f"{gib(size)} at {_SHARED_MEMORY}")
        return
    yield Finding(
        "shared memory",
        "absent",
        f"{size / 2**20:.0f} MiB at {_SHARED_MEMORY}: Ray keeps its objects on the disk, and NCCL between GPUs may "
        "fail with 'No space left on device'; start the container with --shm-size=8g (docker, podman) or --ipc=host; "
        "in a pod mount an emptyDir with medium: Memory there, as KubeRay does",
    )


def examine_driver() -> Iterator[Finding]:
    """NVIDIA's driver, against the CUDA that torch was built for; nothing where there is neither."""
    text = _DRIVER.read_text() if _DRIVER.is_file() else ""
    found = re.search(r"\s(\d+)\.(\d+)(?:\.\d+)*\s", text)
    built = torch.version.cuda
    if found is None:
        return
    driver = found[0].strip()
    if built is None:
        remedy = "torch is built without CUDA, so no GPU is used: pip install torch from PyPI or a cu index of torch's"
        yield Finding("driver", "absent", f"{driver}; {remedy}")
        return
    family = int(built.split(".")[0])
    oldest = _OLDEST_DRIVERS.get(family)
    if oldest is None or (int(found[1]), int(found[2])) >= oldest:
        yield Finding("driver", "ok", f"{driver}, for torch built for CUDA {built}")
        return
    older = max((each for each, least in _OLDEST_DRIVERS.items() if least <= (int(found[1]), int(found[2]))), default=0)
    other = f", or pip install torch built for CUDA {older} (--index-url of torch's cu{older}x wheels)" if older else ""
    yield Finding(
        "driver",
        "broken",
        f"{driver} is too old for torch built for CUDA {built}: it needs {oldest[0]}.{oldest[1]} or newer; update the "
        f"driver{other}",
    )


def explain_missing_gpu() -> str:
    """Why no GPU is seen."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return (
        "torch is built for CUDA but sees no GPU: is there one, does nvidia-smi list it, is CUDA_VISIBLE_DEVICES empty?"
        " A container must be started with --gpus all (docker), --device nvidia.com/gpu=all (podman), --nv (Apptainer)"
    )


def _examine_gpu(number: int) -> Finding:
    free, total = torch.cuda.mem_get_info(number)
    major, minor = torch.cuda.get_device_capability(number)
    detail = f"{torch.cuda.get_device_name(number)}, {gib(free)} of {gib(total)} free, compute {major}.{minor}"
    if has_kernels((major, minor), torch.cuda.get_arch_list()):
        return Finding(f"GPU {number}", "ok", detail)
    return Finding(
        f"GPU {number}",
        "broken",
        f"{detail}: torch {torch.__version__} has no kernels for it ({' '.join(torch.cuda.get_arch_list())}); for "
        "older cards install a build for an older CUDA, for newer ones a newer torch",
    )


def has_kernels(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether a build has kernels for a GPU: of its family and not newer, or such as the driver can still translate.

    Parameters
    ----------
    capability
        Compute capability of the GPU.
    built
        As torch lists them, ``sm_90`` and ``compute_90``.
    """
    for kind, digits in (re.findall(r"^(sm|compute)_(\d+)", each)[0] for each in built):
        major, minor = int(digits[:-1]), int(digits[-1])
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False


def _examine_nccl() -> Finding:
    if not torch.distributed.is_nccl_available():
        return Finding(
            "NCCL", "absent", "not in this torch: several GPUs exchange gradients by gloo, through main memory"
        )
    return Finding("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def _examine_peers(count: int) -> Finding:
    apart = [
        f"{one}-{other}"
        for one, other in itertools.combinations(range(count), 2)
        if not (torch.cuda.can_device_access_peer(one, other) and torch.cuda.can_device_access_peer(other, one))
    ]
    if not apart:
        return Finding("peer access", "ok", f"each of {count} GPUs reaches the memory of the others")
    return Finding(
        "peer access",
        "absent",
        f"not between {', '.join(apart)}: gradients go through main memory there; see `nvidia-smi topo -m`; in virtual "
        "machines the host decides. If NCCL hangs, set NCCL_P2P_DISABLE: '1' under environment",
    )
