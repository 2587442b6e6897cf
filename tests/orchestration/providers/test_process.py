import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.config.cluster import LocalCluster
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.providers.process import ProcessProvider, register_this_process, write_exit_code
from cryoformer_dist.orchestration.providers.provider import Handle, JobState
from cryoformer_dist.orchestration.request import RunRequest


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@dataclass(frozen=True, slots=True)
class _Request(RunRequest):
    """Runs a line of Python instead of a training."""

    program: str = ""

    def make_command(self, folder: str, python: str) -> list[str]:
        return [python, "-c", self.program]


def _request(program: str) -> _Request:
    return _Request("tiny", tiny_config(Path("s.zarr")), LocalCluster(), program=program)


def _ended(handle: Handle) -> JobState:
    end = time.monotonic() + 30
    while not (state := ProcessProvider().ask_state(handle)).ended:
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


@pytest.mark.parametrize(("code", "word"), [(0, "succeeded"), (3, "failed")])
def test_a_process_is_followed_to_its_end_and_its_exit_code_is_the_job_s(code: int, word: str) -> None:
    provider = ProcessProvider()
    program = f"import sys, time; print('one', flush=True); time.sleep(0.3); print('two', end=''); sys.exit({code})"
    handle = provider.submit(_request(program))
    assert provider.ask_state(handle) == JobState("running")
    assert list(provider.follow(handle)) == ["one", "two"]
    assert provider.ask_state(handle) == JobState(word, code)  # type: ignore[arg-type]


def test_the_files_a_launch_needs_lie_where_its_command_looks() -> None:
    handle = ProcessProvider().submit(_request("import sys; sys.exit(0)"))
    _ended(handle)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(handle["folder"]).iterdir()}
    assert {"cluster.yaml", "run.yaml", "log", "exit"} == files.keys()
    assert {files[name] for name in ("cluster.yaml", "run.yaml", "log")} == {0o600}
    assert stat.S_IMODE(Path(handle["folder"]).stat().st_mode) == 0o700


def test_stop_lets_the_driver_unwind_and_leaves_nothing_running() -> None:
    provider = ProcessProvider()
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "finally:\n    print('unwound', flush=True)\n"
    )
    handle = provider.submit(_request(program))
    log = Path(handle["folder"]) / "log"
    while not log.read_text():
        time.sleep(0.02)
    provider.stop(handle)
    assert "unwound" in log.read_text()
    assert _ended(handle).word in ("stopped", "failed")
    child = int(log.read_text().split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(ClusterError, match="has ended already"):
        provider.stop(handle)


def test_a_process_killed_outright_is_stopped_not_running() -> None:
    handle = ProcessProvider().submit(_request("import time; time.sleep(60)"))
    os.killpg(os.getpgid(int(handle["pid"])), signal.SIGKILL)
    assert _ended(handle) == JobState("stopped")


def test_another_process_of_the_same_number_is_not_taken_for_it() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        handle = register_this_process(_request("")) | {"pid": str(other.pid)}  # type: ignore[operator]
        assert ProcessProvider().ask_state(handle) == JobState("stopped")
    finally:
        other.kill()
        other.wait()


def test_a_launch_in_describe_this_process_says_how_it_ended() -> None:
    provider = ProcessProvider()
    handle = register_this_process(_request(""))
    assert provider.ask_state(handle) == JobState("running")
    assert "prints to the terminal" in next(iter(provider.follow(handle)))
    write_exit_code(handle, 2)
    assert provider.ask_state(handle) == JobState("failed", 2)


def test_a_preview_starts_nothing_and_shows_files_and_command(tmp_path: Path) -> None:
    shown = ProcessProvider().preview(RunRequest("tiny", tiny_config(Path("s.zarr")), LocalCluster()))
    assert "provider: local" in shown
    assert "store: s.zarr" in shown
    assert "cryoformer_dist.cli drive" in shown
    assert not (tmp_path / "state").exists()
