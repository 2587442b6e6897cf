import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, train, write_set

from cryoformer_dist.analysis.results import MaskFiles, evaluate_run, reconstruct_run
from cryoformer_dist.analysis.trained import TrainedRun, load_trained
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.errors import ConfigError, CryoFormerWarning
from cryoformer_dist.io.cryodrgn import read_poses_pkl, write_poses_pkl
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.working_folder import WorkingFolder

# 64 particles on ten references: some have few.
pytestmark = pytest.mark.filterwarnings("ignore:only .* particles near state")

LOCAL = ("per_image_fsc_auc", "moving_region", "oracle")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("results") / "tiny"
    train(tiny_config(tiny_store), folder)
    return folder


def metrics_of(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_with_a_truth_is_judged_by_image_by_region_and_beside_the_oracle(run: Path) -> None:
    metrics = metrics_of(evaluate_run(run))
    per_image, region, oracle = (metrics[name] for name in LOCAL)
    assert per_image["perfect"] == pytest.approx(7 / 16)
    assert per_image["maps"] == 64
    assert 0 < per_image["consensus_masked_mean"] < per_image["perfect"]
    assert (per_image["mask"], region["mask"]) == ("truth", "truth")
    assert region["consensus"]["difference_map_correlation"] == 0
    assert region["ceiling"]["difference_map_correlation"] == pytest.approx(1)
    assert 0 < region["voxels"] < 16**3 / 2
    # Hardly trained: the oracle sees what the latents do not.
    assert oracle["particles"] == 64
    assert oracle["rank_correlation"] > oracle["ours_rank_correlation"]
    assert oracle["error_ratio"] > 1.5
    assert oracle["ours_mean_absolute_error"] == pytest.approx(metrics["mean_absolute_error"])
    assert all(row["resolution_0143_angstrom"] <= row["resolution_angstrom"] for row in metrics["states"])


def test_given_masks_take_the_place_of_those_from_the_truth(run: Path, tmp_path: Path) -> None:
    consensus = read_volume(run / "consensus.mrc")
    corner = torch.zeros(16, 16, 16)
    corner[4:10, 4:10, 4:10] = 1
    write_volume(tmp_path / "corner.mrc", Volume(corner, consensus.voxel_size_angstrom))
    before = metrics_of(evaluate_run(run))
    region = metrics_of(evaluate_run(run, masks=MaskFiles(region=tmp_path / "corner.mrc")))
    assert region["moving_region"]["voxels"] == 216
    assert region["moving_region"]["mask"] == "given"
    assert region["per_image_fsc_auc"] == before["per_image_fsc_auc"]
    solvent = metrics_of(evaluate_run(run, masks=MaskFiles(solvent=tmp_path / "corner.mrc")))
    assert solvent["per_image_fsc_auc"]["mask"] == "given"
    assert solvent["per_image_fsc_auc"]["mean"] == before["per_image_fsc_auc"]["mean"]
    assert solvent["per_image_fsc_auc"]["masked_mean"] != before["per_image_fsc_auc"]["masked_mean"]
    assert solvent["moving_region"] == before["moving_region"]


def test_real_particles_have_no_truth_and_are_judged_without(run: Path, tmp_path: Path, tiny_store: Path) -> None:
    truth = tiny_store.parent / "particles" / "truth"
    hidden = truth.with_name("elsewhere")
    shutil.move(truth, hidden)
    try:
        metrics = metrics_of(evaluate_run(run))
        assert not metrics["has_truth"]
        assert not set(LOCAL) & set(metrics)
        with pytest.raises(ConfigError, match=r"mask\.mrc: .*none is known"):
            evaluate_run(run, masks=MaskFiles(region=tmp_path / "mask.mrc"))
        assert set(LOCAL) <= set(metrics_of(evaluate_run(run, truth=hidden)))
    finally:
        shutil.move(hidden, truth)


def test_the_oracle_is_the_same_however_often_it_is_asked(run: Path) -> None:
    first, second = (metrics_of(evaluate_run(run))["oracle"] for _ in range(2))
    assert first == second
    assert np.isfinite([value for value in first.values() if value is not None]).all()


def test_neither_scores_nor_the_oracle_count_junk(run: Path, tmp_path: Path, tiny_store: Path) -> None:
    spoilt = tmp_path / "truth"
    shutil.copytree(tiny_store.parent / "particles" / "truth", spoilt)
    with np.load(spoilt / "truth.npz") as file:
        columns = dict(file)
    junk = np.arange(64) % 4 == 0
    # A state that no particle has would show in every error.
    columns |= {"junk": junk.astype(np.int8), "state": np.where(junk, 1e4, columns["state"])}
    np.savez(spoilt / "truth.npz", **columns)
    metrics = metrics_of(evaluate_run(run, truth=spoilt))
    assert (metrics["junk"], metrics["particles"], metrics["oracle"]["particles"]) == (16, 48, 48)
    assert metrics["per_image_fsc_auc"]["maps"] == 48
    assert metrics["oracle"]["ours_mean_absolute_error"] == pytest.approx(metrics["mean_absolute_error"])
    assert metrics["oracle"]["mean_absolute_error"] > 0.01
    assert metrics_of(evaluate_run(run))["junk"] == 0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return read_particles(write_set(tmp_path_factory.mktemp("simulated"), 24).parent / "particles" / "particles.star")


def refined(source: ParticleTable, folder: Path) -> TrainedRun:
    """A run that refines the poses of all particles but four."""
    plan = plan_conversion(
        source, folder / "particles.zarr", ConversionOptions(contrast="light", shard_rows=8, chunk_rows=8)
    )
    changes = {"model.pose.form": "table", "model.pose.start": "given", "dataset.hold_out": 4, "training.epochs": 1}
    train(tiny_config(convert_serially(plan).path, changes), folder / "run")
    return load_trained(folder / "run")


def assert_poses_are(path: Path, trained: TrainedRun, given: ParticleTable) -> None:
    """The refined poses, and the given ones of the particles held out, at the rows of their source."""
    rotation, shift_fraction = read_poses_pkl(path)
    expected_rotation, expected_shift = np.array(given.rotation), np.array(given.shift_angstrom)
    expected_rotation[trained.source_row] = trained.rotation
    expected_shift[trained.source_row] = trained.shift_angstrom
    np.testing.assert_allclose(rotation, expected_rotation, atol=1e-6)
    np.testing.assert_allclose(shift_fraction * _box_angstrom(given), expected_shift, atol=1e-4)
    assert len(trained.source_row) == len(given) - 4


def _box_angstrom(table: ParticleTable) -> float:
    return table.optics[0].box_size * table.optics[0].pixel_size_angstrom


def test_refined_poses_of_bare_images_go_back_into_a_pickle(simulated: ParticleTable, tmp_path: Path) -> None:
    poses, ctf = tmp_path / "given.pkl", tmp_path / "ctf.pkl"
    write_poses_pkl(poses, simulated.rotation, simulated.shift_angstrom / _box_angstrom(simulated))
    optics = simulated.optics[0]
    columns = (
        *(optics.box_size, optics.pixel_size_angstrom, simulated.defocus_u_angstrom, simulated.defocus_v_angstrom),
        *(simulated.defocus_angle_deg, optics.voltage_kv, optics.spherical_aberration_mm, optics.amplitude_contrast),
        simulated.phase_shift_deg,
    )
    ctf.write_bytes(pickle.dumps(np.stack(np.broadcast_arrays(*columns), axis=1)))
    trained = refined(read_particles(simulated.source.with_suffix(".mrcs"), poses=poses, ctf=ctf), tmp_path)
    written = reconstruct_run(WorkingFolder.on_disk(tmp_path / "run"), trained)
    assert tmp_path / "run" / "poses.pkl" in written
    assert_poses_are(tmp_path / "run" / "poses.pkl", trained, simulated)


def test_refined_poses_are_not_lost_with_the_file_that_the_particles_came_from(
    simulated: ParticleTable, tmp_path: Path
) -> None:
    trained = replace(refined(simulated, tmp_path), source=tmp_path / "moved.star")
    with pytest.warns(CryoFormerWarning, match=r"moved\.star: no such file any more; poses are written as cryoDRGN's"):
        reconstruct_run(WorkingFolder.on_disk(tmp_path / "run"), trained)
    assert_poses_are(tmp_path / "run" / "poses.pkl", trained, simulated)
