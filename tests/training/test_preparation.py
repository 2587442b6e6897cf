import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, write_set

from cryoformer_dist.data.selection import ParticleFile, RowFile, Selection, write_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SelectionError, SlowEncodingWarning, SmallSampleWarning
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.directory import (
    load_run,
    open_run_store,
    selected_rows,
)
from cryoformer_dist.training import objectives, preparation
from cryoformer_dist.training.learner import Learner
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
    changes = {"training.seed": 9, "model.latent.dimensions": 5, "dataset.half": 2}
    with pytest.raises(ConfigError, match=r"other values of dataset\.half, model\.latent, training\.seed;.*--name"):
        prepare_run(tiny_config(store.path, changes), store, run, resume=True)


def test_what_may_change_on_a_resume_is_taken_over_and_results_are_made_again(
    store: ParticleStore, tmp_path: Path
) -> None:
    run = _prepared(store, tmp_path / "run")
    (run / "results.json").write_text("of before")
    changes = {"training.epochs": 1, "training.learning_rates": {"network": 1e-5}, "training.keep_checkpoints": 3}
    prepare_run(tiny_config(store.path, changes), store, run, resume=True)
    assert (run / "results.json").exists()
    prepare_run(tiny_config(store.path, changes | {"results.kmeans_volumes": 7}), store, run, resume=True)
    assert not (run / "results.json").exists()
    config = load_run(run)[0]
    assert (config.training.epochs, config.training.learning_rates.network) == (1, 1e-5)
    assert config.results.kmeans_volumes == 7


def test_resuming_on_another_store_is_refused_and_a_moved_one_is_not(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    other = ParticleStore.open(write_set(tmp_path / "other", particles=32))
    with pytest.raises(ConfigError, match=r"trained on another store"):
        prepare_run(tiny_config(other.path), other, run, resume=True)
    moved = ParticleStore.open(shutil.copytree(store.path, tmp_path / "moved.zarr"))
    prepare_run(tiny_config(moved.path), moved, run, resume=True)
    config, manifest = load_run(run)
    assert config.dataset.store == manifest.store == str(moved.path)
    assert open_run_store(manifest).path == moved.path


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


def _select(path: Path, store: ParticleStore, rows: range) -> str:
    source = ParticleFile.of(store.attributes.source)
    return str(write_selection(path, Selection.of(source, rows, RowFile(path="ind.pkl"))))


def test_a_selection_is_copied_and_a_run_is_of_what_it_said_then(store: ParticleStore, tmp_path: Path) -> None:
    picked = _select(tmp_path / "picked.json", store, range(20))
    run = _prepared(store, tmp_path / "run", **{"dataset.selection": picked})
    (tmp_path / "picked.json").unlink()
    config, manifest = load_run(run)
    rows = selected_rows(config, store)
    assert manifest.particles == 20
    assert sorted(store.particles().source_row[rows].tolist()) == list(range(20))
    assert "selection: selection.json\n" in (run / "config.yaml").read_text()
    moved = shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(run)
    np.testing.assert_array_equal(selected_rows(load_run(moved)[0], store), rows)


def test_a_selection_meets_half_set_and_held_out_particles(store: ParticleStore, tmp_path: Path) -> None:
    changes = {"dataset.half": 1, "dataset.hold_out": 10}
    alone = set(selected_rows(tiny_config(store.path, changes), store).tolist())
    changes["dataset.selection"] = _select(tmp_path / "picked.json", store, range(40))
    wanted = set(np.flatnonzero(store.particles().source_row < 40).tolist())
    assert selected_rows(tiny_config(store.path, changes), store).tolist() == sorted(alone & wanted)
    changes["dataset.selection"] = _select(tmp_path / "none.json", store, range(0))
    with pytest.raises(SelectionError, match=r"dataset\.selection: none of the 0 particles .* is among the"):
        selected_rows(tiny_config(store.path, changes), store)
    other = Selection.of(ParticleFile("other.star", "ab"), [1], RowFile(path="ind.pkl"))
    changes["dataset.selection"] = str(write_selection(tmp_path / "other.json", other))
    with pytest.raises(SelectionError, match="another content"):
        prepare_run(tiny_config(store.path, changes), store, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_resuming_on_another_selection_is_refused_by_name(store: ParticleStore, tmp_path: Path) -> None:
    same = {"dataset.selection": _select(tmp_path / "picked.json", store, range(20))}
    run = _prepared(store, tmp_path / "run", **same)
    prepare_run(tiny_config(store.path, same), store, run, resume=True)
    other = {"dataset.selection": _select(tmp_path / "other.json", store, range(21))}
    for changes in (other, {}):
        with pytest.raises(ConfigError, match=r"other values of dataset\.selection"):
            prepare_run(tiny_config(store.path, changes), store, run, resume=True)


def test_runs_of_different_selections_are_not_prepared_alike(store: ParticleStore, tmp_path: Path) -> None:
    files = [_select(tmp_path / f"{count}.json", store, range(count)) for count in (20, 21)]
    configs = [tiny_config(store.path, {"dataset.selection": given}) for given in (None, *files)]
    assert len({preparation_key(config, store) for config in configs}) == 3


def test_resuming_with_other_particles_held_out_is_refused_by_name(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run", **{"dataset.hold_out": 10})
    prepare_run(tiny_config(store.path, {"dataset.hold_out": 10}), store, run, resume=True)
    for kept in (0, 9):
        with pytest.raises(ConfigError, match=r"other values of dataset\.hold_out;"):
            prepare_run(tiny_config(store.path, {"dataset.hold_out": kept}), store, run, resume=True)


@pytest.mark.parametrize("occupancy", ["sphere", "data"])
def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path, occupancy: str
) -> None:
    config = tiny_config(store.path, {"training.occupancy": occupancy})
    with pytest.raises(ConfigError, match=r"a worker needs about .* and has 0\.0 GiB"):
        prepare_run(config, store, tmp_path / "run", resume=False, memory=WorkerMemory(2**20))
    assert not (tmp_path / "run").exists()


def test_a_run_whose_maps_do_not_fit_a_worker_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "refuse_too_large", lambda *_: None)
    with pytest.raises(ConfigError, match=r"at 16 pixels the maps .* it has 0\.0 GiB; start fewer workers"):
        prepare_run(tiny_config(store.path), store, tmp_path / "run", resume=False, memory=WorkerMemory(2**20))
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
    for number, slow in enumerate(({"model.hash_grid.backend": "torch"}, {"model.kernels": "torch"})):
        config = tiny_config(store.path, slow)
        with pytest.warns(SlowEncodingWarning, match=r"set model\.hash_grid\.backend: triton"):
            prepare_run(config, store, tmp_path / f"slow-{number}", resume=False, memory=gpu)
    # No warning: they would be errors.
    for backend in ("auto", "triton"):
        config = tiny_config(store.path, {"model.hash_grid.backend": backend})
        prepare_run(config, store, tmp_path / backend, resume=False, memory=gpu)
    prepare_run(tiny_config(store.path), store, tmp_path / "cpu", resume=False, memory=WorkerMemory(2**40))


@pytest.mark.parametrize(("on_gpu", "encoder"), [(True, "triton"), (False, "torch")])
def test_a_manifest_names_the_encoder_and_a_run_goes_on_elsewhere(
    store: ParticleStore, tmp_path: Path, on_gpu: bool, encoder: str
) -> None:
    here, there = WorkerMemory(2**40, on_gpu=on_gpu), WorkerMemory(2**40, on_gpu=not on_gpu)
    prepare_run(tiny_config(store.path), store, tmp_path / "run", resume=False, memory=here)
    prepare_run(tiny_config(store.path), store, tmp_path / "run", resume=True, memory=there)
    config, manifest = load_run(tmp_path / "run")
    assert (config.model.hash_grid.backend, manifest.backend) == ("auto", encoder)


def test_features_that_a_gpu_s_encoder_has_not_are_refused_there_by_name(store: ParticleStore, tmp_path: Path) -> None:
    config = tiny_config(store.path, {"model.hash_grid.features_per_level": 3})
    with pytest.raises(ConfigError, match=r"features_per_level is a power of two, not 3; .*backend: torch"):
        prepare_run(config, store, tmp_path / "run", False, memory=WorkerMemory(2**40, on_gpu=True))
    assert not (tmp_path / "run").exists()
    prepare_run(config, store, tmp_path / "run", False, memory=WorkerMemory(2**40))


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
    monkeypatch.delattr(preparation, "make_first_estimates")
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


def _written(path: Path, voxels: torch.Tensor, store: ParticleStore) -> str:
    write_volume(path, Volume(voxels.float(), store.pixel_size_angstrom))
    return str(path)


def test_a_given_mask_is_where_density_is_and_the_run_goes_on_without_the_file(
    store: ParticleStore, tmp_path: Path
) -> None:
    given, focus = tmp_path / "given.mrc", tmp_path / "focus.mrc"
    half = radius_grid(16, 3) <= 4
    changes = {
        "training.occupancy": "data",
        "training.mask": _written(given, half, store),
        "training.focus_mask": _written(focus, half & (torch.arange(16) > 8), store),
    }
    run = _prepared(store, tmp_path / "run", **changes)
    config, _ = load_run(run)
    learner = Learner.from_run(config, store, run, torch.device("cpu"))
    assert torch.equal(learner.mask, half)
    assert learner.objectives.model.focus is not None
    assert torch.equal(learner.objectives.model.focus > 0.5, half & (torch.arange(16) > 8))
    given.unlink()
    focus.unlink()
    prepare_run(config, store, run, resume=True)
    with pytest.raises(ConfigError, match=r"other values of training\.mask;"):
        prepare_run(tiny_config(store.path, {**changes, "training.mask": str(focus)}), store, run, resume=True)
    with pytest.raises(ConfigError, match=r"training\.mask: .*given\.mrc: no such file"):
        _prepared(store, tmp_path / "other", **changes)
    assert not (tmp_path / "other").exists()


def test_runs_are_prepared_alike_only_with_masks_of_the_same_content(store: ParticleStore, tmp_path: Path) -> None:
    ball = radius_grid(16, 3)
    changes = {"training.occupancy": "data", "training.mask": _written(tmp_path / "m.mrc", ball <= 4, store)}
    config = tiny_config(store.path, changes)
    first = preparation_key(config, store)
    assert first != preparation_key(tiny_config(store.path, {"training.occupancy": "data"}), store)
    _written(tmp_path / "m.mrc", ball <= 5, store)
    assert preparation_key(config, store) != first


def test_a_focus_where_the_data_show_no_density_is_refused(store: ParticleStore, tmp_path: Path) -> None:
    corner = radius_grid(16, 3) > 7
    changes = {
        "training.occupancy": "data",
        "training.focus_mask": _written(tmp_path / "m.mrc", corner & (radius_grid(16, 3) <= 7.01), store),
    }
    with pytest.raises(ConfigError, match=r"training\.focus_mask: "):
        _prepared(store, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "manifest.json").exists()
