import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from support.tiny_runs import MEMORY, Listener, tiny_config
from support.training_records import training_record

from cryoformer_dist.config.loading import load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import BatchSource, ParticleBatch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ImagesElsewhereWarning, StoreError, TrainingError
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.orchestration import worker
from cryoformer_dist.orchestration.worker import (
    RayReporter,
    WorkerArguments,
    choose_home,
    choose_loader,
    run_worker,
    train_alone,
)
from cryoformer_dist.runs import directory
from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.layout import RAY_POINTER
from cryoformer_dist.runs.results import read_made_results
from cryoformer_dist.runs.stage_progress import read_stage_progress
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import prepare_run


@pytest.fixture(autouse=True)
def _a_process_of_many_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    # The process group and denormal numbers are the command line's own process's business.
    monkeypatch.setattr(worker, "join_world_of_one", lambda device: None)
    monkeypatch.setattr(worker, "set_threads", lambda count: None)


def _train(tiny_store: Path, run: Path, **changes: Any) -> Listener:
    store, listener = ParticleStore.open(tiny_store), Listener()
    prepare_run(tiny_config(tiny_store, changes), store, run, resume=False)
    train_alone(WorkingFolder.on_disk(run), load_run(run)[0], store, listener, threads=1, on_gpu=False)
    return listener


def test_training_without_ray_tells_every_report(tiny_store: Path, tmp_path: Path) -> None:
    told = _train(tiny_store, tmp_path).records
    assert told == read_training_log(tmp_path)
    assert told[-1].step == told[-1].steps == 11
    assert not ray.is_initialized()


def test_training_without_ray_makes_the_maps_and_tells_of_its_stages(tiny_store: Path, tmp_path: Path) -> None:
    told = _train(tiny_store, tmp_path)
    made = read_made_results(tmp_path)
    assert made is not None
    assert made.checkpoint_step == told.records[-1].step
    assert all((tmp_path / name).is_file() for name in made.files)
    assert list(dict.fromkeys(stage.stage for stage in told.stages)) == ["maps", "flexible regions"]
    assert [stage.stage for stage in read_stage_progress(tmp_path)] == ["maps", "flexible regions"]


def test_resident_images_train_to_the_same_losses(tiny_store: Path, tmp_path: Path) -> None:
    losses = []
    for name in ("local", "resident"):
        changes = {"dataset.loader": name, "training.epochs": 1}
        losses.append([record.loss for record in _train(tiny_store, tmp_path / name, **changes).records])
    assert losses[0] == losses[1]


def test_the_loader_is_the_configuration_s_and_needs_ray_only_where_there_is_ray(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_by(name: str) -> BatchSource:
        def batches(order: object, rank: int, world: int, size: int) -> Iterator[ParticleBatch]:
            raise AssertionError(name)

        return batches

    sources = {name: read_by(name) for name in ("ray_batches", "local_batches", "resident_batches")}
    for name, source in sources.items():
        monkeypatch.setattr(worker, name, lambda *_, source=source: source)

    def choose(name: str, with_ray: bool) -> BatchSource:
        load = choose_loader(torch.device("cpu"), lambda: None, with_ray)
        return load(tiny_config(store.path, {"dataset.loader": name}), store)

    assert choose("ray", with_ray=True) is sources["ray_batches"]
    assert choose("ray", with_ray=False) is choose("local", with_ray=True) is sources["local_batches"]
    assert choose("resident", with_ray=True) is choose("resident", with_ray=False) is sources["resident_batches"]


@pytest.mark.parametrize(
    ("gpu_free", "main_free", "home"),
    [(200, 0, "cuda"), (199, 101, "cpu"), (199, 99, None)],
)
def test_images_stay_on_the_device_else_in_main_memory_else_nowhere(
    monkeypatch: pytest.MonkeyPatch, gpu_free: int, main_free: int, home: str | None
) -> None:
    def free(on_gpu: bool, workers_per_device: int = 1) -> WorkerMemory:
        return WorkerMemory(gpu_free if on_gpu else main_free // workers_per_device, on_gpu=on_gpu)

    monkeypatch.setattr(worker, "measure_worker_memory", free)
    found = choose_home(100, torch.device("cuda"), ranks_here=1)
    assert found == (None if home is None else torch.device(home))
    # Two ranks share main memory.
    assert choose_home(100, torch.device("cuda"), 2) == (torch.device("cuda") if home == "cuda" else None)
    assert choose_home(100, torch.device("cpu"), 1) == torch.device("cpu")


@pytest.mark.parametrize(("home", "where"), [("cpu", "stay in main memory"), (None, "are read ahead of every batch")])
def test_images_that_stay_elsewhere_than_on_the_gpu_are_told_of(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch, home: str | None, where: str
) -> None:
    found = None if home is None else torch.device(home)
    monkeypatch.setattr(worker, "choose_home", lambda *_: found)
    for source in ("local_batches", "resident_batches"):
        monkeypatch.setattr(worker, source, lambda *_: iter)
    config = tiny_config(store.path, {"dataset.loader": "resident"})
    with pytest.warns(ImagesElsewhereWarning, match=rf"images, .* GiB, leave no room on its GPU and {where}"):
        choose_loader(torch.device("cuda"), lambda: None)(config, store)
    monkeypatch.setattr(worker, "choose_home", lambda *_: torch.device("cuda"))
    choose_loader(torch.device("cuda"), lambda: None)(config, store)


@pytest.fixture
def arguments(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerArguments:
    """A prepared run, and this process in the place of a Ray Train worker."""
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train, "report", lambda *arguments, **named: None)
    monkeypatch.setattr(worker, "publishing", lambda name, rank: nullcontext(lambda record: None))
    monkeypatch.setattr(worker.faulthandler, "dump_traceback_later", lambda seconds, exit: None)
    prepare_run(tiny_config(tiny_store), ParticleStore.open(tiny_store), tmp_path, resume=False)
    return WorkerArguments(str(tmp_path), threads=1, silence_seconds=60.0, memory=MEMORY)


def test_a_worker_reads_the_run_directory_once_and_trains_it_to_its_end(
    arguments: WorkerArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def count(path: Path, schema: type[RunConfig]) -> RunConfig:
        read.append(path)
        return load_config(path, schema)

    monkeypatch.setattr(directory, "load_config", count)
    assert run_worker(arguments) is None
    run = Path(arguments.home)
    assert read == [run / "config.yaml"]
    assert read_training_log(run)[-1].step == 11
    made = read_made_results(run)
    assert made is not None
    assert made.checkpoint_step == 11


def test_a_worker_that_is_started_again_after_its_maps_makes_none(
    arguments: WorkerArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_worker(arguments) is None
    run = Path(arguments.home)
    before = {path: path.stat().st_mtime_ns for path in (run / "volumes").iterdir()}
    assert run_worker(arguments) is None
    assert {path: path.stat().st_mtime_ns for path in (run / "volumes").iterdir()} == before


class Ray:
    """Stands in for `ray.train.report`: where the checkpoints lie that it was pointed to."""

    def __init__(self) -> None:
        self.pointers: list[str] = []

    def report(
        self, record: dict[str, float], checkpoint: ray.train.Checkpoint, checkpoint_upload_mode: CheckpointUploadMode
    ) -> None:
        # Any other mode takes as long as Ray does.
        assert checkpoint_upload_mode is CheckpointUploadMode.ASYNC
        with checkpoint.as_directory() as folder:
            self.pointers.append(json.loads((Path(folder) / RAY_POINTER).read_text())["checkpoint"])


@pytest.fixture
def told_ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    told = Ray()
    monkeypatch.setattr(ray.train, "report", told.report)
    monkeypatch.setattr(worker.faulthandler, "dump_traceback_later", lambda seconds, exit: None)
    return told


def test_ray_is_told_of_checkpoints_only_no_faster_than_it_takes_them(
    told_ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    reporter = RayReporter(tmp_path, 60.0, lambda record: None)
    for step in range(1, 101):
        now += 0.25
        reporter.report(training_record(step=step), tmp_path / "checkpoints" / str(step) if step % 5 == 0 else None)
    assert told_ray.pointers == ["checkpoints/5", "checkpoints/45", "checkpoints/85"]


def test_the_leader_s_clock_decides_for_all_ranks_what_ray_is_told(
    told_ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RayReporter(tmp_path, 60.0, lambda record: None)
    leader_says = iter([True, True, False])
    monkeypatch.setattr(worker, "gather_objects", lambda mine: [next(leader_says), mine])
    for step in (1, 2, 3):
        reporter.report(training_record(step=step), tmp_path / str(step))
    assert told_ray.pointers == ["1", "2"]


def test_ray_knows_the_last_checkpoint_when_the_worker_returns(arguments: WorkerArguments, told_ray: Ray) -> None:
    assert run_worker(arguments) is None
    assert told_ray.pointers == ["checkpoints/step-00000004", "checkpoints/step-00000011"]


def test_what_no_restart_would_fix_is_returned_and_all_else_raised(
    arguments: WorkerArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (TrainingError("the loss is not a number"), StoreError("s.zarr: chunk 3 is damaged")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(worker, "train_rank", fail)
        if isinstance(error, TrainingError):
            assert run_worker(arguments) is error
        else:
            with pytest.raises(StoreError, match="damaged"):
                run_worker(arguments)
