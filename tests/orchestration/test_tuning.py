from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from support.tiny_runs import tiny_config

from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.orchestration import tuning
from cryoformer_dist.orchestration.tuning import OptunaProposals, Past, SweepLog, describe_trial, make_scheduler
from cryoformer_dist.runs.sweep import TrialResult, read_trials
from cryoformer_dist.runs.trial import TrialOutcome, read_outcome, trial_folders, write_outcome

RATE = "training.learning_rates.network"


def _sweep(**values: Any) -> SweepConfig:
    return parse_config({"run": "run.yaml", **values}, SweepConfig, "sweep.yaml")


def _past(name: str, *scores: float) -> TrialResult:
    curve = tuple(
        {"epoch": float(epoch), "difference_map_correlation": score} for epoch, score in enumerate(scores, start=1)
    )
    return TrialResult(Path(name), name, None, 0, {}, "finished", None, {}, curve, len(scores), 4, 0.0, 0.0, 0.0)


def _decisions(scheduler: TrialScheduler, *scores: float) -> list[str]:
    trial = Past("new")
    scheduler.on_trial_add(None, trial)
    points = [{"epoch": n, "difference_map_correlation": score} for n, score in enumerate(scores, start=1)]
    controller = SimpleNamespace(get_live_trials=list)
    return [scheduler.on_trial_result(controller, trial, point) for point in points]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_scheduler_remembers_trials_that_ended_before_an_interruption(kind: str) -> None:
    sweep = _sweep(scheduler={"kind": kind, "grace_epochs": 2, "reduction": 2})
    past = [_past(f"good{number}", 0.5, 0.8, 0.85, 0.9) for number in range(4)]
    assert _decisions(make_scheduler(sweep, 4, past), 0.1, 0.2) == ["CONTINUE", "STOP"]
    assert _decisions(make_scheduler(sweep, 4, past), 0.1, 0.95) == ["CONTINUE", "CONTINUE"]
    assert _decisions(make_scheduler(sweep, 4, []), 0.1, 0.2) == ["CONTINUE", "CONTINUE"]


def test_a_trial_s_last_epoch_is_never_the_scheduler_s_to_end() -> None:
    sweep = _sweep(scheduler={"kind": "asha", "grace_epochs": 1, "reduction": 2})
    assert _decisions(make_scheduler(sweep, 3, []), 0.1, 0.2, 0.3)[-1] == "CONTINUE"


def test_less_is_better_where_the_metric_says_so() -> None:
    sweep = _sweep(metric="loss", scheduler={"kind": "asha", "grace_epochs": 1, "reduction": 2})
    scheduler = make_scheduler(sweep, 4, [])
    for name, loss in (("a", 1.0), ("b", 0.5), ("c", 2.0)):
        scheduler.on_trial_add(None, Past(name))
        decision = scheduler.on_trial_result(None, Past(name), {"epoch": 1, "loss": loss})
    assert decision == "STOP"


def test_population_based_training_varies_what_the_sweep_names() -> None:
    sweep = _sweep(scheduler={"kind": "pbt", "grace_epochs": 2}, parameters={RATE: {"loguniform": [1e-4, 1e-2]}})
    scheduler = make_scheduler(sweep, 4, [])
    assert isinstance(scheduler, PopulationBasedTraining)
    worse, better = (
        Trial("run_trial", config={"trial": describe_trial(Path(name), {RATE: rate})}, stub=True)
        for name, rate in (("worse", 5e-3), ("better", 1e-3))
    )
    for trial in (worse, better):
        scheduler.on_trial_add(SimpleNamespace(search_alg=None), trial)
    config, _ = scheduler._get_new_config(worse, better)
    # Values near the better one's, or drawn anew, in the folder of the worse.
    assert config["trial"]["folder"] == "worse"
    assert config["trial"]["values"][RATE] != 5e-3
    assert 1e-4 * 0.8 <= config["trial"]["values"][RATE] <= 1e-2


def test_a_trial_whose_process_could_not_say_how_it_ended_is_written_down_by_the_driver(tmp_path: Path) -> None:
    said: list[str] = []
    log = SweepLog("loss", said.append)
    trials = {
        name: SimpleNamespace(
            config={"trial": {"folder": str(tmp_path / name)}}, get_error=lambda: RuntimeError("out of memory")
        )
        for name in ("stopped", "lost", "finished")
    }
    for name in trials:
        (tmp_path / name).mkdir()
    write_outcome(tmp_path / "finished", TrialOutcome("finished"))
    log.on_trial_complete(0, [], trials["stopped"])
    log.on_trial_complete(0, [], trials["finished"])
    log.on_trial_error(0, [], trials["lost"])
    assert read_outcome(tmp_path / "stopped") == TrialOutcome("stopped")
    assert read_outcome(tmp_path / "finished") == TrialOutcome("finished")
    assert read_outcome(tmp_path / "lost") == TrialOutcome("failed", "out of memory")
    assert said[-1] == "lost  failed: out of memory"


def test_optuna_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendUnavailableError, match=r"python -m pip install 'cryoformer-dist\[optuna\]'"):
        tuning.load_optuna()


@pytest.fixture
def optuna_sweep() -> SweepConfig:
    pytest.importorskip("optuna")
    return _sweep(search="optuna", samples=4, parameters={RATE: {"loguniform": [1e-4, 1e-2]}}, metric="loss")


def test_every_proposal_becomes_a_trial_s_folder_and_they_end(optuna_sweep: SweepConfig, tmp_path: Path) -> None:
    proposals = OptunaProposals(optuna_sweep, tiny_config(tmp_path), tmp_path)
    rates = []
    for number in range(4):
        told = proposals.suggest(str(number))["trial"]
        rates.append(told["values"][RATE])
        proposals.on_trial_complete(str(number), {"loss": rates[-1]})
    assert proposals.suggest("4") == Searcher.FINISHED
    assert len(trial_folders(tmp_path)) == len(set(rates)) == 4
    assert [trial.parameters[RATE] for trial in read_trials(tmp_path)] == pytest.approx(sorted(rates))


def test_proposals_go_on_with_trials_that_were_interrupted(optuna_sweep: SweepConfig, tmp_path: Path) -> None:
    base = tiny_config(tmp_path)
    first = OptunaProposals(optuna_sweep, base, tmp_path)
    begun = [first.suggest(str(number))["trial"]["folder"] for number in range(3)]
    write_outcome(Path(begun[0]), TrialOutcome("failed", "no memory"))
    again = OptunaProposals(optuna_sweep, base, tmp_path)
    assert {again.suggest(name)["trial"]["folder"] for name in "ab"} == set(begun[1:])
    assert again.suggest("c")["trial"]["folder"] not in begun
    assert again.suggest("d") == Searcher.FINISHED
