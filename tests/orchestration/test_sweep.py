from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from support.tiny_runs import tiny_settings

from cryoformer_dist.config.cluster import LocalCluster, WorkersConfig
from cryoformer_dist.errors import ClusterError, ConfigError
from cryoformer_dist.orchestration import sweep
from cryoformer_dist.orchestration.sweep import SweepRequest, count_trials_at_once, read_sweep_request
from cryoformer_dist.runs.trial import TrialOutcome, read_outcome, trial_folders, write_outcome


def _file(folder: Path, store: Path, **values: Any) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_settings(store)))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "rates", "run": "run.yaml", "storage": "runs", **values}))
    return path


def test_paths_of_a_sweep_start_at_its_own_folder(tiny_store: Path, tmp_path: Path) -> None:
    request = read_sweep_request(_file(tmp_path, tiny_store, seeds=[0, 1]), ["name=other"])
    assert request.folder == tmp_path / "runs" / "other"
    assert [trial.name for trial in request.trials] == ["seed0", "seed1"]
    assert isinstance(request.cluster, LocalCluster)


def test_on_a_cluster_its_storage_and_workers_take_the_place_of_the_sweep_s(tiny_store: Path, tmp_path: Path) -> None:
    cluster = LocalCluster(storage="/shared", workers=WorkersConfig(count=3), max_failures=7)
    request = read_sweep_request(_file(tmp_path, tiny_store), [], cluster)
    assert request.folder == Path("/shared/rates")
    assert (request.sweep.workers.count, request.sweep.max_failures) == (3, 7)


def test_a_metric_that_needs_a_truth_is_refused_where_there_is_none(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, tiny_store)
    read_sweep_request(path, [])
    monkeypatch.setattr(sweep, "find_truth_beside", lambda source: None)
    with pytest.raises(ConfigError, match="difference_map_correlation needs a truth"):
        read_sweep_request(path, [])
    read_sweep_request(path, ["metric=loss"])


def test_a_sweep_that_is_there_is_gone_on_with_only_when_asked(tiny_store: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, tiny_store)
    request = read_sweep_request(path, [])
    sweep._lay_out(request)
    (folder,) = trial_folders(request.folder)
    with pytest.raises(ConfigError, match="--resume goes on with it"):
        sweep._lay_out(request)
    write_outcome(folder, TrialOutcome("failed", "no memory"))
    sweep._lay_out(read_sweep_request(path, ["seeds=[0, 1]"], resume=True))
    assert read_outcome(folder) == TrialOutcome("failed", "no memory")
    assert len(trial_folders(request.folder)) == 2
    sweep._lay_out(read_sweep_request(path, ["seeds=[0, 1]"], resume=True, retry_failed=True))
    assert read_outcome(folder) is None


def test_a_trial_that_was_begun_with_other_values_is_not_gone_on_with(tiny_store: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, tiny_store)
    sweep._lay_out(read_sweep_request(path, []))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings(tiny_store, {"training.epochs": 9})))
    with pytest.raises(ConfigError, match=r"trials/seed0: was begun with other values"):
        sweep._lay_out(read_sweep_request(path, [], resume=True))


@pytest.mark.parametrize(
    ("resources", "workers", "concurrent", "slots"),
    [
        ({"CPU": 2.0}, {}, None, 2),
        ({"CPU": 2.0}, {}, 1, 1),
        ({"CPU": 2.0}, {"count": 2}, None, 1),
        ({"CPU": 8.0}, {"count": 2}, None, 4),
        ({"CPU": 8.0, "GPU": 3.0}, {"gpus": 1}, None, 3),
        ({"CPU": 8.0, "GPU": 1.0}, {"gpus": 0.5}, 8, 2),
    ],
)
def test_as_many_trials_run_at_a_time_as_fit(
    resources: dict[str, float],
    workers: dict[str, Any],
    concurrent: int | None,
    slots: int,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    path = _file(tmp_path, tiny_store, workers=workers, concurrent=concurrent)
    assert count_trials_at_once(read_sweep_request(path, []).sweep) == slots


def test_a_trial_that_fits_nowhere_is_refused_instead_of_waiting_for_ever(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    request: SweepRequest = read_sweep_request(_file(tmp_path, tiny_store, workers={"count": 2}), [])
    with pytest.raises(ClusterError, match=r"a trial needs 1\.8 CPUs and 0 GPUs, the cluster has 1 and 0"):
        count_trials_at_once(request.sweep)
