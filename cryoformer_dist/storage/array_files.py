"""Arrays as files, .npy and .npz: read in bounded memory, whole or not at all, and never unpickled."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from cryoformer_dist.errors import CryoFormerError

# Of an archive: more than so much of it, and so many times its own length, no arrays of ours unpack to.
_MOST_BYTES, _MOST_TIMES = 2**26, 100


def read_array(path: Path, remedy: str) -> np.ndarray:
    """The array of a ``.npy`` file, of finite numbers.

    Parameters
    ----------
    path
        File.
    remedy
        What to do about one that cannot be read.

    Raises
    ------
    CryoFormerError
        If it is missing, cut, damaged, or of another kind.
    """
    with _named(path, remedy), path.open("rb") as handle:
        array = _read_to_end(handle)
        if not np.isfinite(array).all():
            raise ValueError("numbers that are not finite")
        return array


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file; its checksums are compared. As `read_array` otherwise."""
    with _named(path, remedy), path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
        entries = archive.infolist()
        unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
        if unpacked > max(_MOST_BYTES, _MOST_TIMES * packed):
            raise ValueError(f"{packed} bytes that unpack to {unpacked}")
        arrays = {}
        for entry in entries:
            with archive.open(entry) as member:
                arrays[entry.filename.removesuffix(".npy")] = _read_to_end(member)
        return arrays


def _read_to_end(handle: IO[bytes]) -> np.ndarray:
    array: np.ndarray = np.lib.format.read_array(handle, allow_pickle=False)
    # An archive's checksum is compared at its end only.
    if handle.read(1):
        raise ValueError("more bytes than its header says")
    return array


@contextmanager
def _named(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CryoFormerError(f"{path}: no such file; {remedy}") from None
    # A damaged file meets the parsers of zip, deflate, numpy and Python, whose errors have no common class.
    except Exception as error:
        raise CryoFormerError(f"{path}: cut, damaged or of another kind ({str(error)[:200]}); {remedy}") from error
