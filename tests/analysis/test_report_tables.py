from dataclasses import replace

import pytest
from support.judged_runs import ALONE, STATE, judged
from support.training_records import training_record

from cryoformer_dist.analysis.report_tables import (
    list_key_figures,
    list_measures,
    list_pose_errors,
    list_stages,
    put_in_words,
    summarise,
)
from cryoformer_dist.runs.image_scores import OracleScores, StateErrors
from cryoformer_dist.runs.scores import LatentScores, MovingRegion, RegionScores


@pytest.mark.parametrize(
    ("score", "gap", "tone"),
    [
        (0.94, 0.24, "good"),
        (0.94, 0.0, "none"),
        (0.6, 0.1, "partial"),
        (0.02, 0.0, "none"),
        (0.05, 0.2, "none"),
    ],
)
def test_tone_needs_difference_maps_and_gap_together(score, gap, tone):
    assert put_in_words(judged(score, gap)).tone == tone


def test_junk_that_was_not_judged_is_told_of():
    assert "no particle" not in put_in_words(judged(0.9, 0.2)).text
    assert "160 images of no particle were not counted" in put_in_words(judged(0.9, 0.2, junk=160)).text


def test_resolution_that_maps_standing_still_reach_too_is_called_worthless():
    assert "resolution alone says nothing" in put_in_words(judged(0.9, 0.2)).text
    better = replace(STATE, resolution_angstrom=8.0, consensus_resolution_angstrom=20.0)
    still = replace(judged(0.9, 0.2).still, resolution_angstrom=12.0)
    assert "says nothing" not in put_in_words(judged(0.9, 0.2, states=(better,), still=still)).text


def test_of_a_rigid_molecule_stillness_is_praised_and_invented_motion_is_called_so():
    still = put_in_words(judged(0.0, 0.0, true_map_variation=0.0, map_variation=0.001))
    assert (still.tone, still.headline) == ("good", "A rigid molecule stayed still")
    invented = put_in_words(judged(0.0, 0.0, true_map_variation=0.0, map_variation=0.15))
    assert (invented.tone, invented.headline) == ("none", "Motion was invented")
    assert "15.0%" in invented.text


def test_without_truth_nothing_is_claimed():
    said = put_in_words(ALONE)
    assert said.tone == "unknown"
    assert "No truth" in said.text
    assert list_measures(ALONE) == []
    assert list_pose_errors(ALONE) == []
    assert all(tile.share is None for tile in list_key_figures(ALONE))


def test_of_a_run_that_was_not_judged_just_that_is_said():
    assert put_in_words(None).headline == "Not evaluated yet"
    assert list_measures(None) == list_pose_errors(None) == list_key_figures(None) == []


def test_gauges_run_from_floor_to_ceiling_and_too_much_motion_is_no_better():
    shares = {tile.name: tile.share for tile in list_key_figures(judged(0.5, 0.15))}
    assert shares["Motion as in truth"] == pytest.approx(0.5)
    assert shares["States told apart"] == pytest.approx(0.5)
    assert shares["Likeness to the true maps"] == pytest.approx(0.5)
    quiet = judged(0.5, 0.1)
    loud = replace(quiet, maps=replace(quiet.maps, difference_map_amplitude=1.4))
    tiles = {tile.name: tile for tile in list_key_figures(loud)}
    assert tiles["Size of the motion"].share == pytest.approx(0.6)


def test_every_measure_stands_beside_its_floor_and_ceiling():
    rows = list_measures(judged(0.9, 0.2, latents=LatentScores(0.9, angle_error_deg=25.0)))
    assert len(rows) == 9
    assert all(row.ours and row.floor and row.ceiling for row in rows)
    assert (rows[-1].ours, rows[-1].floor, rows[-1].ceiling) == ("25.0°", "90°", "0°")


REGION = MovingRegion(
    scores=RegionScores(0.95, 0.9, 0.9, 0.2, 0.7),
    voxels=100,
    share_of_box=0.044,
    mask="truth",
    consensus=RegionScores(0.0, 0.0, 0.8, 0.8, 0.0),
    ceiling=RegionScores(1.0, 1.0, 1.0, 0.2, 0.8),
)
ORACLE = OracleScores(
    particles=500,
    box_size=32,
    references=10,
    nats=1.5,
    oracle=StateErrors(rank_correlation=0.9, mean_absolute_error=0.028),
    posterior=None,
    marginal=None,
    marginal_nats=None,
    marginal_z=None,
    given_pose_error_deg=20.0,
    given_pose_error_angstrom=0.0,
    ours=StateErrors(rank_correlation=0.8, mean_absolute_error=0.108),
    neighbours=StateErrors(rank_correlation=0.85, mean_absolute_error=0.055),
    error_ratio=3.8,
    neighbours_error_ratio=1.9,
)


def test_single_images_and_the_moving_region_stand_beside_consensus_and_oracle():
    rows = {row.name: row for row in list_measures(judged(0.9, 0.2, moving_region=REGION, oracle=ORACLE))}
    found = [(row.ours, row.floor, row.ceiling) for row in list(rows.values())[-4:]]
    assert found == [
        ("0.420 ± 0.010", "0.410", "0.469"),
        ("0.950", "0.000", "1.000"),
        ("0.108", "0.250", "0.028"),
        ("0.055", "0.250", "0.028"),
    ]
    assert "4.4% of the box" in rows["Motion as in truth, moving region"].meaning


@pytest.mark.parametrize(
    ("kind", "best", "ours", "shown"),
    [
        ("angle_error_deg", 12.0, 20.0, ("20.0°", "90.0°", "12.0°")),
        ("class_accuracy", 1.0, 0.9, ("0.900", "0.500", "1.000")),
    ],
)
def test_errors_of_single_images_are_shown_in_the_unit_of_the_states(kind, best, ours, shown):
    found = StateErrors(**{kind: ours})
    oracle = replace(ORACLE, oracle=StateErrors(**{kind: best}), ours=found, neighbours=found)
    last = list_measures(judged(0.9, 0.2, oracle=oracle))[-1]
    assert (last.ours, last.floor, last.ceiling) == shown


def test_the_summary_holds_plain_numbers_and_the_keys_of_the_larger_measures():
    lines = dict(line.split() for line in summarise(judged(0.9, 0.2, moving_region=REGION, oracle=ORACLE)))
    assert lines["difference_map_correlation"] == "0.9"
    assert lines["per_image_fsc_auc.masked_mean"] == "0.42"
    assert lines["moving_region.difference_map_correlation"] == "0.95"
    assert lines["oracle.error_ratio"] == "3.8"
    assert "oracle.angle_error_deg" not in lines
    alone = dict(line.split() for line in summarise(ALONE))
    assert alone["map_variation"] == "0.1"
    assert "difference_map_correlation" not in alone


def test_a_stage_s_row_holds_the_seconds_spent_in_it_and_its_medians():
    records = [
        training_record(
            stage=stage, seconds=float(seconds), particles_per_second=float(rate), data_wait_share=0.1, workers=2
        )
        for stage, seconds, rate in [
            ("a", 10, 100),
            ("a", 20, 300),
            ("b", 30, 50),
            ("b", 35, 60),
            ("b", 45, 70),
        ]
    ]
    rows = list_stages(records)
    assert [(row.stage, row.seconds, row.rate, row.workers) for row in rows] == [
        ("a", "20", "200", "2"),
        ("b", "25", "60", "2"),
    ]
