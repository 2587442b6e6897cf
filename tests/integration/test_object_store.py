"""The whole way on an object store ends as it does on a disk."""

import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support.command_line import run_command, running, train_command
from support.object_store import KEY, SECRET
from support.rank_processes import run_on_ranks
from support.tiny_runs import (
    SHARD_ROWS,
    Listener,
    assert_same_end,
    tiny_config,
    tiny_settings,
    train,
    train_prepared,
)
from upath import UPath

from cryoformer_dist.analysis import report
from cryoformer_dist.analysis.results import make_results, open_results, reconstruct_once
from cryoformer_dist.data.convert import (
    ConversionOptions,
    begin_conversion,
    convert_serially,
    convert_shard,
    plan_conversion,
)
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import StoreError
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.ranks import rank_and_world
from cryoformer_dist.runs.checkpoint_choice import fetch_latest, latest_checkpoint
from cryoformer_dist.runs.directory import load_run, open_run_directory, send_run
from cryoformer_dist.runs.results import read_made_results
from cryoformer_dist.training.preparation import prepare_run

CHANGES = {
    "training.epochs": 6,
    "model.pose.form": "table",
    "training.checkpoint_every_steps": 6,
    "training.keep_checkpoints": 2,
    "training.occupancy": "data",
    "training.occupancy_refresh_epochs": 1,
    "results.kmeans_volumes": 1,
}


@pytest.fixture(scope="module")
def bucket(object_store: Callable[[], UPath]) -> UPath:
    return object_store()


@pytest.fixture(scope="module")
def stored(bucket: UPath, tiny_store: Path) -> str:
    """The tiny store in the object store, converted in two attempts."""
    table, url = read_particles(tiny_store.parent / "particles" / "particles.star"), str(bucket / "sets" / "x.zarr")
    options = ConversionOptions(contrast="light", shard_rows=SHARD_ROWS, chunk_rows=8)
    plan = plan_conversion(table, url, options)
    assert begin_conversion(plan) == [0, 1, 2, 3]
    convert_shard(plan, 2)
    resumed = plan_conversion(table, url, options)
    assert begin_conversion(resumed) == [0, 1, 3]
    convert_serially(resumed)
    return url


def _objects(place: UPath) -> dict[str, bytes]:
    names = place.fs.find(place.path)
    return {name[len(place.path.rstrip("/")) + 1 :]: place.fs.cat_file(name) for name in names}


def test_a_store_in_an_object_store_is_that_of_the_disk_byte_for_byte(
    bucket: UPath, stored: str, tiny_store: Path
) -> None:
    files = {path.relative_to(tiny_store).as_posix(): path for path in tiny_store.rglob("*") if path.is_file()}
    assert _objects(bucket / "sets" / "x.zarr") == {name: path.read_bytes() for name, path in files.items()}


def _complete_steps(run: UPath) -> list[int]:
    return [int(path.parent.name[5:]) for path in run.glob("checkpoints/step-*/manifest.json")]


def _wait_for_checkpoint(run: UPath, step: int, process: "subprocess.Popen[str]", seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "training ended too early"
        if max(_complete_steps(run), default=0) >= step:
            return
        time.sleep(0.1)
    pytest.fail(f"no checkpoint of step {step} within {seconds} s")


@pytest.mark.slow
@pytest.mark.usefixtures("flushed_denormals")
def test_convert_train_kill_resume_and_report_on_an_object_store_end_as_on_a_disk(
    bucket: UPath, stored: str, tiny_store: Path, tmp_path: Path
) -> None:
    run_file, run = tmp_path / "run.yaml", bucket / "runs" / "killed"
    settings = tiny_settings(tiny_store, CHANGES)
    settings["dataset"]["store"] = stored
    run_file.write_text(yaml.safe_dump(settings))
    command = train_command(run_file, bucket / "runs", "killed", "--local")  # type: ignore[arg-type]
    with running(command, tmp_path / "killed.log") as process:
        train(tiny_config(tiny_store, CHANGES), tmp_path / "whole")
        _wait_for_checkpoint(run, 12, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert max(_complete_steps(run)) < 32
    assert f"{run}/report.html" in run_command([*command, "--resume"]).replace("\n", "")
    with open_run_directory(run) as killed:
        fetch_latest(killed)
        assert_same_end(killed.folder, tmp_path / "whole")
        assert (killed.folder / "report.html").is_file()
    assert sorted(_complete_steps(run)) == [30, 32]
    for name, content in _objects(bucket).items():
        assert KEY.encode() not in content, name
        assert SECRET.encode() not in content, name


def test_a_store_in_an_object_store_can_be_sent_to_workers_and_names_its_damage(bucket: UPath, stored: str) -> None:
    store = pickle.loads(pickle.dumps(ParticleStore.open(stored)))
    assert str(store.path) == stored
    copied = bucket / "sets" / "damaged.zarr"
    bucket.fs.copy(UPath(stored).path, copied.path, recursive=True)
    (copied / "particles" / "c" / "0" / "0").unlink()
    with pytest.raises(StoreError, match=r"s3://.*array 'particles', shard 0.*is missing"):
        ParticleStore.open(str(copied)).particles()


def _train_on_rank(home: str) -> None:
    """One of two training processes, each with a working copy of its own."""
    with open_run_directory(home) as run:
        train_prepared(run, Listener())


@pytest.mark.slow
def test_two_ranks_under_zero_send_their_own_files_and_end_as_on_a_disk(
    bucket: UPath, tiny_store: Path, tmp_path: Path
) -> None:
    changes = CHANGES | {"training.epochs": 2, "training.engine": "deepspeed", "training.zero_stage": 1}
    config = tiny_config(tiny_store, changes)
    for home in (str(tmp_path / "run"), str(bucket / "runs" / "zero")):
        with open_run_directory(home) as run:
            prepare_run(config, ParticleStore.open(tiny_store), run.folder, resume=False)
            send_run(run)
        run_on_ranks(2, _train_on_rank, home)
    with open_run_directory(bucket / "runs" / "zero") as run:
        fetch_latest(run)
        found = latest_checkpoint(run.folder)
        assert found is not None
        assert len(list(found.engine_folder.rglob("*_optim_states.pt"))) == 2
        assert_same_end(run.folder, tmp_path / "run")


def _make_maps_on_rank(home: str, stale: str) -> None:
    """One of some processes that make results, each with a working copy of its own."""
    with open_run_directory(home) as run:
        if rank_and_world()[0] == 0:
            (run.folder / stale).parent.mkdir(exist_ok=True)
            (run.folder / stale).touch()
            run.send(stale)
        fetch_latest(run)
        reconstruct_once(run, load_run(run.folder)[0], torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:only .* particles near state")
def test_ranks_send_the_maps_they_made_home_and_remove_earlier_ones(
    bucket: UPath, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ("_LARGE", "_SMALL"):
        monkeypatch.setattr(report, size, 40)
    changes = {"model.pose.form": "table", "model.pose.start": "given", "training.epochs": 1}
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    home, stale = bucket / "runs" / "maps", "volumes/kmeans_009.mrc"
    bucket.fs.put(str(tmp_path / "run"), home.path, recursive=True)
    run_on_ranks(2, _make_maps_on_rank, str(home), stale)
    with open_run_directory(home) as there:
        made = read_made_results(there.folder)
        assert made is not None
        assert {"volumes/kmeans_001.mrc", "volumes/pc1_001.mrc", "volumes/mean.mrc", "poses.star"} <= set(made.files)
        assert all((there.folder / name).is_file() for name in (*made.files, "latent.npz", "flexibility.json"))
        assert not (there.folder / stale).exists()
    with open_results(home) as there:
        make_results(there)
    assert (home / "report.html").is_file()


@pytest.mark.slow
def test_a_ray_worker_trains_on_an_object_store(bucket: UPath, stored: str, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, CHANGES | {"training.epochs": 2, "dataset.loader": "ray"})
    settings["dataset"]["store"] = stored
    run_file, run = tmp_path / "run.yaml", bucket / "runs" / "ray"
    run_file.write_text(yaml.safe_dump(settings))
    run_command(train_command(run_file, bucket / "runs", "ray"))  # type: ignore[arg-type]
    assert (run / "report.html").is_file()
    assert list((run / "ray").iterdir())
    for name, content in _objects(bucket).items():
        assert KEY.encode() not in content, name
        assert SECRET.encode() not in content, name
