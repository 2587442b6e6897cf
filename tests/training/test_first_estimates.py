import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks
from support.tiny_runs import MEMORY, Listener, tiny_config

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, StorageError
from cryoformer_dist.initialization.consensus import Consensus
from cryoformer_dist.initialization.pose_search import PoseSearchResult
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.runs.directory import (
    is_prepared,
    load_first_latents,
    load_run,
    selected_rows,
    store_at_first_poses,
    wait_for_file,
)
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training import first_estimates
from cryoformer_dist.training.first_estimates import make_first_estimates
from cryoformer_dist.training.preparation import begin_run, prepare_run
from cryoformer_dist.training.reporting import tell_stages


def _prepared(store: ParticleStore, run: Path, **changes: object) -> Path:
    prepare_run(tiny_config(store.path, changes), store, run, resume=False)  # type: ignore[arg-type]
    return run


def test_held_out_particles_are_not_in_the_maps_and_latents_that_training_starts_from(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    for name in ("search_poses", "back_project", "fit_linear_latents"):
        original = getattr(first_estimates, name)

        def watched(
            store: ParticleStore, rows: np.ndarray, *rest: object, original=original, name=name, **named: object
        ):
            asked.append((name, int(rows.max())))
            return original(store, rows, *rest, **named)

        monkeypatch.setattr(first_estimates, name, watched)
    changes = {"dataset.hold_out": 10, "model.pose.form": "table", "model.latent.start": "linear"}
    _prepared(store, tmp_path / "run", **changes)
    assert asked == [("search_poses", 53), ("back_project", 53), ("fit_linear_latents", 53)]


def _found(store: ParticleStore, kept: bool = False) -> Callable[..., PoseSearchResult]:
    """A search that puts every particle it is asked for at one and the same pose."""

    def search_poses(
        searched: ParticleStore, rows: np.ndarray, seed: int, progress: Callable[[int, int], None], device: torch.device
    ) -> Any:
        assert searched.path == store.path
        assert device == torch.device("cpu")
        # Runs of a half-set have a seed of their own.
        assert seed in (3, 3 + 10**9)
        progress(len(rows), len(rows))
        pose = Pose(torch.eye(3).expand(len(rows), 3, 3), torch.full((len(rows), 2), 8.0))
        return PoseSearchResult(pose, 0.25, 0.125 if kept else 0.5)

    return search_poses


def test_a_search_leaves_its_poses_and_its_verdict(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_estimates, "search_poses", _found(store))
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
    monkeypatch.setattr(first_estimates, "search_poses", _found(store))
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
    expected = first_estimates.back_project(store_at_first_poses(run, store), np.arange(54)).voxels
    torch.testing.assert_close(consensus, expected)
    elsewhere = _prepared(store, tmp_path / "given", **changes, **{"model.pose.start": "given"})
    assert not torch.allclose(read_volume(elsewhere / "consensus.mrc").voxels, expected, atol=1e-3)


@pytest.mark.parametrize("pose", ["given", "encoder", "encoder_then_table", "table from the given poses"])
def test_poses_are_searched_for_only_where_a_table_is_to_start_from_them(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pose: str
) -> None:
    monkeypatch.setattr(first_estimates, "search_poses", lambda *_: pytest.fail("searched"))
    form, _, from_given = pose.partition(" ")
    changes = {"model.pose.form": form} | ({"model.pose.start": "given"} if from_given else {})
    run = _prepared(store, tmp_path / "run", **changes)
    assert not (run / "first_poses.npz").exists()
    assert not (run / "pose_search.json").exists()
    assert store_at_first_poses(run, store) is store


def test_nothing_of_a_preparation_that_was_cut_short_reaches_another(
    store: ParticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_estimates, "search_poses", _found(store))
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
    monkeypatch.setattr(first_estimates, "back_project", lambda *_, **__: Consensus(noise, (noise, noise)))
    with pytest.raises(ConfigError, match=r"no density above the background.*check.*training\.occupancy"):
        _prepared(store, tmp_path / "run", **{"training.occupancy": "data"})
    assert not (tmp_path / "run" / "manifest.json").exists()


SEARCHED = {"model.pose.form": "table", "model.latent.start": "linear"}
ESTIMATES = ("consensus.mrc", "occupancy.mrc", "shell_weight.npy", "first_poses.npz", "first_latents.npy")


class _Killed(BaseException):
    """What ends a process in the middle of a stage."""


@pytest.fixture(scope="module")
def whole(store: ParticleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preparation that was left in peace."""
    return _prepared(store, tmp_path_factory.mktemp("whole") / "run", **SEARCHED)


@pytest.mark.parametrize("stage", ["pose search", "consensus map", "first latents"])
def test_a_run_killed_in_a_stage_goes_on_to_the_same_estimates(
    store: ParticleStore, whole: Path, tmp_path: Path, stage: str
) -> None:
    config, killed = tiny_config(store.path, SEARCHED), tmp_path / "killed"

    def kill(under_way: str, done: int, total: int) -> None:
        # Maps are made amid the search of poses, too.
        if under_way == stage and (stage == "pose search" or (killed / "first_poses.npz").is_file()):
            raise _Killed

    with pytest.raises(_Killed):
        prepare_run(config, store, killed, resume=False, progress=kill)
    assert not is_prepared(killed)
    stages: list[str] = []
    prepare_run(config, store, killed, resume=True, progress=lambda under_way, *_: stages.append(under_way))
    # What was finished is not made again.
    assert ("pose search" in stages) == (stage == "pose search")
    for name in ESTIMATES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def _make_on_ranks(path: str, run: str, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    config, store = tiny_config(Path(path), changes), ParticleStore.open(path)
    settled = make_first_estimates(WorkingFolder.on_disk(Path(run)), config, store, MEMORY)
    return {"batch": torch.tensor(settled.training.global_batch_size)}


@pytest.mark.parametrize("world", [3])
def test_several_ranks_make_the_estimates_of_one(swinging: Path, tmp_path: Path, world: int) -> None:
    store = ParticleStore.open(swinging)
    changes = {
        "model.latent.start": "linear",
        "training.occupancy": "data",
        "training.global_batch_size": "auto",
        # The others would take longer, and tell nothing more.
        "dataset.hold_out": 700,
    }
    config = tiny_config(swinging, changes)
    alone, together = tmp_path / "alone", tmp_path / "together"
    for run in (alone, together):
        begin_run(config, store, run, resume=False, memory=MEMORY)
    make_first_estimates(WorkingFolder.on_disk(alone), config, store, MEMORY)
    batches = [rank["batch"] for rank in run_on_ranks(world, _make_on_ranks, str(swinging), str(together), changes)]
    assert {int(batch) for batch in batches} == {load_run(alone)[0].training.global_batch_size}
    assert load_run(together)[0] == load_run(alone)[0]
    assert (together / "occupancy.mrc").read_bytes() == (alone / "occupancy.mrc").read_bytes()
    expected, found = (read_volume(run / "consensus.mrc").voxels for run in (alone, together))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    expected, found = (load_first_latents(run) for run in (alone, together))
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3 * float(expected.abs().max()))


def test_a_run_whose_occupancy_does_not_fit_is_refused_and_leaves_no_run(store: ParticleStore, tmp_path: Path) -> None:
    config = tiny_config(store.path, {"training.occupancy": "data"})
    begin_run(config, store, tmp_path / "run", resume=False, memory=MEMORY)
    working = WorkingFolder.on_disk(tmp_path / "run")
    told = tell_stages(working, Listener())
    with pytest.raises(ConfigError, match=r"a worker needs about .* and has 0\.0 GiB"):
        make_first_estimates(working, config, store, WorkerMemory(2**20), told)
    assert list((tmp_path / "run").iterdir()) == []
    # Under the same name another one may be started.
    begin_run(config, store, tmp_path / "run", resume=False, memory=MEMORY)


def test_a_file_that_comes_late_is_waited_for_and_one_that_does_not_come_is_named(tmp_path: Path) -> None:
    working = WorkingFolder.on_disk(tmp_path)
    late = threading.Timer(0.3, (tmp_path / "occupancy.mrc").write_text, ("x",))
    late.start()
    wait_for_file(working, "occupancy.mrc", 60)
    late.join()
    with pytest.raises(StorageError, match=r"first_latents\.npy was written by another worker.*all nodes see"):
        wait_for_file(working, "first_latents.npy", 0)
