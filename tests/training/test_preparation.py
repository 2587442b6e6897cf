import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, write_set

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SlowEncodingWarning, SmallSampleWarning, StoreError
from cryoformer_dist.initialization.consensus import Consensus
from cryoformer_dist.initialization.pose_search import PoseSearchResult
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.runs.directory import (
    load_first_latents,
    load_run,
    selected_rows,
    store_at_first_poses,
)
from cryoformer_dist.training import objectives, preparation
from cryoformer_dist.training.preparation import preparation_key, prepare_like, prepare_run


def _prepared(store: ParticleStore, run: Path, **changes: object) -> Path:
    prepare_run(tiny_config(store.path, changes), store, run, resume=False)  # type: ignore[arg-type]
    return run


def test_a_prepared_run_says_what_was_asked_on_which_data_with_what(store: ParticleStore, tmp_path: Path) -> None:
    config = tiny_config(store.path, {"model.latent.start": "linear"})
    run = tmp_path / "deep" / "run"
    calls: list[tuple[str, int, int]] = []
    prepare_run(config, store, run, resume=False, progress=lambda *call: calls.append(call))
    loaded, manifest = load_run(run)
    assert loaded == config
    assert manifest.store_fingerprint == store.fingerprint
    assert Path(manifest.store) == store.path
    assert (manifest.particles, manifest.box_size, manifest.seed) == (64, 16, 3)
    assert manifest.versions["torch"] == torch.__version__
    assert calls[0] == ("consensus map", 64, 64)
    assert calls[-1][0] == "first latents"
    for name in ("consensus", "occupancy"):
        volume = read_volume(run / f"{name}.mrc")
        assert volume.voxels.shape == (16, 16, 16)
        assert volume.voxel_size_angstrom == pytest.approx(store.pixel_size_angstrom)


def test_a_run_that_is_there_is_not_written_over(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ConfigError, match=r"run: holds a run already; --resume.*--name"):
        _prepared(store, run)
    prepare_run(tiny_config(store.path), store, run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_folder_whose_preparation_was_cut_short_is_prepared_again(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    whole = (run / "occupancy.mrc").read_bytes()
    (run / "manifest.json").unlink()
    (run / "occupancy.mrc").write_bytes(b"half")
    _prepared(store, run)
    assert (run / "occupancy.mrc").read_bytes() == whole
    assert (run / "manifest.json").is_file()


def test_resume_where_there_is_nothing_starts(store: ParticleStore, tmp_path: Path) -> None:
    prepare_run(tiny_config(store.path), store, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_resuming_with_other_settings_names_each(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    changes = {"training.epochs": 9, "model.latent.dimensions": 5, "dataset.half": 2}
    with pytest.raises(ConfigError, match=r"other values of dataset\.half, model\.latent, training\.epochs;.*--name"):
        prepare_run(tiny_config(store.path, changes), store, run, resume=True)


def test_resuming_with_other_results_wanted_is_no_other_run(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    prepare_run(tiny_config(store.path, {"results.kmeans_volumes": 7}), store, run, resume=True)


def test_resuming_on_another_store_is_refused_and_a_moved_one_is_not(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    other = ParticleStore.open(write_set(tmp_path / "other", particles=32))
    with pytest.raises(ConfigError, match=r"trained on another store"):
        prepare_run(tiny_config(other.path), other, run, resume=True)
    moved = ParticleStore.open(shutil.copytree(store.path, tmp_path / "moved.zarr"))
    prepare_run(tiny_config(moved.path), moved, run, resume=True)


def test_particles_that_are_held_out_are_the_last_ones_and_nobody_trains_on_them(
    store: ParticleStore, tmp_path: Path
) -> None:
    half_set = store.particles().half_set
    chosen = {}
    for half in ("both", 1, 2):
        config = tiny_config(store.path, {"dataset.half": half, "dataset.hold_out": 10})
        chosen[half] = selected_rows(config, store).tolist()
    assert chosen["both"] == list(range(54))
    assert sorted(chosen[1] + chosen[2]) == list(range(54))
    assert (half_set[chosen[1]] == 1).all()
    run = _prepared(store, tmp_path / "run", **{"dataset.hold_out": 10})
    assert load_run(run)[1].particles == 54


def test_held_out_particles_are_not_in_the_maps_and_latents_that_training_starts_from(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    for name in ("search_poses", "back_project", "fit_linear_latents"):
        original = getattr(preparation, name)

        def watched(
            store: ParticleStore, rows: np.ndarray, *rest: object, original=original, name=name, **named: object
        ):
            asked.append((name, int(rows.max())))
            return original(store, rows, *rest, **named)

        monkeypatch.setattr(preparation, name, watched)
    changes = {"dataset.hold_out": 10, "model.pose.form": "table", "model.latent.start": "linear"}
    _prepared(store, tmp_path / "run", **changes)
    assert asked == [("search_poses", 53), ("back_project", 53), ("fit_linear_latents", 53)]


def test_resuming_with_other_particles_held_out_is_refused_by_name(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run", **{"dataset.hold_out": 10})
    prepare_run(tiny_config(store.path, {"dataset.hold_out": 10}), store, run, resume=True)
    for kept in (0, 9):
        with pytest.raises(ConfigError, match=r"other values of dataset\.hold_out;"):
            prepare_run(tiny_config(store.path, {"dataset.hold_out": kept}), store, run, resume=True)


def _found(store: ParticleStore, kept: bool = False) -> Callable[..., PoseSearchResult]:
    """A search that puts every particle it is asked for at one and the same pose."""

    def search_poses(searched: ParticleStore, rows: np.ndarray, seed: int, progress: Callable[[int, int], None]) -> Any:
        assert searched.path == store.path
        # Runs of a half-set have a seed of their own.
        assert seed in (3, 3 + 10**9)
        progress(len(rows), len(rows))
        pose = Pose(torch.eye(3).expand(len(rows), 3, 3), torch.full((len(rows), 2), 8.0))
        return PoseSearchResult(pose, 0.25, 0.125 if kept else 0.5)

    return search_poses


def test_a_search_leaves_its_poses_and_its_verdict(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "search_poses", _found(store))
    config = tiny_config(store.path, {"model.pose.form": "table", "dataset.half": 1})
    stages: list[str] = []
    run = tmp_path / "run"
    prepare_run(config, store, run, resume=False, progress=lambda stage, *_: stages.append(stage))
    assert stages[0] == "pose search"
    rows = selected_rows(config, store)
    with np.load(run / "first_poses.npz") as found:
        np.testing.assert_array_equal(found["rows"], rows)
        assert (found["shift_angstrom"] == 8).all()
    assert json.loads((run / "pose_search.json").read_text()) == {
        "half_map_fsc_at_given_poses": 0.25,
        "half_map_fsc_after_rigid_search": 0.5,
        "given_poses_kept": False,
    }


def test_maps_are_made_and_training_starts_at_the_poses_found(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "search_poses", _found(store))
    changes = {"model.pose.form": "table", "dataset.hold_out": 10}
    run = _prepared(store, tmp_path / "run", **changes)
    first, given = store_at_first_poses(run, store).particles(), store.particles()
    assert (first.rotation[:54] == np.eye(3)).all()
    assert (first.shift_angstrom[:54] == 8).all()
    np.testing.assert_array_equal(first.rotation[54:], given.rotation[54:])
    np.testing.assert_array_equal(first.shift_angstrom[54:], given.shift_angstrom[54:])
    # The store on disk, and so any other run, has what it had.
    np.testing.assert_array_equal(ParticleStore.open(store.path).particles().rotation, given.rotation)
    consensus = read_volume(run / "consensus.mrc").voxels
    expected = preparation.back_project(store_at_first_poses(run, store), np.arange(54)).voxels
    torch.testing.assert_close(consensus, expected)
    elsewhere = _prepared(store, tmp_path / "given", **changes, **{"model.pose.start": "given"})
    assert not torch.allclose(read_volume(elsewhere / "consensus.mrc").voxels, expected, atol=1e-3)


@pytest.mark.parametrize("pose", ["given", "encoder", "encoder_then_table", "table from the given poses"])
def test_poses_are_searched_for_only_where_a_table_is_to_start_from_them(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pose: str
) -> None:
    monkeypatch.setattr(preparation, "search_poses", lambda *_: pytest.fail("searched"))
    form, _, from_given = pose.partition(" ")
    changes = {"model.pose.form": form} | ({"model.pose.start": "given"} if from_given else {})
    run = _prepared(store, tmp_path / "run", **changes)
    assert not (run / "first_poses.npz").exists()
    assert not (run / "pose_search.json").exists()
    assert store_at_first_poses(run, store) is store


def test_nothing_of_a_preparation_that_was_cut_short_reaches_another(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "search_poses", _found(store))
    run = _prepared(store, tmp_path / "run", **{"model.pose.form": "table", "model.latent.start": "linear"})
    assert load_first_latents(run) is not None
    (run / "manifest.json").unlink()
    _prepared(store, run, **{"model.pose.form": "table", "model.pose.start": "given"})
    assert store_at_first_poses(run, store) is store
    assert load_first_latents(run) is None
    assert not (run / "pose_search.json").exists()


def test_images_without_density_are_refused_where_points_come_from_the_data(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(preparation, "back_project", lambda *_, **__: Consensus(noise, (noise, noise), 1.0))
    with pytest.raises(StoreError, match=r"no density above the background.*check.*training\.occupancy"):
        _prepared(store, tmp_path / "run", **{"training.occupancy": "data"})
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("occupancy", ["sphere", "data"])
def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path, occupancy: str
) -> None:
    config = tiny_config(store.path, {"training.occupancy": occupancy})
    with pytest.raises(ConfigError, match=r"a worker needs about .* and has 0\.0 GiB"):
        prepare_run(config, store, tmp_path / "run", resume=False, memory=WorkerMemory(2**20))
    assert not (tmp_path / "run").exists()


def test_a_run_whose_maps_do_not_fit_the_driver_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "free_bytes", lambda: 2**20)
    with pytest.raises(
        ConfigError, match=r"at 16 pixels the maps .* and 0\.0 GiB are free; drive it from a larger one"
    ):
        prepare_run(tiny_config(store.path), store, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_sizes_without_a_kernel_are_refused_on_a_gpu_before_anything_is_written(
    store: ParticleStore, tmp_path: Path
) -> None:
    gpu, changes = WorkerMemory(2**40, on_gpu=True), {"model.decoder.queries": 24}
    with pytest.raises(ConfigError, match=r"not 16, 24 and 16; take those, or set model\.kernels: torch"):
        prepare_run(tiny_config(store.path, changes), store, tmp_path / "run", resume=False, memory=gpu)
    assert not (tmp_path / "run").exists()
    needs_none = {"model.kernels": "torch", "model.domain": "fourier", "model.decoder.form": "concatenation"}
    for key, value in needs_none.items():
        prepare_run(tiny_config(store.path, changes | {key: value}), store, tmp_path / key, resume=False, memory=gpu)


def test_points_that_a_gpu_would_hash_by_torch_at_every_step_are_told_with_the_remedy(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "_KEPT_OPERATORS_BYTES", 0)
    gpu = WorkerMemory(2**40, on_gpu=True)
    with pytest.warns(SlowEncodingWarning, match=r"set model\.hash_grid\.backend: triton"):
        prepare_run(tiny_config(store.path), store, tmp_path / "slow", resume=False, memory=gpu)
    # No warning: they would be errors.
    changes = {"model.hash_grid.backend": "triton"}
    prepare_run(tiny_config(store.path, changes), store, tmp_path / "fast", resume=False, memory=gpu)
    prepare_run(tiny_config(store.path), store, tmp_path / "cpu", resume=False, memory=WorkerMemory(2**40))


def test_an_encoder_that_would_normalise_over_a_few_images_is_told_of(store: ParticleStore, tmp_path: Path) -> None:
    form = {"model.latent.form": "encoder"}
    few = tiny_config(store.path, form | {"training.global_batch_size": 6})
    with pytest.warns(SmallSampleWarning, match=r"over the 6 images of a step: .* 8 or more"):
        prepare_run(few, store, tmp_path / "few", resume=False, memory=WorkerMemory(2**40))
    # Workers normalise together.
    enough = tiny_config(store.path, form)
    prepare_run(enough, store, tmp_path / "enough", resume=False, memory=WorkerMemory(2**40, workers=4))


def test_a_coarse_box_larger_than_the_store_s_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path
) -> None:
    config = tiny_config(store.path, {"training.coarse_epochs": 1.0, "training.coarse_box": 24})
    with pytest.raises(ConfigError, match=r"training\.coarse_box: 24 exceeds the store's box of 16"):
        prepare_run(config, store, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_an_automatic_batch_becomes_a_number_and_resumes_with_it(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run", **{"training.global_batch_size": "auto"})
    settled = load_run(run)[0].training.global_batch_size
    assert settled == 1
    before = (run / "config.yaml").read_bytes()
    prepare_run(tiny_config(store.path, {"training.global_batch_size": "auto"}), store, run, resume=True)
    assert (run / "config.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match=r"other values of training\.global_batch_size"):
        prepare_run(tiny_config(store.path, {"training.global_batch_size": 2}), store, run, resume=True)


def test_a_run_is_not_resumed_where_it_does_not_fit(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    with pytest.raises(ConfigError, match="a worker needs about"):
        prepare_run(tiny_config(store.path), store, run, resume=True, memory=WorkerMemory(2**20))


def test_a_run_prepared_like_another_of_its_key_is_the_one_it_would_have_been(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model.latent.start": "linear", "training.occupancy": "data", "training.epochs": 5}
    other, config = tiny_config(store.path, changes | {"training.epochs": 9}), tiny_config(store.path, changes)
    assert preparation_key(other, store) == preparation_key(config, store)
    prepare_run(config, store, tmp_path / "alone", resume=False)
    prepare_run(other, store, tmp_path / "other", resume=False)
    for name in ("back_project", "_searched_poses", "_first_latents"):
        monkeypatch.delattr(preparation, name)
    prepare_like(config, store, tmp_path / "like", tmp_path / "other", WorkerMemory(2**40))
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert "first_latents.npy" in names
    assert names == sorted(path.name for path in (tmp_path / "like").iterdir())
    for name in names:
        assert (tmp_path / "like" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


@pytest.mark.parametrize(
    "change",
    [
        {"training.seed": 4}, {"training.occupancy": "data"}, {"model.latent.start": "linear"}, {"dataset.half": 1},
        {"model.pose.form": "table"}, {"dataset.hold_out": 8},
        {"model.latent.start": "linear", "model.latent.linear_dimensions": 1},
    ],
)  # fmt: skip
def test_what_a_preparation_depends_on_is_in_its_key(store: ParticleStore, change: dict[str, Any]) -> None:
    keys = {preparation_key(tiny_config(store.path, changes), store) for changes in ({}, change)}
    assert len(keys) == 2
