from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.judged_runs import ALONE, POSE, POSE_ERRORS, STATE, judged
from support.tiny_runs import tiny_config
from support.training_records import training_record

from cryoformer_dist.config.loading import dump_config, parse_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import make_trial
from cryoformer_dist.errors import ConfigError, CryoFormerError
from cryoformer_dist.runs.scores import write_scores
from cryoformer_dist.runs.sweep import is_sweep, pick_headline_scores, read_result, read_sweep
from cryoformer_dist.runs.training_log import write_training_log
from cryoformer_dist.runs.trial import TrialOutcome, append_epoch, write_outcome, write_trial


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Two of four epochs of a trial."""
    write_trial(tmp_path, make_trial(tiny_config(tmp_path / "particles.zarr", {"training.epochs": 4}), {}, 5))
    records = [training_record(step=5 * n, steps=20, epochs=4, loss=1 / n, seconds=1800.0 * n) for n in (1, 2)]
    write_training_log(tmp_path, records)
    return tmp_path


def test_a_sweep_is_known_by_its_file_and_read_from_it(tmp_path: Path) -> None:
    assert not is_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"not the folder of a sweep \(no sweep\.yaml\)"):
        read_sweep(tmp_path)
    sweep = parse_config({"name": "small", "run": "run.yaml"}, SweepConfig, "sweep.yaml")
    (tmp_path / "sweep.yaml").write_text(dump_config(sweep))
    assert is_sweep(tmp_path)
    assert read_sweep(tmp_path) == sweep


def test_a_trial_that_was_not_judged_has_the_scores_of_its_last_epoch(trial: Path) -> None:
    for number in (1, 2):
        told = {"difference_map_correlation": number / 10, "seconds": 3600.0, "cpu_seconds": 1800.0}
        append_epoch(trial, {"epoch": number, "epochs": 4, **told})
    write_outcome(trial, TrialOutcome("stopped"))
    result = read_result(trial)
    assert (result.state, result.seed, result.epochs, result.of) == ("stopped", 5, 2, 4)
    assert result.scores == {"difference_map_correlation": 0.2, "loss": 0.5}
    assert [point["loss"] for point in result.curve] == [1.0, 0.5]
    assert (result.hours, result.cpu_hours, result.gpu_hours) == (2.0, 1.0, 0.0)


def test_a_trial_that_was_trained_elsewhere_tells_the_time_of_its_training(trial: Path) -> None:
    result = read_result(trial)
    assert (result.state, result.hours, result.cpu_hours) == ("unfinished", 1.0, 0.0)


def test_a_judged_trial_has_the_headline_scores_of_its_run(trial: Path) -> None:
    scores = judged(0.7, 0.2)
    write_scores(trial, scores)
    assert read_result(trial).scores == {**pick_headline_scores(scores), "loss": 0.5}


def test_a_trial_with_scores_of_another_version_is_refused_by_name(trial: Path) -> None:
    (trial / "metrics.json").write_text("{}")
    with pytest.raises(CryoFormerError, match=r"metrics\.json"):
        read_result(trial)


def test_headline_scores_are_those_of_the_states_middle_and_of_the_poses_at_the_end() -> None:
    states = tuple(replace(STATE, resolution_angstrom=value) for value in (8.0, 9.0, 20.0))
    after = replace(POSE_ERRORS, angle_deg_median=3.0, shift_box_fraction_mean=0.005)
    found = pick_headline_scores(judged(0.7, 0.2, states=states, pose=replace(POSE, after=after)))
    assert found["difference_map_correlation"] == found["latent_rank_correlation"] == 0.7
    assert found["resolution_angstrom"] == np.median([8.0, 9.0, 20.0])
    assert (found["rotation_error_deg"], found["shift_error"]) == (3.0, 0.005)
    assert pick_headline_scores(judged(0.7, 0.2))["rotation_error_deg"] == POSE_ERRORS.angle_deg_median
    assert pick_headline_scores(ALONE) == {}
