import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cryoformer_dist.errors import InUseError, StorageError
from cryoformer_dist.storage import lease
from cryoformer_dist.storage.lease import DEAD_SECONDS, WATCHED_SECONDS, _Lease, sole_writer
from cryoformer_dist.storage.places import Place

if TYPE_CHECKING:
    from upath import UPath


def _no_pause(seconds: float) -> None:
    pytest.fail("waits")


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return tmp_path / "runs" / "mine"
    bucket: Callable[[], UPath] = request.getfixturevalue("object_store")
    return bucket() / "runs" / "mine"


def _leases(place: Place) -> list[Place]:
    folder = place.parent / f".{place.name}.lock"
    return sorted(folder.iterdir(), key=str) if folder.exists() else []


def _leave(place: Place, **changes: object) -> None:
    """A lease that somebody else has written."""
    left = replace(_Lease.of_this_process(), holds=True, **changes)  # type: ignore[arg-type]
    folder = place.parent / f".{place.name}.lock"
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{left.token}.json").write_text(json.dumps(asdict(left)))


def test_the_second_writer_is_told_who_the_first_is_and_another_place_is_free(place: Place) -> None:
    with sole_writer(place):
        told = r"mine: process \d+ on .* has been writing there since .*; wait"
        with pytest.raises(InUseError, match=told), sole_writer(place, _no_pause):
            pytest.fail("two writers")
        with sole_writer(place.parent / "other", _no_pause):
            pass
        assert len(_leases(place)) == 1
    assert _leases(place) == []
    with sole_writer(place, _no_pause):
        pass


def test_an_error_ends_a_lease_too(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(place):
        raise ZeroDivisionError
    assert _leases(place) == []


def test_of_many_that_come_at_once_one_writes(tmp_path: Path) -> None:
    ended = threading.Event()

    def attempt(_: int) -> bool:
        try:
            with sole_writer(tmp_path / "mine"):
                assert ended.wait(60)
            return True
        except InUseError:
            return False

    with ThreadPoolExecutor(8) as pool:
        # The one that holds it stays until the others have been told.
        told = [pool.submit(attempt, number) for number in range(8)]
        _until(lambda: sum(each.done() for each in told) == 7)
        ended.set()
        assert sum(each.result() for each in told) == 1


def _until(holds: Callable[[], bool]) -> list[None]:
    while not holds():
        time.sleep(0.001)
    return []


def test_a_killed_process_does_not_hold_its_lease(place: Place) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _leave(place, process=ended.pid, began="1")
    # The number is somebody else's by now.
    _leave(place, began="1")
    with sole_writer(place, _no_pause):
        assert len(_leases(place)) == 1


def test_an_owner_elsewhere_is_dead_when_it_is_long_silent_under_our_eyes(place: Place) -> None:
    waited: list[float] = []
    _leave(place, machine="another", renewed=time.time() - DEAD_SECONDS - 1)
    with sole_writer(place, waited.append):
        assert sum(waited) == pytest.approx(WATCHED_SECONDS, abs=1)
        assert len(_leases(place)) == 1


def test_an_owner_elsewhere_that_was_heard_of_lately_lives(place: Place) -> None:
    _leave(place, machine="another", host="node7")
    with pytest.raises(InUseError, match="on node7"), sole_writer(place, _no_pause):
        pytest.fail("two writers")


def test_an_owner_elsewhere_whose_clock_is_slow_lives(place: Place) -> None:
    late = time.time() - 10 * DEAD_SECONDS
    _leave(place, machine="another", host="node7", token="a" * 32, renewed=late)
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 5:
            _leave(place, machine="another", host="node7", token="a" * 32, renewed=late + 10)

    with pytest.raises(InUseError, match="on node7"), sole_writer(place, pause):
        pytest.fail("two writers")
    assert sum(waited) < WATCHED_SECONDS


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.001)
    with sole_writer(tmp_path / "mine"):
        (file,) = (path for path in _leases(tmp_path / "mine") if not path.name.startswith("."))
        began = json.loads(file.read_text())
        _until(lambda: bool(json.loads(file.read_text())["renewed"] > began["renewed"]))
        assert json.loads(file.read_text()) | {"renewed": began["renewed"]} == began


def test_what_is_no_lease_holds_nothing(place: Place) -> None:
    _leave(place)
    (file,) = _leases(place)
    file.write_text("{}")
    with sole_writer(place, _no_pause):
        pass


def test_a_place_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot be written \(.*\); make room"),
        sole_writer(tmp_path / "file" / "a"),
    ):
        pytest.fail("writes below a file")


def test_nobody_writes_before_his_own_lease_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, read, pauses = False, lease._read_all, list[float]()

    def pause(seconds: float) -> None:
        nonlocal listed
        pauses.append(seconds)
        listed = len(pauses) == 3

    monkeypatch.setattr(lease, "_read_all", lambda folder: read(folder) if listed else [])
    with sole_writer(tmp_path / "mine", pause):
        assert len(pauses) == 3
    listed = False
    with pytest.raises(StorageError, match=r"not listed, not after 6\d s"), sole_writer(tmp_path / "x", pauses.append):
        pytest.fail("writes")
