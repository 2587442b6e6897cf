from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, tiny_settings

from cryoformer_dist.analysis import results
from cryoformer_dist.config.cluster import LocalCluster, WorkersConfig
from cryoformer_dist.config.loading import load_config, parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data import convert
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, StoreError, StoreNotFoundError
from cryoformer_dist.orchestration import pipeline, worker
from cryoformer_dist.orchestration.display import Display
from cryoformer_dist.orchestration.pipeline import run_pipeline
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.runs import directory
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log

if TYPE_CHECKING:
    from upath import UPath

SIMULATED = {
    "dataset.simulate": {"particles": 24, "box_size": 16},
    "training.epochs": 1,
}


class _Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.titles: list[str] = []
        self.records: list[TrainingRecord] = []

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        self.titles.append(title)
        yield lambda done, total: None

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        def heard(stage: str, done: int, total: int) -> None:
            if stage not in self.titles:
                self.titles.append(stage)

        yield heard

    @property
    def display(self) -> Display:
        return Display(self.lines.append, self.progress, self.stages, self.records.append)


def _prepared_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop short of training and results: they have tests of their own."""
    monkeypatch.setattr(pipeline, "train_alone", lambda *arguments: None)
    monkeypatch.setattr(results, "make_results", lambda working: working.folder / "report.html")


def _request(config: RunConfig, run: Path) -> RunRequest:
    return RunRequest(run.name, config, LocalCluster(storage=str(run.parent)), without_ray=True)


def test_a_run_makes_the_particles_it_asks_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _prepared_only(monkeypatch)
    config = tiny_config(tmp_path / "data" / "s.zarr", SIMULATED)
    first, second = _Heard(), _Heard()
    assert run_pipeline(_request(config, tmp_path / "run"), first.display) == tmp_path / "run" / "report.html"
    assert first.titles[:2] == ["simulating particles", "converting to Zarr"]
    assert len(ParticleStore.open(tmp_path / "data" / "s.zarr")) == 24
    assert (tmp_path / "data" / "particles" / "truth" / "truth.npz").is_file()
    run_pipeline(_request(config, tmp_path / "other"), second.display)
    assert second.titles == ["verdict, report"]


@pytest.mark.parametrize("store", ["s.zarr", "beside.zarr"])
def test_particles_of_another_recipe_are_not_taken_for_those_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    _prepared_only(monkeypatch)
    run_pipeline(_request(tiny_config(tmp_path / "s.zarr", SIMULATED), tmp_path / "run"), _Heard().display)
    other = {**SIMULATED, "dataset.simulate": {"particles": 24, "box_size": 16, "snr": 0.5, "seed": 1}}
    with pytest.raises(
        ConfigError, match=r"another recipe \(seed was 0, is 1; snr was 0\.1, is 0\.5\).*folder of its own"
    ):
        run_pipeline(_request(tiny_config(tmp_path / store, other), tmp_path / "second"), _Heard().display)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("cut", ["simulate", "convert"])
def test_a_launch_cut_while_it_made_the_particles_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    _prepared_only(monkeypatch)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    config = tiny_config(tmp_path / "s.zarr", SIMULATED)
    with monkeypatch.context() as patch:
        if cut == "simulate":
            patch.setattr("cryoformer_dist.simulation.particle_set._write_particles", fail)
        else:
            patch.setattr(convert, "convert_shard", fail)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(_request(config, tmp_path / "run"), _Heard().display)
    run_pipeline(_request(config, tmp_path / "run"), _Heard().display)
    store = ParticleStore.open(tmp_path / "s.zarr")
    store.verify()
    assert sorted(store.particles().source_row) == list(range(24))


@pytest.mark.parametrize(("there", "asked", "told"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_a_gpu_that_would_stay_idle_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch, there: bool, asked: float, told: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    heard = _Heard()
    pipeline.tell_of_idle_gpu(LocalCluster(workers=WorkersConfig(count=1, gpus=asked)), heard.display)
    assert [line.startswith("GPU") for line in heard.lines] == [True] * told


def test_training_without_ray_tells_every_record_and_reads_the_run_directory_once(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process group and denormal numbers are the command line's own process's business.
    monkeypatch.setattr(worker, "join_world_of_one", lambda device: None)
    monkeypatch.setattr(worker, "set_threads", lambda count: None)
    monkeypatch.setattr(results, "make_results", lambda working: working.folder / "report.html")
    read: list[Path] = []

    def count(path: Path, schema: type[RunConfig]) -> RunConfig:
        read.append(path)
        return load_config(path, schema)

    monkeypatch.setattr(directory, "load_config", count)
    heard, run = _Heard(), tmp_path / "run"
    report = run_pipeline(_request(tiny_config(tiny_store), run), heard.display)
    assert heard.records == read_training_log(run)
    assert read == [run / "config.yaml"]
    assert heard.lines == [f"run directory  {run}", f"report         {report}"]


def test_particles_that_are_not_to_be_made_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"s\.zarr"):
        run_pipeline(_request(tiny_config(tmp_path / "s.zarr"), tmp_path / "run"), _Heard().display)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_store_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a particle store"):
        run_pipeline(_request(tiny_config(tmp_path / "s.zarr", SIMULATED), tmp_path / "run"), _Heard().display)
    assert [path.name for path in (tmp_path / "s.zarr").iterdir()] == ["mine.txt"]


def test_particles_without_poses_are_refused_with_where_to_get_them(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ParticleStore.open(tiny_store)
    store.attributes = replace(store.attributes, has_poses=False)
    monkeypatch.setattr(pipeline.ParticleStore, "open", lambda path: store)
    with pytest.raises(ConfigError, match=r"no poses.*RELION or cryoSPARC"):
        run_pipeline(_request(tiny_config(tiny_store), tmp_path / "run"), _Heard().display)
    assert np.all(store.particles().rotation.shape == (64, 3, 3))


def test_simulating_into_an_object_store_is_refused_with_the_way_there(
    object_store: Callable[[], "UPath"], tmp_path: Path
) -> None:
    store = object_store() / "x.zarr"
    settings = tiny_settings(tmp_path, SIMULATED)
    settings["dataset"]["store"] = str(store)
    config = parse_config(settings, RunConfig, "tiny")
    with pytest.raises(ConfigError, match=rf"simulate -o FOLDER.*convert FOLDER/particles\.star -o {store}"):
        run_pipeline(_request(config, tmp_path / "run"), _Heard().display)
