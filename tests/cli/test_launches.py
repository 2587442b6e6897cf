from pathlib import Path

import pytest
import yaml
from support.tiny_runs import tiny_settings
from typer.testing import CliRunner, Result

from cryoformer_dist.cli import main as cli
from cryoformer_dist.errors import RunStopped, TrainingError
from cryoformer_dist.orchestration import pipeline
from cryoformer_dist.orchestration.display import Display
from cryoformer_dist.orchestration.providers.process import ProcessProvider
from cryoformer_dist.orchestration.providers.provider import JobState
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.runs.waiting import write_waiting


class _Pipeline:
    """Takes the place of the whole way; ends as it is told to."""

    def __init__(self) -> None:
        self.requests: list[RunRequest] = []
        self.end: BaseException | None = None

    def __call__(self, request: RunRequest, display: Display) -> None:
        self.requests.append(request)
        display.say(f"made {request.home}")
        if self.end is not None:
            raise self.end


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Pipeline:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stand_in = _Pipeline()
    monkeypatch.setattr(pipeline, "run_pipeline", stand_in)
    return stand_in


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings(Path("s.zarr"))))
    path = tmp_path / "cluster.yaml"
    path.write_text("{run: run.yaml, storage: runs, workers: {count: 2}}\n")
    return path


def _call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_a_launch_that_this_process_drives_is_made_once_and_its_status_is_how_it_ended(
    made: _Pipeline, cluster_file: Path
) -> None:
    done = _call("launch", cluster_file)
    assert done.exit_code == 0, done.output
    run = cluster_file.parent / "runs" / "tiny"
    assert done.output == f"made {run}\n"
    assert "tiny  succeeded (exit code 0)  launched 2" in _call("status").output
    assert _call("status", "tiny").output.endswith(f"  {run}\n")
    made.end = TrainingError("diverged")
    assert isinstance(_call("resume", "tiny").exception, TrainingError)
    assert "tiny  failed (exit code 2)" in _call("status").output
    first, again = made.requests
    assert (first.resume, again.resume) == (False, True)
    assert (again.config, again.cluster) == (first.config, first.cluster)


def test_the_status_of_a_run_that_waits_for_nodes_says_for_which_while_it_runs(
    made: _Pipeline, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _call("launch", cluster_file)
    run = cluster_file.parent / "runs" / "tiny"
    run.mkdir(parents=True)
    write_waiting(run, "training waits since 12:00:00 for room for 2 workers")
    # A driver that was killed leaves the file.
    assert "waits" not in _call("status").output
    monkeypatch.setattr(ProcessProvider, "ask_state", lambda self, handle: JobState("running"))
    assert "tiny  running, but training waits since 12:00:00 for room for 2 workers  launched" in _call("status").output


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RunStopped("stopped at step 3")])
def test_a_run_that_its_user_stops_is_stopped_not_failed(
    made: _Pipeline, cluster_file: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    made.end = end
    monkeypatch.setattr("sys.argv", ["cryoformer-dist", "launch", str(cluster_file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "tiny  stopped (exit code 130)" in _call("status").output


def test_a_dry_run_shows_the_files_and_makes_nothing(made: _Pipeline, cluster_file: Path) -> None:
    shown = _call("launch", cluster_file, "--dry-run").output
    assert "count: 2" in shown
    assert "drive" in shown
    assert made.requests == []
    assert not (cluster_file.parent / "state").exists()


def test_what_a_node_is_sent_is_the_same_run(made: _Pipeline, cluster_file: Path) -> None:
    assert _call("launch", cluster_file, "--name", "other").exit_code == 0
    (sent,) = (cluster_file.parent / "state").rglob("other/cluster.yaml")
    done = _call("drive", sent, sent.with_name("run.yaml"), "--name", "other", "--resume")
    assert done.exit_code == 0, done.output
    launched, driven = made.requests
    assert (driven.name, driven.config, driven.cluster) == (launched.name, launched.config, launched.cluster)
    assert driven.resume


def test_train_without_ray_asks_for_the_same_run_in_this_process(
    made: _Pipeline, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluster_file.parent)
    for options in ((), ("--local",)):
        assert _call("train", "run.yaml", "--name", "mine", *options).exit_code == 0
    assert [request.without_ray for request in made.requests] == [False, True]
    assert {request.home for request in made.requests} == {cluster_file.parent / "runs" / "mine"}
