import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ray_nodes import ray_nodes
from support.tiny_runs import tiny_settings

from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.sweep import TrialResult, read_trials

pytestmark = pytest.mark.slow

# Slow enough to be killed in, and for one trial to be ahead of another.
CHANGES = {"training.epochs": 4, "training.report_every_steps": 2, "training.checkpoint_every_steps": 2}
BROKEN = {"broken": {"training.global_batch_size": 100}}


def _sweep_file(folder: Path, store: Path, changes: dict[str, Any] | None = None, **values: Any) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_settings(store, CHANGES | (changes or {}))))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"run": "run.yaml", "storage": "runs", **values}, sort_keys=False))
    return path


def _command(sweep: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "cryoformer_dist.cli", "tune", str(sweep), *options]


def _environment() -> dict[str, str]:
    # As urgent as the rest of the machine: Ray's workers are nice to others unless told otherwise.
    return os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def _run(sweep: Path, *options: str) -> str:
    done = subprocess.run(
        _command(sweep, *options), capture_output=True, text=True, timeout=1200, env=_environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _results(sweep: Path, name: str) -> dict[str, TrialResult]:
    return {trial.name: trial for trial in read_trials(sweep.parent / "runs" / name)}


def _table(sweep: Path, name: str) -> dict[str, Any]:
    """All but the time it took."""
    return {
        trial.name: (trial.state, trial.error, trial.scores, trial.epochs) for trial in _results(sweep, name).values()
    }


def test_two_trials_at_a_time_on_two_cpus_end_a_failed_one_with_its_error_and_a_killed_sweep_resumes_to_the_same_table(
    tiny_store: Path, tmp_path: Path
) -> None:
    variants = {"full": {}, "none": {"model.latent.form": "none"}, **BROKEN}
    sweep = _sweep_file(tmp_path, tiny_store, variants=variants, concurrent=2)
    said = _run(sweep, "--set", "name=whole")
    assert "2 at a time" in said
    whole = _table(sweep, "whole")
    assert {name: row[0] for name, row in whole.items()} == {
        "full-seed0": "finished",
        "none-seed0": "finished",
        "broken-seed0": "failed",
    }
    assert "global_batch_size: 100 exceeds the 64 particles" in whole["broken-seed0"][1]

    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            _command(sweep, "--set", "name=killed"), stdout=log, stderr=log, env=_environment(), start_new_session=True
        ) as process,
    ):
        epochs = tmp_path / "runs" / "killed" / "trials" / "full-seed0" / "epochs.jsonl"
        while not epochs.is_file():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert _table(sweep, "killed")["full-seed0"][0] == "unfinished"
    _run(sweep, "--set", "name=killed", "--resume")
    assert _table(sweep, "killed") == whole


def test_asha_stops_bad_trials_early(tiny_store: Path, tmp_path: Path) -> None:
    # Rates that learn nothing at all, after one that does.
    parameters = {"training.learning_rates.network": {"grid": [3e-3, 1e-12, 1e-13]}}
    others = {"training.learning_rates.hash_grid": 1e-12, "model.latent.form": "none", "training.epochs": 12}
    sweep = _sweep_file(
        tmp_path,
        tiny_store,
        others,
        name="asha",
        metric="loss",
        concurrent=1,
        parameters=parameters,
        scheduler={"kind": "asha", "grace_epochs": 2, "reduction": 2},
    )
    _run(sweep)
    first, *bad = _results(sweep, "asha").values()
    states = {trial.name: (trial.state, trial.epochs) for trial in (first, *bad)}
    good = states.pop("network_0.003-seed0")
    assert good == ("finished", 12)
    assert all(state == "stopped" and epochs < 12 for state, epochs in states.values()), states


def test_trials_of_several_workers_end_without_a_hang(tiny_store: Path, tmp_path: Path) -> None:
    sweep = _sweep_file(
        tmp_path, tiny_store, {"dataset.loader": "ray"}, name="nested", workers={"count": 2, "cpus": 0.4}
    )
    _run(sweep)
    (trial,) = _results(sweep, "nested").values()
    assert (trial.state, trial.epochs) == ("finished", 4)


def test_population_based_training_takes_over_and_ends(tiny_store: Path, tmp_path: Path) -> None:
    sweep = _sweep_file(
        tmp_path,
        tiny_store,
        name="pbt",
        metric="loss",
        parameters={"training.learning_rates.network": {"grid": [3e-3, 1e-12]}},
        scheduler={"kind": "pbt", "grace_epochs": 1},
    )
    _run(sweep)
    assert {trial.state for trial in _results(sweep, "pbt").values()} == {"finished"}
    # Which is the better one after an epoch, on a set so small, is chance.
    names = {"network_0.003-seed0", "network_1e-12-seed0"}
    for path in (tmp_path / "runs" / "pbt" / "trials").glob("*/takeovers.jsonl"):
        taken = json.loads(path.read_text().splitlines()[-1])
        assert taken["from"] in names - {path.parent.name}
        now = load_run(path.parent)[0].training.learning_rates.network
        assert now == taken["values"]["training.learning_rates.network"]
    assert list((tmp_path / "runs" / "pbt" / "trials").glob("*/takeovers.jsonl"))


def test_optuna_proposes_every_trial(tiny_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    parameters = {"training.learning_rates.network": {"loguniform": [1e-4, 1e-2]}}
    sweep = _sweep_file(
        tmp_path, tiny_store, name="optuna", metric="loss", search="optuna", samples=3, parameters=parameters
    )
    _run(sweep)
    assert [trial.state for trial in _results(sweep, "optuna").values()] == ["finished"] * 3


ON_A_CLUSTER = """
import sys
from pathlib import Path
from cryoformer_dist.config.cluster import ExistingCluster
from cryoformer_dist.orchestration.environment import prepare_environment
prepare_environment()
from cryoformer_dist.cli.terminal import make_display
from cryoformer_dist.orchestration.sweep import carry_out_sweep, read_sweep_request
sweep, address, token, storage = sys.argv[1:]
cluster = ExistingCluster(provider="existing", address=address, token_file=token, storage=storage)
print(carry_out_sweep(read_sweep_request(Path(sweep), [], cluster), make_display()))
"""


def test_trials_spread_over_the_nodes_of_a_cluster(tiny_store: Path, tmp_path: Path) -> None:
    sweep = _sweep_file(tmp_path, tiny_store, name="spread", seeds=[0, 1, 2])
    trials = tmp_path / "runs" / "spread" / "trials"
    environment = {name: value for name, value in _environment().items() if name != "RAY_AUTH_TOKEN"}
    with ray_nodes(3, cpus=1) as cluster, (tmp_path / "log").open("w") as log:
        place = (cluster.address, str(cluster.token_file), str(tmp_path / "runs"))
        command = [sys.executable, "-c", ON_A_CLUSTER, str(sweep), *place]
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
            # No node has room for two, so three at work are on three nodes.
            while len(list(trials.glob("*/lock"))) < 3:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert list(trials.glob("*/outcome.json")) == []
                time.sleep(0.05)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert {trial.state for trial in _results(sweep, "spread").values()} == {"finished"}
