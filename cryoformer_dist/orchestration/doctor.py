"""What this machine has, what of the program works on it, and how fast: for `cryoformer-dist doctor`."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cryoformer_dist.config.schema import DatasetConfig, RunConfig, TrainingConfig
from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.machine import gib
from cryoformer_dist.orchestration.devices import Finding, examine_devices, explain_missing_gpu
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball
from cryoformer_dist.versions import DECISIVE_PACKAGES, installed_version

_STORAGE_BYTES = 32 * 2**20
_IMPORT_SECONDS = 180


def examine(storage: Path, seconds: float) -> Iterator[tuple[str, list[Finding]]]:
    """Title and findings of one part after another.

    Parameters
    ----------
    storage
        Where run directories are to go.
    seconds
        Length of the benchmark; 0 leaves it out.
    """
    yield "devices", list(examine_devices())
    yield "versions", list(examine_versions())
    yield "backends", list(examine_backends())
    yield "storage", [examine_storage(storage)]
    yield "training", list(benchmark_training(seconds)) if seconds else []


def examine_versions() -> Iterator[Finding]:
    """What is installed."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    for package in (*DECISIVE_PACKAGES, "triton", "tinycudann"):
        detail = installed_version(package)
        if detail is None:
            yield Finding(package, "absent", "not installed")
            continue
        built = f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ", built without CUDA"
        yield Finding(package, "ok", detail + built * (package == "torch"))


def examine_backends() -> Iterator[Finding]:
    """What can be named in a run file, and the reason for each that cannot."""
    yield Finding("hash grid: torch", "ok", "CPU and GPU; the default on a CPU")
    yield _examine_triton()
    yield _examine_tinycudann()
    yield Finding("engine: torch", "ok", "needs nothing")
    yield _examine_package("engine: deepspeed", "deepspeed", "pip install deepspeed, or training.engine: torch")
    yield _examine_package("cluster: ray", "ray", "pip install 'ray[data,default,train]', or train --local")


def examine_storage(folder: Path) -> Finding:
    """Whether runs can be kept below a folder: something written there is read back."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    written = os.urandom(_STORAGE_BYTES)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as inside:
            path = Path(inside) / "block"
            start = time.perf_counter()
            with path.open("wb") as stream:
                stream.write(written)
                stream.flush()
                os.fsync(stream.fileno())
            seconds = time.perf_counter() - start
            intact = path.read_bytes() == written
    except OSError as error:
        return Finding(str(place), "broken", f"cannot be written: {error}; name another with --storage FOLDER")
    if not intact:
        return Finding(str(place), "broken", "what was written is not what is read back; name another disk")
    statistics = os.statvfs(place)
    free = statistics.f_bavail * statistics.f_frsize
    return Finding(str(place), "ok", f"{_STORAGE_BYTES / 2**20 / seconds:.0f} MiB/s written, {gib(free)} free")


def benchmark_training(seconds: float) -> Iterator[Finding]:
    """Training steps of the default network on random particles that fill a tenth of the box, for about ``seconds``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = RunConfig(dataset=DatasetConfig(store="none"), training=TrainingConfig(engine="torch"))
    sizes = {32: 16, 64: 16} | ({128: 64} if device.type == "cuda" else {})
    for box, batch in sizes.items():
        name = f"{box} px, {batch} images a step"
        try:
            rate = StepBenchmark.of(config, ball(box, 0.1), batch, device).images_per_second(seconds / len(sizes))
        except (RuntimeError, CryoFormerError) as error:
            yield Finding(name, "broken", f"on {device.type}: {str(error).splitlines()[0]}")
        else:
            yield Finding(name, "ok", f"{rate:.1f} images/s on the {device.type.upper()}, forwards and backwards")


def advise(findings: list[Finding]) -> str:
    """What to do next."""
    broken = [finding.name for finding in findings if finding.state == "broken"]
    if broken:
        return f"fix first: {', '.join(broken)}"
    if torch.cuda.is_available():
        return "cryoformer-dist launch cluster/local.yaml, with workers: {count: 1, gpus: 1} there (one worker per GPU)"
    return "cryoformer-dist launch cluster/local.yaml (on a CPU: boxes up to 64 px, convert --box 64)"


def _examine_triton() -> Finding:
    name = "hash grid: triton"
    if reason := _try_import("triton"):
        return Finding(name, "absent", f"{reason}; it comes with torch's CUDA builds for Linux")
    if not torch.cuda.is_available():
        return Finding(name, "absent", f"triton loads, but its kernels need a GPU: {explain_missing_gpu()}")
    return Finding(name, "ok", "GPU; the default there")


def _examine_tinycudann() -> Finding:
    from cryoformer_dist.model.kernels.encode_tinycudann import install_recipe

    name = "hash grid: tinycudann"
    on_gpu = torch.cuda.is_available()
    reason = _try_import("tinycudann")
    if reason is None and on_gpu:
        return Finding(name, "ok", "GPU")
    major, minor = torch.cuda.get_device_capability() if on_gpu else (9, 0)
    recipe = install_recipe(f"{major}{minor}")
    reasons = [reason or "loads", *([] if on_gpu else [f"needs a GPU: {explain_missing_gpu()}"])]
    return Finding(name, "absent", f"{'; '.join(reasons)}; where there is a GPU and nvcc of torch's CUDA: {recipe}")


def _examine_package(name: str, module: str, remedy: str) -> Finding:
    reason = _try_import(module)
    return Finding(name, "ok", "loads") if reason is None else Finding(name, "broken", f"{reason}; {remedy}")


def _try_import(module: str) -> str | None:
    """Why a package does not load, tried in a process of its own: some end the one that imports them."""
    command = [sys.executable, "-c", f"import {module}"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"import {module} did not end in {_IMPORT_SECONDS} s"
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"import {module} ended with code {ended.returncode}"
