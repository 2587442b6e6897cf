import json
from dataclasses import replace

import numpy as np
import pytest
from support.decoded_states import MOVING, POINTS, TRUTH, decoded
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM
from support.tiny_runs import tiny_config, train, write_set

from cryoformer_dist.analysis.flexibility import Flexibility, measure_flexibility, rank_queries
from cryoformer_dist.analysis.flexibility_files import (
    compose_script,
    judge_flexibility,
    read_flexibility,
    summarise,
    write_flexibility,
)
from cryoformer_dist.analysis.results import reconstruct_alone
from cryoformer_dist.analysis.trained import DecodedState, load_trained
from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.figures.surfaces import VALUE_STOPS
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.storage.working_folder import WorkingFolder


@pytest.fixture
def measured() -> Flexibility:
    return measure_flexibility(iter(decoded()), POINTS, BOX)


def test_change_of_attention_counts_all_queries():
    states = [replace(state, attention=state.attention.copy()) for state in decoded()]
    for number, state in enumerate(states):
        # Two queries trade weight where the density moves: neither mean shows it, the change does.
        swing = 0.2 * MOVING * (-1) ** number
        state.attention[:, 0], state.attention[:, 2] = 0.5 + swing, 0.5 - swing
        state.attention[:, 1] = 0
    measured = measure_flexibility(iter(states), POINTS, BOX)
    summary = summarise(measured, rank_queries(measured))
    assert abs(summary.queries[0].correlation) < 0.2
    assert summary.attention_variation_correlation == pytest.approx(1, abs=1e-3)
    change = measured.attention_variation_map().ravel()[POINTS]
    np.testing.assert_allclose(change, 0.2 * np.sqrt(2) * MOVING, atol=1e-4)


def test_written_maps_are_the_measured_ones_and_earlier_queries_go(measured, tmp_path):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "query_63.mrc").touch()
    written = write_flexibility(WorkingFolder.on_disk(tmp_path), measured, VOXEL_SIZE_ANGSTROM, ["test"])
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


def _write_judged(folder, measured):
    write_flexibility(WorkingFolder.on_disk(folder), measured, VOXEL_SIZE_ANGSTROM)
    judge_flexibility(folder, TRUTH)


def test_record_ranks_the_maps_it_names_and_scores_them_against_the_truth(measured, tmp_path):
    _write_judged(tmp_path, measured)
    summary = read_flexibility(tmp_path)
    assert summary.best_query == 1
    assert summary.queries[0].map == "attention/query_01.mrc"
    # Every second voxel was not evaluated and reads as still.
    assert 0.5 < summary.truth.roc_auc < 1
    write_flexibility(WorkingFolder.on_disk(tmp_path), measured, VOXEL_SIZE_ANGSTROM)
    assert read_flexibility(tmp_path).truth is None


def test_summary_is_read_as_it_was_written_and_never_of_another_version(measured, tmp_path):
    assert read_flexibility(tmp_path) is None
    _write_judged(tmp_path, measured)
    ranking = [replace(rank, map=f"attention/query_{rank.query:02d}.mrc") for rank in rank_queries(measured)]
    found = read_flexibility(tmp_path)
    assert found == replace(summarise(measured, ranking), truth=found.truth)
    assert found.truth.region_voxels > 0
    path = tmp_path / "flexibility.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    with pytest.raises(CryoFormerError, match=r"flexibility\.json: schema 0, .*run `cryoformer-dist reconstruct"):
        read_flexibility(tmp_path)


def test_big_attention_maps_are_kept_as_far_as_the_disk_budget_goes(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("cryoformer_dist.analysis.flexibility_files._ATTENTION_BYTES", 2 * measured.mean.nbytes)
    write_flexibility(WorkingFolder.on_disk(tmp_path), measured, VOXEL_SIZE_ANGSTROM)
    ranks = read_flexibility(tmp_path).queries
    assert [rank.map is not None for rank in ranks] == [True, True, False]
    assert len(list((tmp_path / "attention").glob("query_*"))) == 2


def test_script_opens_files_that_are_there_and_its_palettes_rise(measured, tmp_path):
    write_flexibility(WorkingFolder.on_disk(tmp_path), measured, VOXEL_SIZE_ANGSTROM)
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
    assert summary.flexible_share == 0
    assert summary.flexibility_range == (0.0, 0.0)
    assert "0,#" in compose_script(summary)


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
    written = {path.name for path in reconstruct_alone(WorkingFolder.on_disk(run))}
    assert {"mean.mrc", "flexibility.mrc", "query_03.mrc", "flexibility.cxc"} <= written
    assert read_flexibility(run).truth.roc_auc is not None
