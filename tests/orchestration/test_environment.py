import os
from pathlib import Path

import pytest

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.environment import describe_token_place, find_token, make_token, prepare_environment


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    prepare_environment()


def test_clusters_ask_for_a_token_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_clusters_of_our_own_share_a_token_that_only_the_user_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    make_token()
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    first = path.read_text()
    assert len(first) == 64
    assert path.stat().st_mode & 0o077 == 0
    assert describe_token_place() == f"in {path}"
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    make_token()
    assert path.read_text() == first
    assert list(path.parent.iterdir()) == [path]


def test_a_token_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    make_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_another_s_cluster_without_a_token_to_be_found_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="token_file"):
        find_token(None)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("theirs")
    find_token(None)


def test_a_token_file_counts_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another cluster's")
    with pytest.raises(ClusterError, match="no such file"):
        find_token(str(tmp_path / "token"))
    (tmp_path / "token").write_text("theirs")
    find_token(str(tmp_path / "token"))
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert "RAY_AUTH_TOKEN" not in os.environ
