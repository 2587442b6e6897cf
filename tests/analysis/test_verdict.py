import pytest

from cryoformer_dist.analysis.verdict import key_figures, measure_rows, pose_rows, stage_rows, verdict


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
        "consensus": {**dict.fromkeys(scores, 0.0), "map_correlation": 0.9},
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


def test_resolution_that_the_consensus_reaches_too_is_called_worthless():
    assert "resolution alone says nothing" in verdict(metrics(0.9, 0.2))["text"]
    better = {"resolution_angstrom": 8.0, "consensus_resolution_angstrom": 20.0}
    assert "says nothing" not in verdict(metrics(0.9, 0.2, states=[better]))["text"]


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


def test_stage_seconds_survive_a_resume():
    records = [
        {"stage": stage, "loss": 1.0, "seconds": seconds, "particles_per_second": rate, "data_wait": 0.1}
        for stage, seconds, rate in [
            ("a", 10, 100),
            ("a", 20, 300),
            ("b", 30, 50),
            ("b", 5, 60),
            ("b", 15, 70),
        ]
    ]
    rows = stage_rows(records, {"workers": 2})
    assert [(row["stage"], row["seconds"], row["rate"], row["workers"]) for row in rows] == [
        ("a", "20", "200", "2"),
        ("b", "25", "60", "2"),
    ]
