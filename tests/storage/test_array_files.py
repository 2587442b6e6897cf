"""Files of arrays are read whole, in bounded memory, or refused in one message."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.array_files import read_array, read_arrays

ARRAY = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", ARRAY)
    return tmp_path / "a.npy"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", first=ARRAY, second=np.asarray(["a", "bc"]))
    return tmp_path / "a.npz"


def _refused(path: Path, words: str = "cut, damaged or of another kind") -> None:
    read = read_array if path.suffix == ".npy" else read_arrays
    with pytest.raises(CryoFormerError, match=rf"{path}: {words}.*; make it again$"):
        read(path, "make it again")


def test_what_numpy_writes_is_read(npy: Path, npz: Path) -> None:
    np.testing.assert_array_equal(read_array(npy, ""), ARRAY)
    found = read_arrays(npz, "")
    np.testing.assert_array_equal(found["first"], ARRAY)
    assert found["second"].tolist() == ["a", "bc"]


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    _refused(tmp_path / "a.npz", "no such file")


def test_a_file_cut_anywhere_or_with_a_tail_is_refused(npy: Path, npz: Path) -> None:
    for file in (npy, npz):
        whole = file.read_bytes()
        for length in range(0, len(whole), 13):
            file.write_bytes(whole[:length])
            _refused(file)
    npy.write_bytes(npy.read_bytes() + bytes(4))
    _refused(npy)


def test_every_byte_of_an_archive_s_arrays_is_guarded(npz: Path) -> None:
    whole = npz.read_bytes()
    start = whole.index(ARRAY.tobytes())
    for place in range(start, start + ARRAY.nbytes, 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        npz.write_bytes(bytes(changed))
        _refused(npz)


def test_numbers_that_are_not_finite_are_refused(npy: Path) -> None:
    np.save(npy, np.asarray([1, np.nan]))
    _refused(npy, r".*numbers that are not finite")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    _refused(tmp_path / "a.npy")


def _bomb(path: Path, length: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("coords.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (length, 3)})
        for _ in range(length * 24 >> 20):
            member.write(bytes(1 << 20))
    return path


def test_an_archive_that_unpacks_to_much_more_than_it_is_takes_no_memory(tmp_path: Path) -> None:
    bomb = _bomb(tmp_path / "a.npz", 2**24)
    assert bomb.stat().st_size < 2**19
    tracemalloc.start()
    _refused(bomb, r".*bytes that unpack to 402653")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
    if suffix == ".npy":
        with path.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
    else:
        with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
    _refused(path)
