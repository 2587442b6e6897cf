from pathlib import Path

import pytest

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.launch_registry import Launch, all_launches, find_launch, keep_launch, launch_folder


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _launch(name: str, job: str = "1") -> Launch:
    return Launch.now(name, "/shared/runs", {"run.yaml": "a: 1\n"}, {"job": job})


def test_a_launch_is_found_again_as_it_was() -> None:
    kept = _launch("demo")
    keep_launch(kept)
    assert find_launch("demo") == kept


def test_a_name_s_newest_launch_counts() -> None:
    for job in ("1", "2"):
        keep_launch(_launch("demo", job))
    keep_launch(_launch("another"))
    assert [(launch.name, launch.handle["job"]) for launch in all_launches()] == [("another", "1"), ("demo", "2")]
    assert list(launch_folder().glob(".*")) == []


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(ClusterError, match="launched from here: none"):
        find_launch("demo")
    keep_launch(_launch("mine"))
    with pytest.raises(ClusterError, match="launched from here: mine"):
        find_launch("demo")


@pytest.mark.parametrize(("text", "said"), [("{", "delete it"), ("[]", "delete it"), ('{"a": 1}', "delete it")])
def test_a_broken_record_is_named(text: str, said: str) -> None:
    keep_launch(_launch("demo"))
    (launch_folder() / "demo.json").write_text(text)
    with pytest.raises(ClusterError, match=rf"demo\.json.*{said}"):
        find_launch("demo")


def test_a_record_of_a_newer_version_asks_for_it() -> None:
    keep_launch(_launch("demo"))
    path = launch_folder() / "demo.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ClusterError, match="upgrade"):
        find_launch("demo")
