from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.analysis import report
from cryoformer_dist.analysis.results import evaluate_run
from cryoformer_dist.config.loading import dump_config, parse_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import Trial, plan_trials
from cryoformer_dist.orchestration import trial, worker
from cryoformer_dist.runs.scores import read_scores
from cryoformer_dist.runs.sweep import pick_headline_scores, read_result
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.runs.trial import TrialOutcome, read_epochs, read_outcome, write_trial

# Few particles stand for each state of so small a set.
pytestmark = pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.SmallSampleWarning")


class Killed(BaseException):
    """What ends a process outright, as far as a test can."""


class Tune:
    """Hears what trials tell; dies at the report ``dies_at``."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.dies_at: int | None = None

    def report(self, metrics: dict[str, Any]) -> None:
        self.told.append(metrics)
        if len(self.told) == self.dies_at:
            raise Killed

    def get_checkpoint(self) -> None:
        return None


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Tune:
    # The process group, threads and denormal numbers are the business of a trial's own process.
    monkeypatch.setattr(worker, "join_world_of_one", lambda device: None)
    monkeypatch.setattr(worker, "set_threads", lambda count: None)
    monkeypatch.setattr(trial.torch, "set_num_threads", lambda count: None)
    tune = Tune()
    monkeypatch.setattr(trial, "tune", tune)
    return tune


def _lay_out(folder: Path, store: Path, changes: dict[str, Any] | None = None, **sweep: Any) -> list[Trial]:
    config = parse_config({"run": "run.yaml", **sweep}, SweepConfig, "sweep.yaml")
    trials = plan_trials(config, tiny_config(store, changes), "sweep.yaml")
    for planned in trials:
        write_trial(folder / "trials" / planned.name, planned)
    (folder / "sweep.yaml").write_text(dump_config(config))
    return trials


def _run(folder: Path, name: str) -> Path:
    place = folder / "trials" / name
    trial.run_trial({"trial": {"folder": str(place), "values": {}}, "workers_per_device": 1})
    return place


def test_a_trial_is_an_ordinary_run_with_its_results_and_tells_of_each_epoch_once(
    tiny_store: Path, tmp_path: Path, heard: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_LARGE", 40)
    monkeypatch.setattr(report, "_SMALL", 40)
    _lay_out(tmp_path, tiny_store, {"training.epochs": 3})
    run = _run(tmp_path, "seed0")
    assert read_outcome(run) == TrialOutcome("finished")
    assert {"manifest.json", "metrics.json", "report.html", "volumes"} <= {path.name for path in run.iterdir()}
    assert [told["epoch"] for told in heard.told] == [1, 2, 3]
    # The last word is that of the run's own verdict.
    judged = pick_headline_scores(read_scores(run))
    assert heard.told[-1]["difference_map_correlation"] == judged["difference_map_correlation"]
    result = read_result(run)
    assert (result.state, result.epochs, result.of) == ("finished", 3, 3)
    assert result.scores == judged | {"loss": result.curve[-1]["loss"]}
    assert result.cpu_hours > 0


def test_a_trial_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    tiny_store: Path, tmp_path: Path, heard: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the results, what the reports need, in a tenth of the time.
    monkeypatch.setattr(trial, "make_results", lambda working: evaluate_run(working.folder))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        _lay_out(tmp_path / name, tiny_store, {"training.epochs": 3}, scheduler="asha")
    whole = _run(tmp_path / "whole", "seed0")
    undisturbed, heard.told, heard.dies_at = heard.told, [], 2
    with pytest.raises(Killed):
        _run(tmp_path / "killed", "seed0")
    heard.told, heard.dies_at = [], None
    killed = _run(tmp_path / "killed", "seed0")
    # A scheduler that was killed with it hears of all epochs again.
    assert heard.told == undisturbed
    assert [record.loss for record in read_training_log(killed)] == [record.loss for record in read_training_log(whole)]
    assert read_result(killed).scores == read_result(whole).scores


def test_a_trial_that_has_ended_is_not_run_again(tiny_store: Path, tmp_path: Path, heard: Tune) -> None:
    _lay_out(tmp_path, tiny_store, {"training.global_batch_size": 100})
    run = _run(tmp_path, "seed0")
    outcome = read_outcome(run)
    assert outcome is not None
    assert outcome.state == "failed"
    assert "global_batch_size: 100 exceeds the 64 particles" in str(outcome.error)
    before = (run / "outcome.json").stat().st_mtime_ns
    _run(tmp_path, "seed0")
    assert (run / "outcome.json").stat().st_mtime_ns == before
    assert heard.told == []


def test_what_trials_have_in_common_is_prepared_once(
    tiny_store: Path, tmp_path: Path, heard: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"training.warmup_steps": {"grid": [1, 2]}}
    planned = _lay_out(tmp_path, tiny_store, {"training.epochs": 1}, parameters=parameters, seeds=[0, 1], metric="loss")
    monkeypatch.setattr(trial, "make_results", lambda working: None)
    runs = [_run(tmp_path, each.name) for each in planned]
    assert len(list((tmp_path / "prepared").glob("*/manifest.json"))) == 2
    assert {(run / "occupancy.mrc").read_bytes() for run in runs} == {(runs[0] / "occupancy.mrc").read_bytes()}
    assert [told["epoch"] for told in heard.told] == [1] * 4
    assert {"difference_map_correlation"} & set(read_epochs(runs[0])[0]) == set()
