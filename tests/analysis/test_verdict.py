import pytest
from support.training_records import training_record

from cryoformer_dist.analysis.verdict import key_figures, measure_rows, pose_rows, stage_rows, summary_lines, verdict


def metrics(score: float, gap: float, **more) -> dict:
    scores = {
        "difference_map_correlation": score,
        "difference_map_amplitude": 0.9,
        "auc_gap": gap,
        "fsc_area_own": 0.9,
        "fsc_area_distant": 0.9 - gap,
        "map_correlation": 0.95,
        "latent_rank_correlation": score,
    }
    state = {"resolution_angstrom": 14.4, "consensus_resolution_angstrom": 14.4}
    return {
        "has_truth": True,
        **scores,
        "map_variation": 0.3,
        "true_map_variation": 0.3,
        "consensus": {**dict.fromkeys(scores, 0.0), "map_correlation": 0.9},
        "still": {"resolution_angstrom": 14.4},
        "ceiling": {**dict.fromkeys(scores, 1.0), "auc_gap": 0.3},
        "states": [state, state],
        "nyquist_angstrom": 14.4,
        **more,
    }


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
    assert verdict(metrics(score, gap))["tone"] == tone


def test_resolution_that_maps_standing_still_reach_too_is_called_worthless():
    assert "resolution alone says nothing" in verdict(metrics(0.9, 0.2))["text"]
    better = {"resolution_angstrom": 8.0, "consensus_resolution_angstrom": 20.0}
    still = {"resolution_angstrom": 12.0}
    assert "says nothing" not in verdict(metrics(0.9, 0.2, states=[better], still=still))["text"]


def test_of_a_rigid_molecule_stillness_is_praised_and_invented_motion_is_called_so():
    still = verdict(metrics(0.0, 0.0, true_map_variation=0.0, map_variation=0.001))
    assert (still["tone"], still["headline"]) == ("good", "A rigid molecule stayed still")
    invented = verdict(metrics(0.0, 0.0, true_map_variation=0.0, map_variation=0.15))
    assert (invented["tone"], invented["headline"]) == ("none", "Motion was invented")
    assert "15.0%" in invented["text"]


def test_without_truth_nothing_is_claimed():
    alone = {
        "has_truth": False,
        "explained_variance": [0.5],
        "map_variation": 0.1,
        "consensus_map_correlation": 0.98,
    }
    said = verdict(alone)
    assert said["tone"] == "unknown"
    assert "No truth" in said["text"]
    assert measure_rows(alone) == []
    assert pose_rows(alone) == []
    assert all(tile["share"] is None for tile in key_figures(alone, []))
    assert verdict({})["tone"] == "unknown"


def test_gauges_run_from_floor_to_ceiling_and_too_much_motion_is_no_better():
    shares = {tile["name"]: tile["share"] for tile in key_figures(metrics(0.5, 0.15), [])}
    assert shares["Difference-map correlation"] == pytest.approx(0.5)
    assert shares["FSC gap, own − distant"] == pytest.approx(0.5)
    assert shares["Map correlation"] == pytest.approx(0.5)
    loud = metrics(0.5, 0.1)
    loud["difference_map_amplitude"] = 1.4
    assert {tile["name"]: tile["share"] for tile in key_figures(loud, [])}["Amplitude of the motion"] == pytest.approx(
        0.6
    )


def test_every_measure_stands_beside_its_floor_and_ceiling():
    rows = measure_rows(metrics(0.9, 0.2, angle_error_deg=25.0))
    assert len(rows) == 8
    assert all(row["ours"] and row["floor"] and row["ceiling"] for row in rows)


LOCAL = {
    "per_image_fsc_auc": {
        "masked_mean": 0.42, "masked_std": 0.01, "consensus_masked_mean": 0.41, "mean": 0.4, "consensus_mean": 0.38,
        "perfect": 0.469,
    },
    "moving_region": {
        "difference_map_correlation": 0.95, "auc_gap": 0.7, "mask": "truth", "share_of_box": 0.044,
        "consensus": {"difference_map_correlation": 0.0}, "ceiling": {"difference_map_correlation": 1.0},
    },
    "oracle": {
        "particles": 500, "mean_absolute_error": 0.028, "ours_mean_absolute_error": 0.108, "error_ratio": 3.8,
        "neighbours_mean_absolute_error": 0.055, "neighbours_error_ratio": 1.9,
    },
}  # fmt: skip


def test_single_images_and_the_moving_region_stand_beside_consensus_and_oracle():
    rows = {row["name"]: row for row in measure_rows(metrics(0.9, 0.2, **LOCAL))}
    found = [(row["ours"], row["floor"], row["ceiling"]) for row in list(rows.values())[-4:]]
    assert found == [
        ("0.420 ± 0.010", "0.410", "0.469"),
        ("0.950", "0.000", "1.000"),
        ("0.108", "0.250", "0.028"),
        ("0.055", "0.250", "0.028"),
    ]
    assert "4.4% of the box" in rows["Difference-map correlation, moving region"]["meaning"]
    angles = {"particles": 500, "angle_error_deg": 12.0, "ours_angle_error_deg": 20.0, "error_ratio": 1.7}
    last = measure_rows(metrics(0.9, 0.2, **LOCAL | {"oracle": angles}))[-1]
    assert (last["ours"], last["floor"], last["ceiling"]) == ("20.0°", "90.0°", "12.0°")
    classes = {"particles": 500, "class_accuracy": 1.0, "ours_class_accuracy": 0.9, "error_ratio": None}
    last = measure_rows(metrics(0.9, 0.2, **LOCAL | {"oracle": classes}))[-1]
    assert (last["ours"], last["floor"], last["ceiling"]) == ("0.900", "0.500", "1.000")


def test_the_summary_holds_plain_numbers_and_the_keys_of_the_larger_measures():
    lines = dict(line.split() for line in summary_lines(metrics(0.9, 0.2, **LOCAL)))
    assert lines["difference_map_correlation"] == "0.9"
    assert lines["per_image_fsc_auc.masked_mean"] == "0.42"
    assert lines["moving_region.difference_map_correlation"] == "0.95"
    assert lines["oracle.error_ratio"] == "3.8"
    assert "oracle.angle_error_deg" not in lines
    assert "map_variation" in dict(line.split() for line in summary_lines({"map_variation": 0.1, "has_truth": False}))


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
    rows = stage_rows(records)
    assert [(row["stage"], row["seconds"], row["rate"], row["workers"]) for row in rows] == [
        ("a", "20", "200", "2"),
        ("b", "25", "60", "2"),
    ]
