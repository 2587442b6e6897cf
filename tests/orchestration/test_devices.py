import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cryoformer_dist.orchestration import devices
from cryoformer_dist.orchestration.devices import Finding, examine_devices, examine_driver, has_kernels

VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (root@host)\nGCC version: 13\n"


@pytest.fixture
def with_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], list[Finding]]:
    """What is found of a driver by a torch that was built for some CUDA."""

    def examine(driver: str, cuda: str | None) -> list[Finding]:
        (tmp_path / "version").write_text(VERSION.format(driver))
        monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return list(examine_driver())

    return examine


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "said"),
    [
        ("580.65.06", "13.0", "ok", "580.65.06, for torch built for CUDA 13.0"),
        (
            "575.57.08",
            "13.0",
            "broken",
            "580.65 or newer; update the driver, or pip install torch built for CUDA 12",
        ),
        ("525.60.13", "12.8", "ok", "525.60.13"),
        (
            "470.256.02",
            "12.8",
            "broken",
            "525.60 or newer; update the driver, or pip install torch built for CUDA 11",
        ),
        ("390.157", "12.8", "broken", "needs 525.60 or newer; update the driver"),
        ("580.65.06", None, "absent", "torch is built without CUDA, so no GPU is used: pip install torch"),
    ],
)
def test_the_driver_is_held_against_the_cuda_that_torch_was_built_for(
    with_driver: Callable[[str, str | None], list[Finding]], driver: str, cuda: str | None, state: str, said: str
) -> None:
    (finding,) = with_driver(driver, cuda)
    assert (finding.name, finding.state) == ("driver", state)
    assert said in finding.detail


def test_a_machine_without_a_driver_has_no_word_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "absent")
    assert list(examine_driver()) == []


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((12, 1), ["sm_90a", "sm_120"], True),
        ((8, 0), ["compute_90"], False),
    ],
)
def test_kernels_fit_their_family_and_newer_cards_by_translation(
    capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    assert has_kernels(capability, built) is fits


@pytest.mark.parametrize(("mebibytes", "state"), [(64, "absent"), (8192, "ok")])
def test_small_shared_memory_of_a_container_is_told_with_what_enlarges_it(
    mebibytes: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=mebibytes * 256, f_frsize=4096))
    (finding,) = devices.examine_shared_memory()
    assert finding.state == state
    assert ("--shm-size" in finding.detail) == (state == "absent")


def _pretend_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], apart: set[tuple[int, int]]) -> None:
    """Three of them."""
    pretended = {
        "device_count": lambda: 3,
        "is_available": lambda: True,
        "mem_get_info": lambda number: (2**34, 2**35),
        "get_device_capability": lambda number: capability,
        "get_device_name": lambda number: "Pretended",
        "get_arch_list": lambda: ["sm_80", "sm_90"],
        "can_device_access_peer": lambda one, other: (one, other) not in apart,
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)


def test_gpus_tell_of_nccl_and_of_those_that_do_not_reach_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpus(monkeypatch, (9, 0), {(2, 0)})
    found = {finding.name: finding for finding in examine_devices()}
    assert {found[f"GPU {number}"].state for number in range(3)} == {"ok"}
    assert (found["NCCL"].state, found["NCCL"].detail) == ("ok", "2.27.5")
    assert found["peer access"].state == "absent"
    assert "not between 0-2:" in found["peer access"].detail
    _pretend_gpus(monkeypatch, (7, 0), set())
    found = {finding.name: finding for finding in examine_devices()}
    assert found["GPU 0"].state == "broken"
    assert "no kernels for it (sm_80 sm_90)" in found["GPU 0"].detail
    assert found["peer access"].state == "ok"


def test_a_machine_without_gpus_says_how_a_container_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    last = list(examine_devices())[-1]
    assert (last.name, last.state) == ("GPU", "absent")
    assert "--gpus all" in last.detail
