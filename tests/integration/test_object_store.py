"""The whole way on an object store ends as it does on a disk."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from object_store import KEY, SECRET
from test_kill_and_resume import CHANGES, EXACT, _command, _run, _started
from tiny_runs import SHARD_ROWS, final_state, tiny_settings
from upath import UPath

from cryoformer_dist.data.convert import (
    ConversionOptions,
    begin_conversion,
    convert_serially,
    convert_shard,
    plan_conversion,
)
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.training.checkpoint import fetch_latest
from cryoformer_dist.training.progress import read_metrics
from cryoformer_dist.training.run_directory import opened_run

OPTIONS = ConversionOptions(contrast="light", shard_rows=SHARD_ROWS, chunk_rows=8)


@pytest.fixture
def star(tiny_store: Path) -> Path:
    return tiny_store.parent / "particles" / "particles.star"


def _objects(place: UPath) -> dict[str, bytes]:
    return {str(path)[len(place.path.rstrip("/")) + 1 :]: place.fs.cat_file(path) for path in place.fs.find(place.path)}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_store_written_to_an_object_store_is_that_of_the_disk_byte_for_byte(
    object_store: Callable[[], UPath], star: Path, tmp_path: Path
) -> None:
    table, place = read_particles(star), object_store() / "sets" / "x.zarr"
    convert_serially(plan_conversion(table, tmp_path / "x.zarr", OPTIONS))
    plan = plan_conversion(table, str(place), OPTIONS)
    # Cut short after a shard, and taken up again.
    assert begin_conversion(plan) == [0, 1, 2, 3]
    convert_shard(plan, 0)
    resumed = plan_conversion(table, str(place), OPTIONS)
    assert resumed.resumes
    assert begin_conversion(resumed) == [1, 2, 3]
    convert_serially(resumed)
    assert _objects(place) == _files(tmp_path / "x.zarr")


def _wait_for_checkpoint(run: UPath, step: int, process: object, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "training ended too early"  # type: ignore[attr-defined]
        if (run / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists():
            return
        time.sleep(0.02)
    pytest.fail(f"no checkpoint of step {step} within {seconds} s")


def test_convert_train_kill_resume_and_report_on_an_object_store_end_as_on_a_disk(
    object_store: Callable[[], UPath], star: Path, tiny_store: Path, tmp_path: Path
) -> None:
    bucket = object_store()
    store = convert_serially(plan_conversion(read_particles(star), str(bucket / "x.zarr"), OPTIONS))
    assert store.fingerprint == ParticleStore.open(tiny_store).fingerprint
    files = {name: tmp_path / f"{name}.yaml" for name in ("disk", "objects")}
    changes = CHANGES | {"training.keep_checkpoints": 2}
    files["disk"].write_text(yaml.safe_dump(tiny_settings(tiny_store, changes)))
    files["objects"].write_text(yaml.safe_dump(tiny_settings(store.path, changes)))
    run = bucket / "runs" / "killed"
    command = _command(files["objects"], bucket / "runs", "killed", "--local")
    with _started(_command(files["disk"], tmp_path / "runs", "whole", "--local"), tmp_path / "log") as whole:
        with _started(command, tmp_path / "killed.log") as process:
            _wait_for_checkpoint(run, 12, process)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        said = _run([*command, "--resume"])
        assert whole.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    assert f"{run}/report.html" in said
    with opened_run(run) as killed:
        fetch_latest(killed)
        _assert_same_end(killed.folder, tmp_path / "runs" / "whole")
        assert (killed.folder / "report.html").is_file()
    steps = {path.name for path in (run / "checkpoints").iterdir()}
    assert steps == {path.name for path in (tmp_path / "runs" / "whole" / "checkpoints").iterdir()}
    for name, content in _objects(bucket).items():
        assert KEY.encode() not in content, name
        assert SECRET.encode() not in content, name


def _assert_same_end(run: Path, other: Path) -> None:
    exact = [[{key: record[key] for key in EXACT} for record in read_metrics(each)] for each in (run, other)]
    assert exact[0] == exact[1]
    state, other_state = final_state(run), final_state(other)
    assert state.keys() == other_state.keys()
    for name, value in state.items():
        assert torch.equal(value, other_state[name]), name
