"""What a place is: a path on a file system, or ``s3://bucket/prefix`` in an object store.

An object store's endpoint and credentials come from the environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
profiles, instance roles) at the moment of use; nothing here keeps or writes them.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from cryoformer_dist.errors import BackendUnavailableError, ConfigError, StorageError

if TYPE_CHECKING:
    from upath import UPath

Place = Union[Path, "UPath"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://?")
_BUCKET = re.compile(r"^s3://[A-Za-z0-9][A-Za-z0-9.-]+(/[^/]+)*/?$")
# As S3 names them. The answer to HEAD has no body, only a number: that of expired credentials is 400.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "OperationAborted", "RequestTimeout", "500", "503"}
EXPIRED_REMEDY = (
    "the credentials have expired: renew them in AWS_SHARED_CREDENTIALS_FILE or ~/.aws, which a run reads anew, or use "
    "a role, which renews them itself; those in environment variables stay what they were when a process began"
)
# A listing that is remembered would hide what other processes write.
OBJECT_STORE_OPTIONS: dict[str, Any] = {"use_listings_cache": False}


def place_at(text: str | Place) -> Place:
    """A place as it is written in a file or on the command line.

    Parameters
    ----------
    text
        A path, or ``s3://bucket/prefix``.

    Raises
    ------
    ConfigError
        If it is a URL of another kind, or names no bucket.
    BackendUnavailableError
        If s3fs, which speaks to object stores, is not installed.
    """
    if not isinstance(text, str):
        return text
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    if scheme[1] != "s3":
        raise ConfigError(f"{text}: {scheme[1]}:// is not supported; give a path, or s3://bucket/prefix")
    if not _BUCKET.match(text):
        raise ConfigError(
            f"{_without_secrets(text)}: not of the form s3://bucket/prefix; credentials belong in the environment"
        )
    try:
        import s3fs  # noqa: F401
        from upath import UPath
    except ImportError as error:
        raise BackendUnavailableError(f"{text}: needs s3fs: pip install 'cryoformer-dist[s3]' ({error})") from error
    place: UPath = UPath(text.rstrip("/"), **OBJECT_STORE_OPTIONS)
    return place


def placed_from(folder: Path, text: str) -> str:
    """The same place whatever the working directory: relative paths start at a folder, URLs stay as they are."""
    place = place_at(text)
    return str((folder / place.expanduser()).resolve()) if isinstance(place, Path) else str(place)


def remove_folder(place: Place, first: str | None = None) -> None:
    """Remove a folder and all in it; an absent one is no matter.

    Parameters
    ----------
    first
        File that goes before everything else: the one whose presence says that the folder is whole.
    """
    if not place.exists():
        return
    if first is not None:
        (place / first).unlink(missing_ok=True)
    if isinstance(place, Path):
        shutil.rmtree(place)
    elif objects := place.fs.find(place.path):
        # One by one: told to remove a prefix, the client would take an empty bucket along.
        place.fs.rm(objects)


def make_folder(place: Place) -> None:
    """Make a folder with those above it; an object store needs none."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def read_pieces(place: Place, starts: Sequence[int], length: int) -> list[bytes]:
    """Pieces of a file, all of one length in bytes, each from its start."""
    if not isinstance(place, Path):
        pieces: list[bytes] = place.fs.cat_ranges(
            [place.path] * len(starts), list(starts), [start + length for start in starts], on_error="raise"
        )
        return pieces
    with place.open("rb") as handle:
        return [os.pread(handle.fileno(), length, start) for start in starts]


def write_whole(place: Place, text: str) -> None:
    """Write a small file so that after a crash it is there whole or not at all."""
    if not isinstance(place, Path):
        place.write_text(text, encoding="utf-8")
        return
    with replaced(place) as beside:
        beside.write_text(text, encoding="utf-8")
        synchronise(beside)
    synchronise(place.parent)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside a file to write to: it takes the file's place when all went well, else nothing is left of it."""
    # Other processes may be writing the same file.
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        # The system names a file that cannot be opened, not one that cannot be written to.
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def synchronise(place: Place) -> None:
    """Wait until a file or directory is on the disk; what an object store has taken, it keeps."""
    if not isinstance(place, Path):
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def in_reach(place: Place) -> Iterator[None]:
    """What an object store's client says when it cannot serve, in our words.

    Raises
    ------
    StorageError
        If the endpoint cannot be reached, or refuses.
    """
    try:
        yield
    except client_errors() as error:
        raise StorageError(_unserved(place, error)) from error
    except OSError as error:
        if isinstance(place, Path) or not (is_refused(error) or isinstance(error, PermissionError)):
            raise
        raise StorageError(_unserved(place, error)) from error


def client_errors() -> tuple[type[Exception], ...]:
    """Errors of the object store's client that are no ``OSError``; none before it is loaded."""
    if "botocore" not in sys.modules:
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def refusal_code(error: BaseException) -> str | None:
    """S3's word for what an object store has refused; ``None`` for an error that no object store has answered."""
    answer = _find_answer(error)
    return None if answer is None else str(answer.response.get("Error", {}).get("Code", ""))


def is_refused(error: BaseException) -> bool:
    """Whether an object store has refused what is, or may be, there."""
    return refusal_code(error) is not None and not isinstance(error, FileNotFoundError)


def has_expired(error: BaseException) -> bool:
    """Whether an object store has refused credentials because their time is up."""
    answer, code = _find_answer(error), refusal_code(error)
    return code in _EXPIRED or (code == "400" and answer is not None and answer.operation_name.startswith("Head"))


def is_out_of_reach(error: Exception) -> bool:
    """Whether the object store's client could not speak to its endpoint at all, or was asked to come again later."""
    if "botocore" not in sys.modules:
        return False
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError

    return isinstance(error, NoConnectionError | HTTPClientError) or refusal_code(error) in _BUSY


def renew_credentials(place: Place) -> None:
    """Have the object store's client look for credentials anew: who renews those in a file tells nobody."""
    if not isinstance(place, Path):
        place.fs.connect(refresh=True)


def _find_answer(error: BaseException) -> Any:
    """The answer of an object store behind an error, which its client may have turned into one of the system's."""
    if "botocore" not in sys.modules:
        return None
    from botocore.exceptions import ClientError

    return next((each for each in (error, error.__cause__) if isinstance(each, ClientError)), None)


def _unserved(place: Place, error: Exception) -> str:
    if has_expired(error):
        return f"{place}: {error}; {EXPIRED_REMEDY}; then repeat the command"
    if is_out_of_reach(error) and refusal_code(error) is not None:
        return f"{place}: {error}; the object store takes no more requests now: repeat the command later"
    return f"{place}: {error}; check AWS_ENDPOINT_URL, the credentials in the environment, and the bucket's name"


def _without_secrets(text: str) -> str:
    """A URL that can be shown: what stands before an @ may be a password."""
    return re.sub(r"//.*@", "//...@", text)
