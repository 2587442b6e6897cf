"""Ray Tune's part of a sweep: who chooses values, who ends bad trials, and word of what happens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.sweep import Scalar, SweepConfig, Values
from cryoformer_dist.config.trials import make_trial
from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.orchestration.trial import TunedTrial
from cryoformer_dist.runs.sweep import TrialResult, read_trials
from cryoformer_dist.runs.trial import TrialOutcome, folder_of_trial, read_outcome, write_outcome, write_trial

_FOR_EVER = 10**9


@dataclass(frozen=True, slots=True)
class Past:
    """A trial that ended before this process began, as far as a scheduler asks."""

    trial_id: str


class _Takeovers(PopulationBasedTraining):
    """Population based training whose trials keep their own folder when they take over another's values."""

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["trial"]["folder"] = trial.config["trial"]["folder"]
        return config, operations


def make_scheduler(sweep: SweepConfig, epochs: int, past: list[TrialResult]) -> TrialScheduler:
    """Who ends bad trials, knowing what earlier trials of the sweep came to.

    Parameters
    ----------
    sweep
        Sweep.
    epochs
        Of a whole trial.
    past
        Trials that ended before.
    """
    options = sweep.scheduler
    if options.kind == "none":
        return FIFOScheduler()
    if options.kind == "pbt":
        return _Takeovers(
            time_attr="epoch",
            metric=sweep.metric,
            mode=sweep.direction,
            perturbation_interval=options.grace_epochs,
            hyperparam_mutations={
                "trial": {"values": {key: _make_domain(values) for key, values in sweep.parameters.items()}}
            },
            log_config=False,
            require_attrs=False,
        )
    common = {"time_attr": "epoch", "metric": sweep.metric, "mode": sweep.direction}
    scheduler: TrialScheduler
    if options.kind == "asha":
        # Beyond the last epoch: a trial that gets there ends by itself, with its results.
        grace = min(options.grace_epochs, epochs)
        scheduler = ASHAScheduler(**common, max_t=epochs + 1, grace_period=grace, reduction_factor=options.reduction)
    else:
        # No slices of time: a trial that is paused for another loses what it learned since its checkpoint.
        scheduler = MedianStoppingRule(
            **common, grace_period=options.grace_epochs, min_samples_required=2, min_time_slice=_FOR_EVER
        )
    # The median rule decides nothing, and keeps the result, when told that a trial is complete.
    tell = scheduler.on_trial_result if options.kind == "asha" else scheduler.on_trial_complete
    for trial in past:
        stand_in = Past(trial.name)
        scheduler.on_trial_add(None, stand_in)
        for point in trial.curve:
            if sweep.metric in point:
                tell(None, stand_in, dict(point))
    return scheduler


class OptunaProposals(Searcher):
    """Values proposed by Optuna's tree-structured Parzen estimator; each becomes a trial's folder.

    Parameters
    ----------
    sweep
        With ``search: optuna``.
    base
        Run that all trials start from.
    folder
        Of the sweep; trials that are there are known, those that have not ended are the first to go on.

    Raises
    ------
    BackendUnavailableError
        If Optuna is not installed.
    """

    def __init__(self, sweep: SweepConfig, base: RunConfig, folder: Path) -> None:
        super().__init__(metric=sweep.metric, mode=sweep.direction)
        optuna = load_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep, self._base, self._folder = sweep, base, folder
        self._space = {key: _make_distribution(optuna, values) for key, values in sweep.parameters.items()}
        known = read_trials(folder)
        # Another seed when a sweep goes on: the first draws have been made.
        sampler = optuna.samplers.TPESampler(seed=len(known))
        direction = {"max": "maximize", "min": "minimize"}[sweep.direction]
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        self._asked: dict[str, Any] = {}
        self._left = sweep.samples - len(known)
        self._unfinished = [trial for trial in known if trial.state == "unfinished"]
        for result in known:
            if result.state == "finished":
                values, score = dict(result.parameters), result.scores[sweep.metric]
                done = optuna.trial.create_trial(params=values, distributions=self._space, value=score)
                self._study.add_trial(done)

    def suggest(self, trial_id: str) -> Any:
        """See `ray.tune.search.Searcher`."""
        if self._unfinished:
            known = self._unfinished.pop(0)
            self._study.enqueue_trial(dict(known.parameters))
            self._asked[trial_id] = self._study.ask(self._space)
            return {"trial": describe_trial(known.folder, known.parameters)}
        while self._left:
            self._left -= 1
            asked = self._study.ask(self._space)
            trial = make_trial(self._base, asked.params, self._sweep.seeds[0])
            folder = folder_of_trial(self._folder, trial.name)
            if not folder.exists():
                self._asked[trial_id] = asked
                write_trial(folder, trial)
                return {"trial": describe_trial(folder, trial.parameters)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `ray.tune.search.Searcher`."""
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        if error or self._sweep.metric not in (result or {}):
            self._study.tell(asked, state=load_optuna().trial.TrialState.FAIL)
        else:
            assert result is not None
            self._study.tell(asked, result[self._sweep.metric])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders are the state."""


def load_optuna() -> Any:
    """Optuna.

    Raises
    ------
    BackendUnavailableError
        If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise BackendUnavailableError(
            "search: optuna needs the package optuna, which is not installed: "
            "python -m pip install 'cryoformer-dist[optuna]'"
        ) from error
    return optuna


def describe_trial(folder: Path, values: Mapping[str, Scalar]) -> TunedTrial:
    """A trial as Tune passes it around."""
    return {"folder": str(folder), "values": dict(values)}


class SweepLog(TrialProgressCallback):
    """Writes down how trials ended that could not do so themselves, and tells of all.

    It takes the place of Tune's own, which prints.

    Parameters
    ----------
    metric
        Shown beside each epoch.
    say
        Takes one line.
    """

    def __init__(self, metric: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self._metric, self._say = metric, say

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `ray.tune.Callback`."""
        name = _find_folder(trial).name
        self._say(f"{name}  epoch {result['epoch']}  {self._metric} {result[self._metric]:.4g}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        folder = _find_folder(trial)
        if read_outcome(folder) is None:
            write_outcome(folder, TrialOutcome("stopped"))
        self._tell_end(folder)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        folder = _find_folder(trial)
        if read_outcome(folder) is None:
            error = trial.get_error()
            write_outcome(folder, TrialOutcome("failed", str(error) if error else "its process was lost"))
        self._tell_end(folder)

    def _tell_end(self, folder: Path) -> None:
        outcome = read_outcome(folder)
        assert outcome is not None
        first = f": {outcome.error.splitlines()[0]}" if outcome.error else ""
        self._say(f"{folder.name}  {outcome.state}{first}")


def _find_folder(trial: Any) -> Path:
    return Path(trial.config["trial"]["folder"])


def _make_domain(values: Values) -> Any:
    """Where population based training draws from anew, and what it steps along."""
    if values.uniform is not None:
        return tune.uniform(*values.uniform)
    if values.loguniform is not None:
        return tune.loguniform(*values.loguniform)
    return list(values.examples)


def _make_distribution(optuna: Any, values: Values) -> Any:
    if values.choice is not None:
        return optuna.distributions.CategoricalDistribution(values.choice)
    low, high = values.uniform or values.loguniform or (0.0, 0.0)
    return optuna.distributions.FloatDistribution(low, high, log=values.loguniform is not None)
