"""On an object store that is a server of its own, is busy, lists late, and refuses credentials that have expired.

SeaweedFS, where it is installed; what a healthy one does not do by itself, a proxy before it does.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from s3fs import S3FileSystem
from support.command_line import run_command, running, train_command
from support.object_store import KEY, SECRET
from support.sabotage import Saboteur, once_warned
from support.seaweedfs import RENEWED_KEY, RENEWED_SECRET, serving_seaweedfs
from support.tiny_runs import (
    Listener,
    assert_same_end,
    prepare,
    tiny_config,
    tiny_settings,
    train,
    train_prepared,
)
from support.troubled_store import Troubles, troubling
from upath import UPath

from cryoformer_dist.data.convert import ConversionOptions, begin_conversion, convert_serially, plan_conversion
from cryoformer_dist.data.order import Consumed
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointNotWrittenError, StorageError
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.runs.checkpoint import LearnedState, Position, write_checkpoint
from cryoformer_dist.runs.checkpoint_choice import agree_on_checkpoint, fetch_latest
from cryoformer_dist.runs.directory import open_run_directory, send_run
from cryoformer_dist.storage.places import OBJECT_STORE_OPTIONS
from cryoformer_dist.storage.retry import StorageRetry
from cryoformer_dist.storage.working_folder import WorkingFolder

pytestmark = pytest.mark.slow

CHANGES = {"training.epochs": 2, "training.storage_patience_seconds": 60.0}
MIB = 2**20


@pytest.fixture(scope="module")
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aws") / "credentials"


@pytest.fixture(scope="module")
def store_with_proxy(
    troubles: Troubles, credentials: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], UPath]]:
    """What makes a new, empty bucket."""
    with serving_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint, troubling(endpoint, troubles) as url:
        with pytest.MonkeyPatch.context() as changed:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                changed.delenv(name, raising=False)
            changed.setenv("AWS_ENDPOINT_URL", url)
            changed.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
            changed.setenv("AWS_DEFAULT_REGION", "us-east-1")
            # Clients that other tests have made speak to other endpoints.
            S3FileSystem.clear_instance_cache()
            yield lambda: UPath(f"s3://bucket-{time.monotonic_ns()}", **OBJECT_STORE_OPTIONS)
        S3FileSystem.clear_instance_cache()


def _write_credentials(path: Path, key: str, secret: str) -> None:
    """Not at once, as an editor does not."""
    path.write_text("")
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


@pytest.fixture
def bucket(store_with_proxy: Callable[[], UPath], troubles: Troubles, credentials: Path) -> UPath:
    """Empty, on a store without troubles."""
    troubles.calm()
    _write_credentials(credentials, KEY, SECRET)
    made = store_with_proxy()
    made.fs.connect(refresh=True)
    made.fs.mkdir(made.path)
    return made


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk, left in peace."""
    run = tmp_path_factory.mktemp("peace") / "run"
    train(tiny_config(tiny_store, CHANGES), run)
    return run


def _convert(tiny_store: Path, place: UPath) -> str:
    table = read_particles(tiny_store.parent / "particles" / "particles.star")
    plan = plan_conversion(table, str(place), ConversionOptions(contrast="light", shard_rows=16, chunk_rows=8))
    begin_conversion(plan)
    convert_serially(plan)
    return str(place)


@pytest.mark.usefixtures("flushed_denormals")
def test_a_run_killed_on_a_store_that_is_busy_and_lists_late_ends_as_on_a_disk(
    bucket: UPath, troubles: Troubles, tiny_store: Path, tmp_path: Path
) -> None:
    changes = {"training.epochs": 4, "training.checkpoint_every_steps": 6, "training.keep_checkpoints": 2}
    troubles.busy_every, troubles.listing_delay_seconds = 25, 1.5
    settings = tiny_settings(tiny_store, changes)
    settings["dataset"]["store"] = _convert(tiny_store, bucket / "sets" / "x.zarr")
    run_file, run = tmp_path / "run.yaml", bucket / "runs" / "killed"
    run_file.write_text(yaml.safe_dump(settings))
    command = train_command(run_file, bucket / "runs", "killed", "--local")  # type: ignore[arg-type]
    with running(command, tmp_path / "killed.log") as process:
        train(tiny_config(tiny_store, changes), tmp_path / "whole")
        end = time.monotonic() + 150
        while not list(run.glob("checkpoints/step-*/manifest.json")):
            assert process.poll() is None, (tmp_path / "killed.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert f"{run}/report.html" in run_command([*command, "--resume"]).replace("\n", "")
    assert troubles.refused > 5
    assert troubles.hidden > 0
    time.sleep(troubles.listing_delay_seconds)
    with open_run_directory(run) as killed:
        fetch_latest(killed)
        assert_same_end(killed.folder, tmp_path / "whole")
        assert (killed.folder / "report.html").is_file()


def test_a_large_checkpoint_goes_up_in_parts_and_comes_back_whole_though_parts_are_refused(
    bucket: UPath, troubles: Troubles, tmp_path: Path
) -> None:
    content = os.urandom(MIB) * 120
    troubles.busy_every = 5

    def save_engine(folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(content)
        return [folder / "state"]

    home = bucket / "runs" / "large"
    position = Position(stage=0, stage_step=7, step=7, consumed=Consumed())
    learned = LearnedState(weights={"w": torch.ones(1)}, tables={}, occupancy={})
    (tmp_path / "here").mkdir()
    run = WorkingFolder(home, tmp_path / "here")
    write_checkpoint(
        run,
        position,
        leader=True,
        save_engine=save_engine,
        learned=lambda: learned,
        keep=1,
        retry=StorageRetry(home, 60.0),
    )
    assert troubles.multipart >= 1
    assert troubles.refused > 0
    (tmp_path / "there").mkdir()
    found = agree_on_checkpoint(WorkingFolder(home, tmp_path / "there"))
    assert found is not None
    assert found.position == position
    assert (found.engine_folder / "state").read_bytes() == content


def _begin(tiny_store: Path, home: UPath, changes: dict[str, object]) -> None:
    """A prepared run in the object store, its particles on the disk."""
    with open_run_directory(home) as run:
        prepare(tiny_config(tiny_store, changes), ParticleStore.open(tiny_store), run.folder)
        send_run(run)


def _train(home: UPath, listener: Listener) -> None:
    with open_run_directory(home) as run:
        fetch_latest(run)
        train_prepared(run, listener)


def _assert_same_end_at_home(home: UPath, other: Path) -> None:
    with open_run_directory(home) as run:
        fetch_latest(run)
        assert_same_end(run.folder, other)


def test_training_goes_on_once_expired_credentials_are_renewed_in_their_file(
    bucket: UPath, troubles: Troubles, credentials: Path, tiny_store: Path, whole: Path
) -> None:
    home = bucket / "runs" / "expired"
    _begin(tiny_store, home, CHANGES)
    saboteur = Saboteur(at=4, deed=lambda: troubles.expired_keys.add(KEY))
    with once_warned(lambda: _write_credentials(credentials, RENEWED_KEY, RENEWED_SECRET), 1.0):
        _train(home, saboteur)
    assert saboteur.done
    _assert_same_end_at_home(home, whole)


def test_credentials_that_stay_expired_end_training_with_what_to_do_and_resume_loses_nothing(
    bucket: UPath, troubles: Troubles, credentials: Path, tiny_store: Path, whole: Path
) -> None:
    home = bucket / "runs" / "ended"
    _begin(tiny_store, home, CHANGES | {"training.storage_patience_seconds": 0.5})
    with (
        pytest.warns(match="have expired: renew them in AWS_SHARED_CREDENTIALS_FILE"),
        pytest.raises(CheckpointNotWrittenError, match=rf"^{home}: .*have expired: renew them in .*--resume"),
    ):
        _train(home, Saboteur(at=4, deed=lambda: troubles.expired_keys.add(KEY)))
    _write_credentials(credentials, RENEWED_KEY, RENEWED_SECRET)
    home.fs.connect(refresh=True)
    assert [path.parent.name for path in home.glob("checkpoints/step-*/manifest.json")] == ["step-00000004"]
    _train(home, Listener())
    _assert_same_end_at_home(home, whole)


def test_particles_that_cannot_be_read_now_are_not_called_damaged(
    bucket: UPath, troubles: Troubles, tiny_store: Path
) -> None:
    store = ParticleStore.open(_convert(tiny_store, bucket / "sets" / "y.zarr"))
    troubles.busy_every = 3
    assert len(store.particles()) == 64
    troubles.busy_every = 0
    troubles.expired_keys.add(KEY)
    with pytest.raises(StorageError, match=r"s3://.*have expired: renew them.*then repeat the command"):
        store.verify()
