from pathlib import Path

import pytest

from cryoformer_dist.errors import ClusterError, CryoFormerError
from cryoformer_dist.orchestration.launch_record import (
    Launch,
    find_launch,
    find_launch_folder,
    read_launch,
    read_launches,
    write_launch,
)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _write(name: str, job: str = "1") -> Launch:
    return write_launch(name, "/shared/runs/", {"run.yaml": "a: 1\n"}, {"job": job})


def test_a_launch_is_found_again_as_it_was() -> None:
    assert find_launch("demo") is None
    launch = _write("demo")
    assert find_launch("demo") == read_launch("demo") == launch
    assert launch.home == "/shared/runs/demo"


def test_a_name_s_newest_launch_counts() -> None:
    for job in ("1", "2"):
        _write("demo", job)
    _write("another")
    assert [(launch.name, launch.handle["job"]) for launch in read_launches()] == [("another", "1"), ("demo", "2")]
    assert list(find_launch_folder().glob(".*")) == []


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(ClusterError, match="launched from here: none"):
        read_launch("demo")
    _write("mine")
    with pytest.raises(ClusterError, match="launched from here: mine"):
        read_launch("demo")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"schema_version": 1, "name": "demo"}'])
def test_a_broken_record_is_named(text: str) -> None:
    _write("demo")
    (find_launch_folder() / "demo.json").write_text(text)
    with pytest.raises(CryoFormerError, match=r"demo\.json: damaged.*delete it"):
        read_launch("demo")


@pytest.mark.parametrize("version", [0, 2])
def test_a_record_of_another_version_is_refused_by_name_and_not_half_read(version: int) -> None:
    _write("demo")
    path = find_launch_folder() / "demo.json"
    path.write_text(path.read_text().replace('"schema_version": 1', f'"schema_version": {version}'))
    with pytest.raises(CryoFormerError, match=rf"demo\.json: schema {version}, .* reads schema 1; delete it"):
        read_launch("demo")
