import json
from dataclasses import replace

import numpy as np
import pytest
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM, blobs
from support.tiny_runs import tiny_config, train, write_set

from cryoformer_dist.analysis.flexibility import (
    Flexibility,
    RunningMoments,
    chimerax_script,
    flexibility_roc_auc,
    measure_flexibility,
    rank_queries,
    roc_auc,
    sample_latents,
    summarise,
    write_flexibility,
)
from cryoformer_dist.analysis.results import reconstruct_run
from cryoformer_dist.analysis.trained import DecodedState, load_trained
from cryoformer_dist.errors import StoreError
from cryoformer_dist.figures.surfaces import VALUE_STOPS
from cryoformer_dist.io.mrc import read_volume

ANGLES = np.arange(0.0, 360.0, 30.0)
TRUTH = blobs(ANGLES)
POINTS = np.arange(0, BOX**3, 2)
MOVING = TRUTH.std(axis=0).ravel()[POINTS]


def decoded(queries: int = 3) -> list[DecodedState]:
    """The true maps at every second voxel; attention 0 still, 1 marks what moves, 2 is the rest."""
    states = []
    for angle, voxels in zip(ANGLES, TRUTH, strict=True):
        attention = np.zeros((len(POINTS), queries), dtype=np.float32)
        attention[:, 0] = 0.25
        attention[:, 1] = MOVING + 0.01 * np.cos(angle)
        attention[:, 2] = 1 - attention[:, :2].sum(axis=1)
        states.append(DecodedState(voxels.ravel()[POINTS], attention))
    return states


@pytest.fixture
def measured() -> Flexibility:
    return measure_flexibility(iter(decoded()), POINTS, BOX)


def test_moments_of_a_stream_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5, 2, (40, 7, 3)).astype(np.float32)
    moments = RunningMoments()
    for one in values:
        moments.add(one)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.deviation, values.std(axis=0), rtol=1e-4)
    moments = RunningMoments()
    moments.add(values[0])
    assert not moments.deviation.any()


def test_a_stream_is_not_changed_by_being_measured():
    values = np.ones(4, dtype=np.float32)
    moments = RunningMoments()
    moments.add(values)
    moments.add(3 * values)
    np.testing.assert_array_equal(values, 1)
    np.testing.assert_allclose(moments.mean, 2)


def test_flexibility_is_the_deviation_over_states_at_the_points_and_nothing_elsewhere(measured):
    np.testing.assert_allclose(measured.deviation.ravel()[POINTS], MOVING, atol=1e-5)
    np.testing.assert_allclose(measured.mean.ravel()[POINTS], TRUTH.mean(axis=0).ravel()[POINTS], atol=1e-5)
    elsewhere = np.setdiff1d(np.arange(BOX**3), POINTS)
    for voxels in (measured.mean, measured.deviation, measured.attention_map(1), measured.molecule):
        assert not voxels.ravel()[elsewhere].any()
    np.testing.assert_allclose(measured.attention_map(0).ravel()[POINTS], 0.25)
    assert measured.states == len(ANGLES)


def test_the_molecule_is_everywhere_any_state_reaches():
    full = measure_flexibility((DecodedState(v.ravel(), np.ones((BOX**3, 1), np.float32)) for v in TRUTH),
                               np.arange(BOX**3), BOX)  # fmt: skip
    np.testing.assert_array_equal(full.molecule, TRUTH.max(axis=0) > full.level)
    # The blob on its way round is in the molecule at every angle, the corner never.
    for voxels in TRUTH:
        assert full.molecule[np.unravel_index((voxels - TRUTH.mean(axis=0)).argmax(), voxels.shape)]
    assert not full.molecule[0, 0, 0]


def test_no_state_is_refused():
    with pytest.raises(StoreError, match="no particle"):
        measure_flexibility(iter(()), POINTS, BOX)


def test_the_query_that_marks_motion_is_ranked_first_and_a_still_one_scores_nothing(measured):
    rows = {row["query"]: row for row in rank_queries(measured)}
    assert next(iter(rows)) == 1
    assert rows[1]["correlation"] == pytest.approx(1, abs=1e-3)
    assert rows[2]["correlation"] == pytest.approx(-1, abs=1e-3)
    assert rows[0]["correlation"] == 0
    assert rows[0]["mean_weight"] == pytest.approx(0.25)
    assert rows[0]["mean_variation"] == 0


def test_change_of_attention_counts_all_queries():
    states = [replace(state, attention=state.attention.copy()) for state in decoded()]
    for number, state in enumerate(states):
        # Two queries trade weight where the density moves: neither mean shows it, the change does.
        swing = 0.2 * MOVING * (-1) ** number
        state.attention[:, 0], state.attention[:, 2] = 0.5 + swing, 0.5 - swing
        state.attention[:, 1] = 0
    measured = measure_flexibility(iter(states), POINTS, BOX)
    summary = summarise(measured, rank_queries(measured))
    assert abs(summary["queries"][0]["correlation"]) < 0.2
    assert summary["attention_variation_correlation"] == pytest.approx(1, abs=1e-3)
    change = measured.attention_variation_map().ravel()[POINTS]
    np.testing.assert_allclose(change, 0.2 * np.sqrt(2) * MOVING, atol=1e-4)


def test_roc_area_is_the_chance_that_a_positive_scores_higher():
    score = np.array([0.1, 0.4, 0.35, 0.8])
    assert roc_auc(score, np.array([False, False, True, True])) == pytest.approx(0.75)
    assert roc_auc(score, np.zeros(4, dtype=bool)) is None
    assert roc_auc(score, np.ones(4, dtype=bool)) is None


def test_true_motion_scores_one_a_constant_a_half_and_the_reverse_nothing():
    true_motion = TRUTH.std(axis=0)
    assert flexibility_roc_auc(true_motion, TRUTH) == pytest.approx(1)
    assert flexibility_roc_auc(7 * true_motion + 1, TRUTH) == pytest.approx(1)
    assert flexibility_roc_auc(np.ones_like(true_motion), TRUTH) == pytest.approx(0.5)
    assert flexibility_roc_auc(-true_motion, TRUTH) == pytest.approx(0)


def test_knowing_where_the_molecule_is_is_not_knowing_where_it_moves():
    still = blobs(np.zeros(1))[0]
    assert flexibility_roc_auc(still, TRUTH) < 0.7
    noise = np.random.default_rng(0).normal(size=TRUTH[0].shape)
    assert abs(flexibility_roc_auc(noise, TRUTH) - 0.5) < 0.1


def test_a_truth_that_does_not_move_gives_no_score():
    still = np.repeat(TRUTH[:1], 7, axis=0)
    assert flexibility_roc_auc(TRUTH.std(axis=0), still) is None


def test_particles_are_drawn_once_each_and_the_same_for_the_same_seed():
    latents = np.arange(200.0, dtype=np.float32)[:, None]
    drawn = sample_latents(latents, 40, seed=5)
    assert len(np.unique(drawn)) == 40
    np.testing.assert_array_equal(drawn, sample_latents(latents, 40, seed=5))
    assert not np.array_equal(drawn, sample_latents(latents, 40, seed=6))
    np.testing.assert_array_equal(sample_latents(latents[:9], 40), latents[:9])


def test_written_maps_are_the_measured_ones_and_earlier_queries_go(measured, tmp_path):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "query_63.mrc").touch()
    written = write_flexibility(tmp_path, measured, VOXEL_SIZE_ANGSTROM, TRUTH, ["test"])
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    queries = {f"attention/query_{query:02d}.mrc" for query in range(3)}
    assert names == queries | {
        "attention/variation.mrc",
        "flexibility.cxc",
        "volumes/flexibility.mrc",
        "volumes/mean.mrc",
    }
    assert {path.name for path in (tmp_path / "attention").iterdir()} == {*(q[10:] for q in queries), "variation.mrc"}
    flexibility = read_volume(tmp_path / "volumes" / "flexibility.mrc")
    assert flexibility.voxel_size_angstrom == pytest.approx(VOXEL_SIZE_ANGSTROM)
    np.testing.assert_allclose(flexibility.voxels.numpy(), measured.deviation)
    attention = read_volume(tmp_path / "attention" / "query_01.mrc").voxels.numpy()
    np.testing.assert_allclose(attention, measured.attention_map(1))


def test_record_ranks_the_maps_it_names_and_scores_them_against_the_truth(measured, tmp_path):
    write_flexibility(tmp_path, measured, VOXEL_SIZE_ANGSTROM, TRUTH)
    record = json.loads((tmp_path / "flexibility.json").read_text())
    assert record["best_query"] == 1
    assert record["queries"][0]["map"] == "attention/query_01.mrc"
    # Every second voxel was not evaluated and reads as still.
    assert 0.5 < record["truth"]["roc_auc"] < 1
    write_flexibility(tmp_path, measured, VOXEL_SIZE_ANGSTROM)
    assert json.loads((tmp_path / "flexibility.json").read_text())["truth"] is None


def test_big_attention_maps_are_kept_as_far_as_the_disk_budget_goes(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("cryoformer_dist.analysis.flexibility._ATTENTION_BYTES", 2 * measured.mean.nbytes)
    write_flexibility(tmp_path, measured, VOXEL_SIZE_ANGSTROM)
    rows = json.loads((tmp_path / "flexibility.json").read_text())["queries"]
    assert [row["map"] is not None for row in rows] == [True, True, False]
    assert len(list((tmp_path / "attention").glob("query_*"))) == 2


def test_script_opens_files_that_are_there_and_its_palettes_rise(measured, tmp_path):
    write_flexibility(tmp_path, measured, VOXEL_SIZE_ANGSTROM)
    script = (tmp_path / "flexibility.cxc").read_text()
    opened = [line.split()[-3] for line in script.splitlines() if " id " in line and "kmeans" not in line]
    assert len(opened) == 3
    assert all((tmp_path / name).is_file() for name in opened)
    palettes = [line.split("palette ")[1].split()[0] for line in script.splitlines() if "palette" in line]
    assert len(palettes) == 3
    for palette in palettes:
        values, colours = zip(*(pair.split(",") for pair in palette.split(":")), strict=True)
        assert colours == VALUE_STOPS
        assert all(np.diff(np.array(values, dtype=float)) > 0)


def test_script_of_a_run_without_motion_still_has_a_palette():
    still = [DecodedState(TRUTH[0].ravel()[POINTS], np.full((len(POINTS), 2), 0.5, dtype=np.float32))] * 3
    measured = measure_flexibility(iter(still), POINTS, BOX)
    summary = summarise(measured, rank_queries(measured))
    assert summary["flexible_share"] == 0
    assert summary["flexibility_range"] == [0.0, 0.0]
    assert "0,#" in chimerax_script(summary)


def test_a_trained_run_gets_its_flexible_regions(tmp_path):
    store = write_set(tmp_path, particles=24)
    run = tmp_path / "run"
    train(tiny_config(store, {"training.epochs": 1}), run)
    trained = load_trained(run)
    latents = trained.latents[:3]
    for voxels, state in zip(trained.decode(latents), trained.decode_states(latents), strict=True):
        flat = trained.learner.objectives.lattice.flat_index.numpy()
        np.testing.assert_allclose(voxels.ravel()[flat], state.density, atol=1e-5)
        assert state.attention.shape == (len(flat), 16)
        np.testing.assert_allclose(state.attention.sum(axis=1), 1, atol=1e-5)
    written = {path.name for path in reconstruct_run(run, trained)}
    assert {"mean.mrc", "flexibility.mrc", "query_03.mrc", "flexibility.cxc"} <= written
    assert json.loads((run / "flexibility.json").read_text())["truth"]["roc_auc"] is not None
