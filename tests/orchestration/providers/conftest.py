import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryoformer_dist.config.cluster import ClusterConfig
from cryoformer_dist.config.loading import parse_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.orchestration.request import RunRequest

STAND_INS = Path(__file__).with_name("stand_ins")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts stand-ins for programs first on the PATH: ``programs("slurm.py", "sbatch", "srun")``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(script: str, *names: str) -> Path:
        for name in names:
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{STAND_INS / script}" {name} "$@"\n')
            program.chmod(0o755)
        return folder

    return install


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Following a job that never ends is a failure, not a test that never ends."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the job did not end")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(1200 if request.node.get_closest_marker("slow") else 120)
    yield
    signal.alarm(0)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Launches are kept below the test's own folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def make_request() -> Callable[..., RunRequest]:
    """A run for a cluster, by default a new run called arm_1."""

    def make(cluster: ClusterConfig, name: str = "arm_1", resume: bool = False) -> RunRequest:
        config = parse_config({"name": name, "dataset": {"store": "/shared/particles.zarr"}}, RunConfig, "test")
        return RunRequest(name, config, cluster, resume)

    return make
