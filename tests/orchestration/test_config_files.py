from pathlib import Path

import pytest
import yaml
from support.tiny_runs import tiny_settings

from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file


def test_paths_of_a_run_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    simulate = {"source": {"kind": "models", "path": "models/states.npz"}}
    changes = {"dataset.simulate": simulate, "training.occupancy": "data", "training.mask": "own.mrc"}
    changes["dataset.selection"] = "picked.json"
    settings = tiny_settings(Path("../data/s.zarr"), changes)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(folder)
    config = read_run_file(Path("run.yaml"), ["training.epochs=7"])
    assert config.dataset.store == str(tmp_path / "data" / "s.zarr")
    assert config.dataset.simulate is not None
    assert config.dataset.simulate.source.path == folder / "models" / "states.npz"  # type: ignore[union-attr]
    assert config.dataset.selection == str(folder / "picked.json")
    assert config.training.epochs == 7
    assert (config.training.mask, config.training.focus_mask) == (str(folder / "own.mrc"), None)


def test_paths_of_a_cluster_file_start_at_its_folder_and_absolute_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "c.yaml").write_text("run: ../configs/run.yaml\nstorage: ../runs\n")
    cluster, run = read_cluster_file(folder / "c.yaml")
    assert (cluster.storage, run) == (str(tmp_path / "runs"), tmp_path / "configs" / "run.yaml")
    (folder / "c.yaml").write_text("storage: /somewhere/else\n")
    cluster, run = read_cluster_file(folder / "c.yaml")
    assert (cluster.storage, run) == ("/somewhere/else", None)


def test_urls_of_run_and_cluster_files_stay_as_they_are(tmp_path: Path) -> None:
    run_file, cluster_file = tmp_path / "run.yaml", tmp_path / "cluster.yaml"
    run_file.write_text(yaml.safe_dump({"dataset": {"store": "s3://bucket/sets/x.zarr"}}))
    cluster_file.write_text(yaml.safe_dump({"storage": "s3://bucket/runs"}))
    assert read_run_file(run_file, []).dataset.store == "s3://bucket/sets/x.zarr"
    assert read_cluster_file(cluster_file)[0].storage == "s3://bucket/runs"
