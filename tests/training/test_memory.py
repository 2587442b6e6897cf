from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny_runs import tiny_config

from cryoformer_dist.config.schema import DatasetConfig, RunConfig, TrainingConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.model.cryoformer import CryoFormer
from cryoformer_dist.training import objectives
from cryoformer_dist.training.memory import (
    MemoryPlan,
    Workload,
    parameter_count,
    plan_memory,
    refuse_too_large,
    settle_batch_size,
    settle_loader,
)

GIB = 2**30
WORK = Workload(box=128, points=200_000, rows=50_000, trained=50_000, shard_rows=512)


def _config(**training: Any) -> RunConfig:
    return RunConfig(dataset=DatasetConfig(store="s"), training=TrainingConfig(**training))


def _peak(
    work: Workload, batch: int = 16, on_gpu: bool = False, config: RunConfig | None = None, workers: int = 1
) -> int:
    return plan_memory(config or _config(), work, batch, WorkerMemory(10**15, workers, on_gpu)).peak


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("copies", [1, 4])
def test_more_points_particles_and_pixels_need_more(on_gpu: bool, copies: int) -> None:
    config = _config(jitter_lattices=copies)
    least = _peak(WORK, 16, on_gpu, config)
    assert _peak(replace(WORK, points=220_000), 16, on_gpu, config) > least
    assert _peak(WORK, 256, on_gpu, config) > least
    assert _peak(replace(WORK, box=256), 256, on_gpu, config) > _peak(WORK, 256, on_gpu, config)
    assert _peak(replace(WORK, rows=10**6), 16, on_gpu, config) > least
    focused, memory = _config(jitter_lattices=copies, focus_mask="m.mrc"), WorkerMemory(10**15, 1, on_gpu)
    steps = [plan_memory(each, WORK, 256, memory).step["points"] for each in (config, focused)]
    assert steps[1] == steps[0] + 8 * 256 * WORK.points


def test_a_lattice_too_large_for_operators_needs_less_than_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    work = replace(WORK, box=256, points=1_700_000)
    afresh = _peak(work)
    monkeypatch.setattr(objectives, "_KEPT_OPERATORS_BYTES", 2**60)
    assert _peak(work) > 5 * afresh


def test_counting_parameters_leaves_the_random_numbers_alone() -> None:
    changes = {"model.latent.form": "encoder", "model.pose.form": "encoder"}
    model = tiny_config("s", changes).model  # type: ignore[arg-type]
    expected = sum(parameter.numel() for parameter in CryoFormer(model, 16).parameters())
    state = torch.get_rng_state()
    assert parameter_count(model, 16) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
def test_auto_takes_the_largest_batch_that_fits(on_gpu: bool, workers: int) -> None:
    config = _config(global_batch_size="auto")
    # Too many points for operators, whose making would be the peak.
    work = replace(WORK, points=600_000)
    between = sum(_peak(work, batch, on_gpu, workers=workers) for batch in (8, 16)) // 2
    memory = WorkerMemory(between, workers, on_gpu)
    settled = settle_batch_size(config, work, memory)
    assert settled.training.global_batch_size == 8 * workers
    refuse_too_large(settled, work, memory)
    doubled = _config(global_batch_size=16 * workers)
    with pytest.raises(ConfigError, match=rf"set training\.global_batch_size to {8 * workers} or to auto"):
        refuse_too_large(doubled, work, memory)


@pytest.mark.parametrize(("trained", "workers", "size"), [(10**6, 1, 64), (10**6, 4, 256), (4000, 1, 32), (50, 2, 2)])
def test_auto_is_bounded_by_what_still_learns_well(trained: int, workers: int, size: int) -> None:
    memory = WorkerMemory(10**15, workers)
    settled = settle_batch_size(_config(global_batch_size="auto"), replace(WORK, trained=trained), memory)
    assert settled.training.global_batch_size == size


def test_a_number_stays_as_it_is() -> None:
    assert settle_batch_size(_config(global_batch_size=48), WORK, WorkerMemory(10**15)).training.global_batch_size == 48


@pytest.mark.parametrize("size", ["auto", 64])
def test_what_cannot_fit_is_refused_with_numbers_and_a_way_out(size: Any) -> None:
    sphere = replace(WORK, box=256, points=8_600_000)
    config = _config(global_batch_size=size, occupancy="sphere")
    config = config.model_copy(update={"dataset": DatasetConfig(store="s", loader="resident")})
    with pytest.raises(ConfigError) as refused:
        settle_batch_size(config, sphere, WorkerMemory(GIB // 2))
    message = str(refused.value)
    for part in ("has 0.5 GiB", "box 256, 8600000 points, 51% of the box", "resident images 6.1 GiB", "points"):
        assert part in message
    for way_out in ("dataset.loader to local", "training.occupancy to data", "--box"):
        assert way_out in message
    assert "global_batch_size to" not in message


@pytest.mark.parametrize(("workers", "share"), [(1, 50_000), (4, 12_500), (3, 16_667)])
def test_resident_images_are_a_worker_s_share(workers: int, share: int) -> None:
    config = _config().model_copy(update={"dataset": DatasetConfig(store="s", loader="resident")})
    plan = plan_memory(config, WORK, 8, WorkerMemory(10**15, workers))
    assert plan.kept["resident images"] == 2 * 128**2 * share


def test_images_that_a_gpu_has_no_room_for_stay_in_main_memory() -> None:
    config = _config().model_copy(update={"dataset": DatasetConfig(store="s", loader="resident")})
    images = 2 * 128**2 * 50_000
    kept = [
        plan_memory(config, WORK, 8, WorkerMemory(size, on_gpu=True)).kept["resident images"]
        for size in (2 * images, 2 * images - 1)
    ]
    assert kept == [images, 0]


@pytest.mark.parametrize(
    ("loader", "room", "settled"), [("auto", 1, "resident"), ("auto", -1, "ray"), ("local", 1, "local")]
)
def test_images_stay_where_a_run_and_they_fit_together(loader: Any, room: int, settled: str) -> None:
    config = _config(global_batch_size=8).model_copy(update={"dataset": DatasetConfig(store="s", loader=loader)})
    kept = config.model_copy(update={"dataset": DatasetConfig(store="s", loader="resident")})
    needed = plan_memory(kept, WORK, 8, WorkerMemory(10**15)).peak
    assert settle_loader(config, WORK, WorkerMemory(needed + room)).dataset.loader == settled


def _on_gpu(config: RunConfig, workers: int = 1, batch: int = 64) -> MemoryPlan:
    return plan_memory(config, WORK, batch, WorkerMemory(10**15, workers, on_gpu=True))


@pytest.mark.parametrize(("form", "bytes_each"), [("given", 4), ("table", 8)])
def test_a_gpu_is_charged_for_what_its_kernels_keep(form: str, bytes_each: int) -> None:
    config = tiny_config("s", {"model.pose.form": form, "model.decoder.density_width": 32})  # type: ignore[arg-type]
    by_torch = tiny_config("s", {"model.pose.form": form, "model.kernels": "torch"})  # type: ignore[arg-type]
    large, larger = (_on_gpu(config, batch=batch).step["points"] for batch in (1024, 2048))
    # Beside the splat's bytes of each point and image there is nothing that grows with both.
    assert (larger - large) / 1024 <= bytes_each * WORK.points + 2**17
    assert (larger - large) / 1024 >= 4 * WORK.points
    assert _on_gpu(by_torch).step["points"] > 10 * _on_gpu(config).step["points"]


def test_a_gpu_holds_what_is_no_tensor_too() -> None:
    one, two = _on_gpu(_config()), _on_gpu(_config(), workers=2)
    assert one.kept["CUDA context"] > 2**29
    assert (one.kept["NCCL"], two.kept["NCCL"] > 2**29) == (0, True)
    assert "CUDA context" not in plan_memory(_config(), WORK, 16, WorkerMemory(10**15)).kept
