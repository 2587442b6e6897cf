from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny_runs import tiny_settings

from cryoformer_dist.config.cluster import LocalCluster
from cryoformer_dist.errors import ClusterError, ClusterUnreachableWarning, ConfigError
from cryoformer_dist.orchestration import dispatch
from cryoformer_dist.orchestration.dispatch import cluster_of, read_launch_spec, relaunch_spec, submit, sweep_of
from cryoformer_dist.orchestration.launch_registry import find_launch
from cryoformer_dist.orchestration.launch_spec import Handle, JobState, LaunchSpec


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class _Provider:
    """Takes every spec; says what it is told to say of it."""

    answer: JobState | ClusterError = JobState("running")

    def preview(self, spec: LaunchSpec) -> str:
        return ""

    def submit(self, spec: LaunchSpec) -> Handle:
        return {"job": "7"}

    def follow(self, handle: Handle) -> Iterator[str]:
        yield ""

    def state(self, handle: Handle) -> JobState:
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer

    def stop(self, handle: Handle) -> None:
        pass


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> _Provider:
    made = _Provider()
    monkeypatch.setattr(dispatch, "provider_of", lambda cluster: made)
    return made


def _files(folder: Path, cluster: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_settings(Path("s.zarr"), changes)))
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"run": "run.yaml", **cluster}))
    return path


def test_paths_of_a_launch__start_at_the_files_folders(tmp_path: Path) -> None:
    spec = read_launch_spec(_files(tmp_path, {"storage": "runs"}), None, None, False, [])
    assert spec.cluster.storage == str(tmp_path / "runs")
    assert spec.run.dataset.store == str(tmp_path / "s.zarr")
    assert spec.name == "tiny"


def test_a_name_given_is_the_run_s_and_must_be_one(tmp_path: Path) -> None:
    path = _files(tmp_path, {})
    spec = read_launch_spec(path, None, "other", False, ["training.epochs=9"])
    assert (spec.name, spec.run.name, spec.run.training.epochs) == ("other", "other", 9)
    with pytest.raises(ConfigError, match="name"):
        read_launch_spec(path, None, "../other", False, [])


def test_the_mistakes_of_both_files_are_told_together(tmp_path: Path) -> None:
    path = _files(tmp_path, {"provider": "slurm"}, {"training.epochs": 0})
    with pytest.raises(ConfigError) as error:
        read_launch_spec(path, tmp_path / "run.yaml", None, False, [])
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
        read_launch_spec(_files(tmp_path, {"workers": workers}, changes), None, None, False, [])


def test_a_range_of_workers_up_to_one_image_each_is_taken(tmp_path: Path) -> None:
    path = _files(tmp_path, {"workers": {"count": "5..12"}})
    assert read_launch_spec(path, None, None, False, []).cluster.workers.elastic


def test_what_was_launched_can_be_launched_again_to_go_on(tmp_path: Path, provider: _Provider) -> None:
    spec = read_launch_spec(_files(tmp_path, {"storage": "runs"}), None, None, False, [])
    submit(spec)
    launch = find_launch("tiny")
    assert launch.handle == {"job": "7"}
    assert cluster_of(launch) == LocalCluster(run="run.yaml", storage=str(tmp_path / "runs"))
    again = relaunch_spec(launch)
    assert again.resume
    assert (again.run, again.cluster) == (spec.run, spec.cluster)


def test_stopping_waits_for_the_end_but_not_for_ever(
    tmp_path: Path, provider: _Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(read_launch_spec(_files(tmp_path, {"provider": "local"}), None, None, False, []))
    answers = [JobState("running"), JobState("running"), JobState("stopped")]
    monkeypatch.setattr(provider, "state", lambda handle: answers.pop(0))
    monkeypatch.setattr(dispatch, "_POLL_SECONDS", 0.0)
    assert dispatch.stop(find_launch("tiny"))
    assert not answers
    monkeypatch.setattr(dispatch, "_ENDING_SECONDS", 0.0)
    monkeypatch.setattr(provider, "state", lambda handle: JobState("running"))
    assert not dispatch.stop(find_launch("tiny"))


def test_two_drivers_never_share_a_name(tmp_path: Path, provider: _Provider) -> None:
    spec = read_launch_spec(_files(tmp_path, {}), None, None, False, [])
    submit(spec)
    with pytest.raises(ClusterError, match="has not ended"):
        submit(spec)
    provider.answer = JobState("failed", 1)
    submit(spec)


def test_a_cluster_that_is_gone_does_not_hold_its_names(tmp_path: Path, provider: _Provider) -> None:
    spec = read_launch_spec(_files(tmp_path, {}), None, None, False, [])
    submit(spec)
    provider.answer = ClusterError("nobody answers")
    with pytest.warns(ClusterUnreachableWarning, match="nobody answers"):
        submit(spec)


def test_a_cluster_file_may_name_a_sweep_that_is_driven_from_here(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("sweep: sweeps/s.yaml\n")
    found = sweep_of(path)
    assert found is not None
    assert found.file == tmp_path / "sweeps" / "s.yaml"
    assert sweep_of(_files(tmp_path, {})) is None


def test_a_sweep_that_only_a_node_could_drive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("{provider: slurm, cpus_per_node: 2, sweep: s.yaml}\n")
    with pytest.raises(ClusterError, match="on a node of the cluster"):
        sweep_of(path)
