from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny_runs import tiny_config, tiny_settings

from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster
from cryoformer_dist.errors import ClusterError, ConfigError
from cryoformer_dist.orchestration import request as request_module
from cryoformer_dist.orchestration.config_files import read_cluster_file
from cryoformer_dist.orchestration.request import ClusterSweep, RunRequest, read_request


def _files(folder: Path, cluster: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_settings(Path("s.zarr"), changes)))
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"run": "run.yaml", **cluster}))
    return path


def test_paths_of_a_request_start_at_the_files_folders(tmp_path: Path) -> None:
    request = read_request(_files(tmp_path, {"storage": "runs"}), None, None, False, [])
    assert request.cluster.storage == str(tmp_path / "runs")
    assert request.config.dataset.store == str(tmp_path / "s.zarr")
    assert request.name == "tiny"


def test_a_name_given_is_the_run_s_and_must_be_one(tmp_path: Path) -> None:
    path = _files(tmp_path, {})
    request = read_request(path, None, "other", False, ["training.epochs=9"])
    assert (request.name, request.config.name, request.config.training.epochs) == ("other", "other", 9)
    with pytest.raises(ConfigError, match="name"):
        read_request(path, None, "../other", False, [])


@pytest.mark.parametrize("name", ["../other", "/other", "a/b", "..", "", "a\n", ".hidden", "-x"])
def test_a_run_directory_lies_in_the_storage(name: str) -> None:
    with pytest.raises(ConfigError, match="would not lie in the storage"):
        RunRequest(name, tiny_config(Path("s.zarr")), LocalCluster(storage="/shared/runs"))


def test_the_run_directory_follows_from_storage_and_name() -> None:
    cluster, config = LocalCluster(storage="/shared/runs"), tiny_config(Path("s.zarr"))
    assert RunRequest("other", config, cluster).home == Path("/shared/runs/other")


def test_a_node_is_told_where_the_two_files_are_and_whether_to_go_on() -> None:
    request = RunRequest("tiny", tiny_config(Path("s.zarr")), LocalCluster(), resume=True)
    assert set(request.files) == {"cluster.yaml", "run.yaml"}
    command = request.make_command("/f", "python")
    assert command[3:] == ["drive", "/f/cluster.yaml", "/f/run.yaml", "--name", "tiny", "--resume"]


def test_the_cluster_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def count(path: Path) -> tuple[ClusterConfig, Path | None]:
        read.append(path)
        return read_cluster_file(path)

    monkeypatch.setattr(request_module, "read_cluster_file", count)
    path = _files(tmp_path, {})
    read_request(path, None, None, False, [])
    assert read == [path]


def test_the_mistakes_of_both_files_are_told_together(tmp_path: Path) -> None:
    path = _files(tmp_path, {"provider": "slurm"}, {"training.epochs": 0})
    with pytest.raises(ConfigError) as error:
        read_request(path, tmp_path / "run.yaml", None, False, [])
    assert "cpus_per_node: is required" in str(error.value)
    assert "training.epochs" in str(error.value)


@pytest.mark.parametrize(
    ("workers", "changes", "said"),
    [
        ({"count": 5}, {}, "12 does not divide by 5 workers"),
        ({"count": "2..13"}, {}, "12 leaves nothing for some of 13 workers"),
        ({"count": "1..3"}, {"training.global_batch_size": "auto"}, "auto needs a fixed number of workers"),
        ({"count": "1..3"}, {"training.zero_stage": 1}, "zero_stage: 1 binds a checkpoint"),
    ],
)
def test_what_neither_file_can_know_alone_is_told_before_anything_starts(
    workers: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_request(_files(tmp_path, {"workers": workers}, changes), None, None, False, [])


def test_a_range_of_workers_up_to_one_image_each_is_taken(tmp_path: Path) -> None:
    path = _files(tmp_path, {"workers": {"count": "5..12"}})
    assert read_request(path, None, None, False, []).cluster.workers.elastic


def test_a_cluster_file_may_name_a_sweep_that_is_driven_from_here(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("sweep: sweeps/s.yaml\n")
    found = read_request(path, None, None, False, [])
    assert isinstance(found, ClusterSweep)
    assert found.file == tmp_path / "sweeps" / "s.yaml"
    run = _files(tmp_path, {}).with_name("run.yaml")
    assert isinstance(read_request(path, run, None, False, []), RunRequest)


def test_a_sweep_that_only_a_node_could_drive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("{provider: slurm, cpus_per_node: 2, sweep: s.yaml}\n")
    with pytest.raises(ClusterError, match="on a node of the cluster"):
        read_request(path, None, None, False, [])
