import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.judged_runs import ALONE, HISTOGRAM, POSE, POSE_ERRORS, judged

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.runs.image_scores import Calibration, JunkFound, OracleScores, OtherCause, OtherCauses, StateErrors
from cryoformer_dist.runs.scores import (
    HeldOutScores,
    LatentScores,
    MovingRegion,
    RegionScores,
    ScoresAgainstTruth,
    read_scores,
    write_scores,
)

REGION = RegionScores(0.95, 0.9, 0.9, 0.2, 0.7)
FULL = judged(
    0.9,
    0.2,
    latents=LatentScores(0.9, angle_error_deg=12.5),
    moving_region=MovingRegion(REGION, 100, 0.04, "given", REGION, REGION),
    pose=replace(
        POSE, after=POSE_ERRORS, after_in_true_frame=POSE_ERRORS, angle_deg_histogram=HISTOGRAM,
        shift_angstrom_histogram=HISTOGRAM,
    ),
    period=360.0,
    oracle=OracleScores(
        particles=500, box_size=32, references=10, nats=1.5, oracle=StateErrors(0.9, angle_error_deg=10.0),
        posterior=StateErrors(0.95, angle_error_deg=9.0), marginal=StateErrors(0.85, angle_error_deg=11.0),
        marginal_nats=1.2, marginal_z=1.1, given_pose_error_deg=2.0, given_pose_error_angstrom=1.0,
        ours=StateErrors(0.8, angle_error_deg=20.0),
        neighbours=StateErrors(0.85, angle_error_deg=15.0), error_ratio=2.0, neighbours_error_ratio=1.5,
    ),
    held_out=HeldOutScores(20, LatentScores(0.7, angle_error_deg=30.0)),
    junk_found=JunkFound(0.1, 0.15, {"empty": 1.0, "blobs": 0.98}),
    calibration=Calibration(2000, 1.05, 0.66, 12.0, 8.0, None),
    other_causes=OtherCauses(4000, (OtherCause("defocus", 0.0, 0.001, 3, 0.01, 0.0),), 0.02),
)  # fmt: skip


@pytest.mark.parametrize("scores", [FULL, judged(0.5, 0.1), ALONE, replace(ALONE, pose_change=POSE_ERRORS)])
def test_scores_are_read_as_they_were_written(scores, tmp_path: Path) -> None:
    assert read_scores(tmp_path) is None
    write_scores(tmp_path, scores)
    assert read_scores(tmp_path) == scores


def test_the_file_keeps_the_names_that_users_know(tmp_path: Path) -> None:
    content = json.loads(write_scores(tmp_path, FULL).read_text())
    assert content["has_truth"]
    assert content["difference_map_correlation"] == 0.9
    assert content["latent_rank_correlation"] == 0.9
    assert content["angle_error_deg"] == 12.5
    assert content["per_image_fsc_auc"]["masked_mean"] == 0.42
    assert content["moving_region"]["difference_map_correlation"] == 0.95
    assert content["still"]["resolution_angstrom"] == 14.4
    assert content["states"][0]["consensus_resolution_angstrom"] == 14.4
    assert content["pose"]["after_in_true_frame"]["squared_frobenius_mean"] == 0.2
    assert content["oracle"]["angle_error_deg"] == 10.0
    assert content["oracle"]["posterior_angle_error_deg"] == 9.0
    assert content["oracle"]["ours_rank_correlation"] == 0.8
    assert content["held_out"]["latent_rank_correlation"] == 0.7
    # Measures that were not taken are not there.
    assert not {"class_accuracy", "mean_absolute_error"} & {*content, *content["oracle"]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"schema_version": 1},
        lambda content: {key: value for key, value in content.items() if key != "ceiling"},
        lambda content: content | {"unknown": 1},
        lambda content: content | {"particles": "many"},
        lambda content: [content],
    ],
)
def test_another_version_and_a_damaged_file_are_refused_by_name(tmp_path: Path, damage) -> None:
    path = write_scores(tmp_path, FULL)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(CryoFormerError, match=r"metrics\.json: .*run `cryoformer-dist evaluate .*` again"):
        read_scores(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(CryoFormerError, match=r"metrics\.json: damaged"):
        read_scores(tmp_path)


def test_a_score_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_scores(tmp_path, replace(ALONE, map_variation=float("nan")))
    assert read_scores(tmp_path) is None


def test_what_has_bounds_is_found_in_one_place() -> None:
    bounded = FULL.bounded
    assert isinstance(FULL, ScoresAgainstTruth)
    assert (bounded.auc_gap, bounded.latent_rank_correlation) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("errors", "error"),
    [
        (StateErrors(0.9, angle_error_deg=0.0), 0.0),
        (StateErrors(0.9, mean_absolute_error=0.1), 0.1),
        (StateErrors(class_accuracy=0.75), 0.25),
    ],
)
def test_the_error_of_states_is_nothing_at_best_whatever_the_states_are(errors: StateErrors, error: float) -> None:
    assert errors.error == error
