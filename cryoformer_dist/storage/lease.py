"""One writer at a time: who writes to a place says so in a file beside it, on a file system and an object store alike.

Everybody first writes a file of his own and then looks at those of the others, so of two that come at once at least one
sees the other; nothing is asked of storage but that a file that was written is seen by who lists it afterwards.

Owners renew their files every `RENEWED_SECONDS`. An owner is dead if it is on this machine and its process is not there
any more; or if, elsewhere, its file is older than `DEAD_SECONDS` and stays as it is for `WATCHED_SECONDS` under our
eyes: clocks of two machines may differ.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryoformer_dist.errors import InUseError, StorageError
from cryoformer_dist.storage.places import Place, client_errors, in_reach, make_folder, write_whole
from cryoformer_dist.storage.retry import explain_refusal

RENEWED_SECONDS = 10.0
DEAD_SECONDS, WATCHED_SECONDS = 120.0, 30.0
# Of two that ask at once, one turns away as soon as it has looked.
_ASKING_SECONDS, _POLL_SECONDS = 10.0, 0.1
_WATCH_SECONDS = 1.0
# So late an object store may list what was written.
_LATE_SECONDS = 60.0
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class _Lease:
    """What an owner writes.

    Attributes
    ----------
    token
        Name of the file.
    host, machine, process, began
        Who: for people; a machine since it was started, with its process numbers; its number, and when it began.
    since
        Local time, for people.
    renewed
        Seconds since 1970 by the owner's clock.
    holds
        Whether the owner has looked at the others, and nobody was before it.
    """

    token: str
    host: str
    machine: str
    process: int
    began: str
    since: str
    renewed: float
    holds: bool = False

    @staticmethod
    def of_this_process() -> "_Lease":
        process, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        began = _find_beginning(process)
        return _Lease(uuid.uuid4().hex, platform.node(), _name_machine(), process, began, since, time.time())

    @property
    def is_here(self) -> bool:
        return self.machine == _name_machine()

    @property
    def has_ended(self) -> bool:
        """Whether it is known, for an owner on this machine, that its process is not there any more."""
        return self.is_here and _find_beginning(self.process) != self.began


@contextmanager
def sole_writer(place: Place, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Be the only one who writes to a place, until the end of the block.

    Parameters
    ----------
    place
        A folder or a file, which need not be there yet; the lease is beside it, in ``.NAME.lock``.
    pause
        Waits so many seconds, where it takes time to know whether an owner elsewhere is dead.

    Raises
    ------
    InUseError
        If somebody else writes there: who, where and since when.
    StorageError
        If nobody can, now or later in the block: the file system is full, or for reading only.
    """
    folder, mine = place.parent / f".{place.name}.lock", _Lease.of_this_process()
    with in_reach(place):
        _ask(place, folder, mine)
        try:
            _wait_for_turn(place, folder, mine, pause)
            mine = replace(mine, holds=True)
            _write(folder, mine)
        except BaseException:
            _remove(folder, mine.token)
            raise
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(folder, mine, ended), daemon=True)
    renewal.start()
    try:
        yield
    except (OSError, RuntimeError) as error:
        if explain_refusal(error) is None:
            raise
        raise StorageError(f"{place}: cannot be written ({error}); make room there, or write elsewhere") from error
    finally:
        ended.set()
        renewal.join()
        _remove(folder, mine.token)


def _ask(place: Place, folder: Place, mine: _Lease) -> None:
    for _ in range(_ATTEMPTS):
        try:
            make_folder(folder)
            return _write(folder, mine)
        except FileNotFoundError:
            # The owner before has left this moment, and taken the empty folder along.
            continue
        except OSError as error:
            if not isinstance(place, Path):
                raise
            raise StorageError(f"{place}: cannot be written ({error}); make room there, or write elsewhere") from error
    raise StorageError(f"{folder}: comes and goes; write elsewhere")


def _wait_for_turn(place: Place, folder: Place, mine: _Lease, pause: Callable[[float], None]) -> None:
    """Return when nobody else is there; refuse if somebody is, and lives."""
    waited, first_seen = 0.0, dict[str, tuple[float, float]]()
    while True:
        everybody = _read_all(folder)
        nap = _POLL_SECONDS if _is_unlisted(folder, mine, everybody, waited) else 0.0
        for other in everybody:
            if other.token == mine.token:
                continue
            renewed, seen = first_seen.setdefault(other.token, (other.renewed, waited))
            silent = 0.0 if other.is_here or other.renewed != renewed else time.time() - other.renewed
            if other.has_ended or (silent > DEAD_SECONDS and waited - seen >= WATCHED_SECONDS):
                _remove(folder, other.token)
                continue
            comes_first = other.holds or other.token < mine.token or waited > _ASKING_SECONDS
            if comes_first and silent < 3 * RENEWED_SECONDS:
                raise InUseError(
                    f"{place}: process {other.process} on {other.host} has been writing there since {other.since}; "
                    "wait for its end or end it, or write elsewhere"
                )
            nap = _POLL_SECONDS if not silent else nap or _WATCH_SECONDS
        if not nap:
            return
        pause(nap)
        waited += nap


def _is_unlisted(folder: Place, mine: _Lease, everybody: list[_Lease], waited: float) -> bool:
    """Whether a lease is not seen by its own writer: then those who came just before may not be seen either."""
    unlisted = all(each.token != mine.token for each in everybody)
    if unlisted and waited > _LATE_SECONDS:
        raise StorageError(f"{folder}: what is written there is not listed, not after {waited:.0f} s; write elsewhere")
    return unlisted


def _renew(folder: Place, mine: _Lease, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_SECONDS):
        # Storage that is away comes back, or whoever writes meets it: not this thread's to tell.
        with contextlib.suppress(OSError, *client_errors()):
            _write(folder, replace(mine, renewed=time.time()))


def _write(folder: Place, lease: _Lease) -> None:
    write_whole(folder / f"{lease.token}.json", json.dumps(asdict(lease)))


def _read_all(folder: Place) -> list[_Lease]:
    found = []
    # An object store that lists late has no such folder yet.
    names = (file.name for file in folder.iterdir()) if isinstance(folder, Path) else _list_objects(folder)
    for name in sorted(names):
        # One that was removed meanwhile has no owner; one that is no lease, nobody wrote.
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            if name.endswith(".json") and not name.startswith("."):
                found.append(_Lease(**json.loads((folder / name).read_text())))
    return found


def _list_objects(folder: Place) -> list[str]:
    return [name.rpartition("/")[2] for name in folder.fs.find(folder.path)]  # type: ignore[union-attr]


def _remove(folder: Place, token: str) -> None:
    with contextlib.suppress(OSError, *client_errors()):
        (folder / f"{token}.json").unlink(missing_ok=True)
        if isinstance(folder, Path):
            folder.rmdir()


def _name_machine() -> str:
    """Machine, since its last start, and space of process numbers: in two containers the same numbers differ."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _find_beginning(process: int) -> str:
    """When a process of this machine began, in its own units: a number is given anew; empty if it is not there."""
    try:
        # The second field, a name in brackets, may hold blanks.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "there"
