import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.judged_runs import POSE, POSE_ERRORS, STATE, judged
from support.rotating_blobs import MANIFEST
from support.tiny_runs import tiny_config
from support.training_records import training_record

from cryoformer_dist.analysis.results import report_run
from cryoformer_dist.analysis.sweep_report import write_sweep_report
from cryoformer_dist.config.loading import dump_config, load_config, parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import Trial, plan_trials
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.manifest import write_manifest
from cryoformer_dist.runs.scores import ScoresAgainstTruth, read_scores, write_scores
from cryoformer_dist.runs.training_log import write_training_log
from cryoformer_dist.runs.trial import TrialOutcome, append_epoch, write_outcome, write_trial

RATE = "training.learning_rates.network"
ABLATION: dict[str, Any] = {
    "variants": {"full": {}, "no_motion": {"model.latent.form": "none"}, "broken": {"training.weight_decay": 1}},
    "seeds": [0, 1],
}


def _scores(score: float) -> ScoresAgainstTruth:
    states = tuple(
        replace(STATE, resolution_angstrom=resolution, consensus_resolution_angstrom=2 * resolution)
        for resolution in (8.0 / score, 9.0, 10.0)
    )
    errors = replace(
        POSE_ERRORS, squared_frobenius_mean=0.1 / score, angle_deg_median=3.0, shift_box_fraction_mean=0.01 / score
    )
    pose = replace(POSE, before=replace(errors, squared_frobenius_mean=9.0), after=errors)
    return judged(score, score / 4, states=states, pose=pose)


def _finish(folder: Path, trial: Trial, score: float, epochs: int, of: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        training_record(step=5 * n, steps=5 * of, epochs=of, loss=1 / (n + score), seconds=1.0)
        for n in range(1, epochs + 1)
    ]
    write_training_log(folder, records)
    for number in range(1, epochs + 1):
        told = {"difference_map_correlation": score * number / of, "seconds": 1800.0, "cpu_seconds": 900.0}
        append_epoch(folder, {"epoch": number, "epochs": of, **told, "gpu_seconds": 0.0})
    (folder / "config.yaml").write_text(dump_config(trial.config))
    write_manifest(folder, MANIFEST)
    if epochs == of:
        write_scores(folder, _scores(score))
    write_outcome(folder, TrialOutcome("finished" if epochs == of else "stopped"))


def _sweep(folder: Path, values: dict[str, Any]) -> list[tuple[Path, Trial]]:
    config = parse_config({"name": "small", "run": "run.yaml", **values}, SweepConfig, "sweep.yaml")
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(dump_config(config))
    base = tiny_config(folder / "particles.zarr", {"training.epochs": 4})
    found = [(folder / "trials" / trial.name, trial) for trial in plan_trials(config, base, "sweep.yaml")]
    for place, trial in found:
        write_trial(place, trial)
    return found


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "small"
    scores = {"full": 0.8, "no_motion": 0.3}
    for place, trial in _sweep(folder, ABLATION):
        assert trial.variant is not None
        if trial.variant in scores:
            _finish(place, trial, scores[trial.variant] + 0.05 * trial.seed, 4)
        else:
            write_outcome(place, TrialOutcome("failed", "worker 0 failed: out of memory <here>"))
    write_sweep_report(folder)
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "small"
    parameters = {RATE: {"loguniform": [1e-4, 1e-2]}, "model.decoder.queries": {"choice": [4, 8]}}
    values = {"parameters": parameters, "samples": 8, "scheduler": "asha"}
    for place, trial in _sweep(folder, values):
        score = 0.9 - 0.4 * abs(np.log10(float(trial.parameters[RATE] or 1)) + 3)
        _finish(place, trial, score, 4 if score > 0.7 else 1)
    write_sweep_report(folder)
    return folder


def _rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(newline="") as stream:
        return {row["trial"]: row for row in csv.DictReader(stream)}


def test_numbers_are_those_of_the_runs_own_metrics(ablation: Path) -> None:
    rows = _rows(ablation)
    for seed in (0, 1):
        scores = read_scores(ablation / "trials" / f"full-seed{seed}")
        row = rows[f"full-seed{seed}"]
        assert float(row["difference_map_correlation"]) == scores.maps.difference_map_correlation
        assert float(row["rotation_error"]) == scores.pose.after.squared_frobenius_mean
        assert float(row["rotation_error_deg"]) == scores.pose.after.angle_deg_median
        assert float(row["shift_error"]) == scores.pose.after.shift_box_fraction_mean
        assert float(row["resolution_angstrom"]) == np.median([state.resolution_angstrom for state in scores.states])
        assert (float(row["hours"]), float(row["cpu_hours"])) == (2.0, 1.0)


def test_the_ablation_table_has_a_row_per_variant_in_the_order_of_the_file(ablation: Path) -> None:
    text = (ablation / "report.md").read_text()
    head, _, *rows = text[text.index("| Model") :].split("\n\n")[0].split("\n")
    pose_errors = "rotation error | median rotation error, ° | translation error"
    assert head == f"| Model | resolution, Å | {pose_errors} | dCC | seeds |"
    assert [row.split(" | ")[0] for row in rows] == ["| full", "| no motion", "| broken"]
    assert "0.825\u00a0±\u00a00.035 | 2 of 2 |" in rows[0]
    assert rows[2] == "| broken | – | – | – | – | – | 0 of 2 |"


def test_the_headline_says_whether_the_full_model_is_best(ablation: Path, tmp_path: Path) -> None:
    assert "The full model is the best row" in (ablation / "report.md").read_text()
    for place, trial in _sweep(tmp_path / "small", {"variants": {"full": {}, "other": {}}}):
        _finish(place, trial, 0.5 if trial.variant == "full" else 0.6, 4)
    text = write_sweep_report(tmp_path / "small").with_suffix(".md").read_text()
    assert "**other beats the full model.**" in text
    assert "with one seed each, nobody knows how much of that is chance" in text


def test_nobody_beats_a_full_model_that_has_not_been_trained(tmp_path: Path) -> None:
    for place, trial in _sweep(tmp_path / "small", {"variants": {"full": {}, "other": {}}}):
        if trial.variant == "other":
            _finish(place, trial, 0.6, 4)
    text = write_sweep_report(tmp_path / "small").with_suffix(".md").read_text()
    assert "**Best: other.**" in text
    assert "1 trial not ended yet." in text


def test_failed_trials_are_told_with_their_error(ablation: Path) -> None:
    assert _rows(ablation)["broken-seed1"]["error"] == "worker 0 failed: out of memory <here>"
    page = (ablation / "report.html").read_text()
    assert "out of memory &lt;here&gt;" in page
    assert "| broken-seed0 | 0 of 4 | worker 0 failed: out of memory <here> |" in (ablation / "report.md").read_text()


def test_the_best_run_s_file_is_ready_to_launch(ablation: Path) -> None:
    path = ablation / "best.yaml"
    assert path.read_text().startswith(f"# cryoformer-dist launch cluster/local.yaml --run {path}\n")
    best = load_config(path, RunConfig)
    assert best.name == "small-best"
    assert best.training == load_config(ablation / "trials" / "full-seed1" / "config.yaml", RunConfig).training


def test_stopped_trials_are_told_with_the_epochs_they_used(search: Path) -> None:
    rows = _rows(search).values()
    assert {(row["state"], row["epochs"], row["epochs_planned"]) for row in rows} == {
        ("finished", "4", "4"),
        ("stopped", "1", "4"),
    }
    # Their last score is that of the epoch they came to.
    assert all(row["difference_map_correlation"] for row in rows)


def test_the_page_is_whole_loads_nothing_and_shows_each_part_there_is(search: Path, ablation: Path) -> None:
    for folder, parts in ((search, ("Parameters", "Epochs used")), (ablation, ("Ablation", "Failed trials"))):
        page = (folder / "report.html").read_text()
        for part in (*parts, "Ranking", "Spread over seeds", "Learning curves", "Trials", "What to do next"):
            assert f">{part}</h" in page
        assert "<script" not in page
        assert re.findall(r'(?:src|href)="(?!#|trials/)', page) == []
        assert page.count("<svg") == page.count("</svg>") >= 2


def test_the_page_leads_to_the_runs_own_reports(ablation: Path) -> None:
    (ablation / "trials" / "full-seed0" / "report.html").write_text("")
    page = report_run(ablation).read_text()
    assert 'href="trials/full-seed0/report.html"' in page
    assert 'href="trials/full-seed1/report.html"' not in page


def test_made_again_from_the_runs_it_says_the_same(search: Path) -> None:
    files = ("report.html", "report.md", "report.csv", "best.yaml")
    before = [(search / name).read_bytes() for name in files]
    report_run(search)
    assert [(search / name).read_bytes() for name in files] == before


def test_a_sweep_that_has_just_begun_has_a_report_too(tmp_path: Path) -> None:
    _sweep(tmp_path / "small", {"seeds": [0, 1]})
    text = write_sweep_report(tmp_path / "small").with_suffix(".md").read_text()
    assert "**Nothing to rank.** No trial has finished yet." in text
    assert not (tmp_path / "small" / "best.yaml").exists()


def test_another_folder_is_not_taken_for_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not the folder of a sweep \(no sweep\.yaml\)"):
        write_sweep_report(tmp_path)


def test_a_run_trained_elsewhere_counts_with_the_time_of_its_training(tmp_path: Path) -> None:
    ((place, trial),) = _sweep(tmp_path / "small", {})
    _finish(place, trial, 0.5, 4)
    (place / "epochs.jsonl").unlink()
    write_sweep_report(tmp_path / "small")
    assert float(_rows(tmp_path / "small")["seed0"]["hours"]) == 1 / 3600
    assert yaml.safe_load((tmp_path / "small" / "best.yaml").read_text())["name"] == "small-best"
