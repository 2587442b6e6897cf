from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.config.cluster import LocalCluster
from cryoformer_dist.errors import ClusterError, ClusterUnreachableWarning, ConfigError, RunStopped
from cryoformer_dist.orchestration import launch
from cryoformer_dist.orchestration.launch import find_provider, make_resume_request, read_cluster, record_launch, submit
from cryoformer_dist.orchestration.launch_record import read_launch
from cryoformer_dist.orchestration.providers.provider import Handle, JobState
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.runs.layout import TRAINING_LOG
from cryoformer_dist.runs.stop_request import StopRequest


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class _Provider:
    """Takes every run; says what it is told to say of it."""

    answer: JobState | ClusterError = JobState("running")

    def preview(self, request: RunRequest) -> str:
        return ""

    def submit(self, request: RunRequest) -> Handle:
        return {"job": "7"}

    def follow(self, handle: Handle) -> Iterator[str]:
        yield ""

    def ask_state(self, handle: Handle) -> JobState:
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer

    def stop(self, handle: Handle) -> None:
        pass


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> _Provider:
    made = _Provider()
    monkeypatch.setattr(launch, "choose_provider", lambda cluster: made)
    return made


@pytest.fixture
def asked(tmp_path: Path) -> RunRequest:
    return RunRequest("tiny", tiny_config(tmp_path / "s.zarr"), LocalCluster(storage=str(tmp_path / "runs")))


def test_what_was_launched_can_be_launched_again_to_go_on(asked: RunRequest, provider: _Provider) -> None:
    assert submit(asked, provider) == read_launch("tiny")
    launched = read_launch("tiny")
    assert launched.handle == {"job": "7"}
    assert launched.home == str(asked.home)
    assert read_cluster(launched) == asked.cluster
    assert make_resume_request(launched) == replace(asked, resume=True)


def test_stopping_waits_for_the_end_but_not_for_ever(
    asked: RunRequest, provider: _Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = submit(asked, provider)
    answers = [JobState("running"), JobState("running"), JobState("running"), JobState("stopped")]
    monkeypatch.setattr(provider, "ask_state", lambda handle: answers.pop(0))
    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.0)
    assert launch.stop(launched)
    assert not answers
    monkeypatch.setattr(launch, "_ENDING_SECONDS", 0.0)
    monkeypatch.setattr(provider, "ask_state", lambda handle: JobState("running"))
    assert not launch.stop(launched)


def test_a_run_that_trains_is_asked_to_end_and_left_to_it(
    asked: RunRequest, provider: _Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = submit(asked, provider)
    run = Path(launched.home)
    run.mkdir(parents=True)
    (run / TRAINING_LOG).touch()

    def ask_state(handle: Handle) -> JobState:
        return JobState("stopped", 130) if StopRequest(run).seen() else JobState("running")

    monkeypatch.setattr(provider, "ask_state", ask_state)
    taken_down = []

    def follow(handle: Handle) -> Iterator[str]:
        yield "a line"
        taken_down.append(handle)

    monkeypatch.setattr(provider, "stop", lambda handle: pytest.fail("ended at once"))
    monkeypatch.setattr(provider, "follow", follow)
    assert launch.stop(launched)
    assert taken_down == [launched.handle]


def test_two_drivers_never_share_a_name(asked: RunRequest, provider: _Provider) -> None:
    submit(asked, provider)
    with pytest.raises(ClusterError, match="has not ended"):
        submit(asked, provider)
    with pytest.raises(ClusterError, match="has not ended"), record_launch(asked):
        pytest.fail("two drivers share a name")
    provider.answer = JobState("failed", 1)
    submit(asked, provider)


def test_a_cluster_that_is_gone_does_not_hold_its_names(asked: RunRequest, provider: _Provider) -> None:
    submit(asked, provider)
    provider.answer = ClusterError("nobody answers")
    with pytest.warns(ClusterUnreachableWarning, match="nobody answers"):
        submit(asked, provider)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (None, JobState("succeeded", 0)),
        (ConfigError("not like this"), JobState("failed", 2)),
        (SystemExit(143), JobState("stopped", 143)),
        (RunStopped("at step 3"), JobState("stopped", 130)),
        (ZeroDivisionError(), JobState("failed", 1)),
        (KeyboardInterrupt(), JobState("stopped", 130)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_launch_in_this_process_is_recorded_with_how_it_ended(
    end: BaseException | None, state: JobState, asked: RunRequest
) -> None:
    def carry_out() -> None:
        with record_launch(asked):
            launched = read_launch("tiny")
            assert find_provider(launched).ask_state(launched.handle) == JobState("running")
            if end is not None:
                raise end

    if end is None:
        carry_out()
    else:
        with pytest.raises(type(end)):
            carry_out()
    launched = read_launch("tiny")
    assert find_provider(launched).ask_state(launched.handle) == state
