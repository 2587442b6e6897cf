from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from support.tiny_runs import tiny_config, tiny_settings

from cryoformer_dist.analysis import results
from cryoformer_dist.config.cluster import LocalCluster, WorkersConfig
from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data import convert
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, StoreError, StoreNotFoundError
from cryoformer_dist.orchestration import steps
from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file
from cryoformer_dist.orchestration.pipeline import run_pipeline
from cryoformer_dist.orchestration.request import Console, Request

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
        self.records: list[dict[str, Any]] = []

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
    def console(self) -> Console:
        return Console(self.lines.append, self.progress, self.stages, self.records.append)


def _prepared_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop short of training and results: they have tests of their own."""
    monkeypatch.setattr(steps, "train_locally", lambda run, on_record: None)
    monkeypatch.setattr(results, "make_results", lambda run: run / "report.html")


def _request(config: RunConfig, run: Path, resume: bool = False) -> Request:
    return Request(config, None, run, resume)


def test_paths_of_a_run_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    simulate = {"source": {"kind": "models", "path": "models/states.npz"}}
    settings = tiny_settings(Path("../data/s.zarr"), {"dataset.simulate": simulate})
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(folder)
    config = read_run_file(Path("run.yaml"), ["training.epochs=7"])
    assert config.dataset.store == str(tmp_path / "data" / "s.zarr")
    assert config.dataset.simulate is not None
    assert config.dataset.simulate.source.path == folder / "models" / "states.npz"  # type: ignore[union-attr]
    assert config.training.epochs == 7


def test_paths_of_a_cluster_file_start_at_its_folder_and_absolute_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "c.yaml").write_text("run: ../configs/run.yaml\nstorage: ../runs\n")
    cluster, run = read_cluster_file(folder / "c.yaml")
    assert (cluster.storage, run) == (str(tmp_path / "runs"), tmp_path / "configs" / "run.yaml")
    (folder / "c.yaml").write_text("storage: /somewhere/else\n")
    cluster, run = read_cluster_file(folder / "c.yaml")
    assert (cluster.storage, run) == ("/somewhere/else", None)


def test_a_run_makes_the_particles_it_asks_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _prepared_only(monkeypatch)
    config = tiny_config(tmp_path / "data" / "s.zarr", SIMULATED)
    first, second = _Heard(), _Heard()
    assert run_pipeline(_request(config, tmp_path / "run"), first.console) == tmp_path / "run" / "report.html"
    assert first.titles[:3] == ["simulating particles", "converting to Zarr", "consensus map"]
    assert len(ParticleStore.open(tmp_path / "data" / "s.zarr")) == 24
    assert (tmp_path / "data" / "particles" / "truth" / "truth.npz").is_file()
    run_pipeline(_request(config, tmp_path / "other"), second.console)
    assert second.titles[0] == "consensus map"


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
            patch.setattr("cryoformer_dist.simulation.simulate._write_particles", fail)
        else:
            patch.setattr(convert, "convert_shard", fail)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(_request(config, tmp_path / "run"), _Heard().console)
    run_pipeline(_request(config, tmp_path / "run"), _Heard().console)
    store = ParticleStore.open(tmp_path / "s.zarr")
    store.verify()
    assert sorted(store.particles().source_row) == list(range(24))


@pytest.mark.parametrize(("there", "asked", "told"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_a_gpu_that_would_stay_idle_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch, there: bool, asked: float, told: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    heard = _Heard()
    steps.tell_of_idle_gpu(LocalCluster(workers=WorkersConfig(count=1, gpus=asked)), heard.console)
    assert [line.startswith("GPU") for line in heard.lines] == [True] * told


def test_particles_that_are_not_to_be_made_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"s\.zarr"):
        run_pipeline(_request(tiny_config(tmp_path / "s.zarr"), tmp_path / "run"), _Heard().console)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_store_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a particle store"):
        run_pipeline(_request(tiny_config(tmp_path / "s.zarr", SIMULATED), tmp_path / "run"), _Heard().console)
    assert [path.name for path in (tmp_path / "s.zarr").iterdir()] == ["mine.txt"]


def test_particles_without_poses_are_refused_with_where_to_get_them(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ParticleStore.open(tiny_store)
    store.attributes["has_poses"] = False
    monkeypatch.setattr(steps.ParticleStore, "open", lambda path: store)
    with pytest.raises(ConfigError, match=r"no poses.*RELION or cryoSPARC"):
        run_pipeline(_request(tiny_config(tiny_store), tmp_path / "run"), _Heard().console)
    assert np.all(store.particles().rotation.shape == (64, 3, 3))


def test_urls_of_run_and_cluster_files_stay_as_they_are(tmp_path: Path) -> None:
    run_file, cluster_file = tmp_path / "run.yaml", tmp_path / "cluster.yaml"
    run_file.write_text(yaml.safe_dump({"dataset": {"store": "s3://bucket/sets/x.zarr"}}))
    cluster_file.write_text(yaml.safe_dump({"storage": "s3://bucket/runs"}))
    assert read_run_file(run_file, []).dataset.store == "s3://bucket/sets/x.zarr"
    assert read_cluster_file(cluster_file)[0].storage == "s3://bucket/runs"


def test_simulating_into_an_object_store_is_refused_with_the_way_there(
    object_store: Callable[[], "UPath"], tmp_path: Path
) -> None:
    store = object_store() / "x.zarr"
    settings = tiny_settings(tmp_path, SIMULATED)
    settings["dataset"]["store"] = str(store)
    config = parse_config(settings, RunConfig, "tiny")
    with pytest.raises(ConfigError, match=rf"simulate -o FOLDER.*convert FOLDER/particles\.star -o {store}"):
        run_pipeline(_request(config, tmp_path / "run"), _Heard().console)
