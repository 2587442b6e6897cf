import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.cryodrgn import (
    CTF_COLUMNS,
    load_numpy_pickle,
    read_ctf_pkl,
    read_indices_pkl,
    read_poses_pkl,
)
from cryoformer_dist.physics.pose import random_rotations


def save(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.fixture
def rotation() -> np.ndarray:
    return random_rotations(4, torch.Generator().manual_seed(2)).numpy()


@pytest.fixture
def ctf() -> np.ndarray:
    return np.tile(np.asarray([64, 2.5, 15000, 14500, 30, 300, 2.7, 0.1, 0], dtype=np.float32), (4, 1))


class Runs:
    """Would create a file when unpickled by an ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", "<u4", "?"])
def test_arrays_of_every_protocol_are_read(tmp_path, protocol, kind):
    array = np.arange(12).reshape(3, 4).astype(kind)
    back = load_numpy_pickle(save(tmp_path / "a.pkl", (array, np.asfortranarray(array), np.float32(2.5)), protocol))
    np.testing.assert_array_equal(back[0], array)
    np.testing.assert_array_equal(back[1], array)
    assert back[2] == 2.5
    assert back[0].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_names_of_old_and_new_numpy_are_the_same(tmp_path, module):
    raw = pickle.dumps(np.arange(3.0), protocol=2)
    for spelling in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        raw = raw.replace(spelling, module)
    path = tmp_path / "a.pkl"
    path.write_bytes(raw)
    np.testing.assert_array_equal(load_numpy_pickle(path), [0, 1, 2])


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    trap = tmp_path / "trap"
    path = save(tmp_path / "evil.pkl", (np.zeros(3), Runs(trap)))
    with pytest.raises(ParticleFormatError, match=r"evil\.pkl: refused, it names posix\.mkdir"):
        load_numpy_pickle(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [np.poly1d, print, Path("a"), torch.zeros(2)])
def test_anything_but_plain_arrays_is_refused(tmp_path, content):
    with pytest.raises(ParticleFormatError, match="refused, it names"):
        load_numpy_pickle(save(tmp_path / "a.pkl", content))


def test_other_codecs_are_refused(tmp_path):
    raw = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    path = tmp_path / "a.pkl"
    path.write_bytes(raw)
    with pytest.raises(ParticleFormatError, match="the codec rot13"):
        load_numpy_pickle(path)


def test_outside_objects_are_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"Psomething\n.")
    with pytest.raises(ParticleFormatError, match="outside object"):
        load_numpy_pickle(path)


def test_damaged_pickle_is_refused_at_every_length(tmp_path, rotation):
    whole = pickle.dumps((rotation, np.zeros((4, 2))))
    path = tmp_path / "cut.pkl"
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ParticleFormatError, match=r"cut\.pkl: not a readable pickle"):
            load_numpy_pickle(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ParticleFormatError, match="no such file"):
        load_numpy_pickle(tmp_path / "absent.pkl")


def test_poses_are_rotation_and_fraction_of_the_box(tmp_path, rotation):
    shift = np.asarray([[0.1, -0.2]] * 4)
    back, fraction = read_poses_pkl(save(tmp_path / "poses.pkl", (rotation, shift)))
    np.testing.assert_array_equal(back, rotation)
    np.testing.assert_allclose(fraction, shift, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda rotation: (rotation,), lambda rotation: rotation])
def test_poses_without_shifts_are_centred(tmp_path, rotation, wrap):
    back, fraction = read_poses_pkl(save(tmp_path / "poses.pkl", wrap(rotation)))
    np.testing.assert_array_equal(back, rotation)
    assert fraction.shape == (4, 2)
    assert not fraction.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rotation: (rotation[0], np.zeros((4, 2))), r"found 2 part\(s\), the first of shape \(3, 3\)"),
        (lambda rotation: (rotation, np.zeros((3, 2))), r"4 rotations but translations of shape \(3, 2\)"),
        (
            lambda rotation: (rotation * 1.1, np.zeros((4, 2))),
            r"row 1 \(of 4\).*the matrix is not a rotation",
        ),
        (
            lambda rotation: (rotation * -1, np.zeros((4, 2))),
            r"row 1 \(of 4\).*the matrix is not a rotation",
        ),
        (
            lambda rotation: (rotation, np.full((4, 2), np.nan)),
            r"particle row 1 \(of 4\), column translation",
        ),
        (lambda rotation: (rotation, np.zeros((4, 2)), 1), r"found 3 part\(s\)"),
        (lambda rotation: {"a": 1}, "expected an array of numbers"),
        (lambda rotation: (), "expected"),
    ],
)
def test_poses_of_another_form_are_refused(tmp_path, rotation, change, words):
    with pytest.raises(ParticleFormatError, match=words):
        read_poses_pkl(save(tmp_path / "poses.pkl", change(rotation)))


def test_ctf_has_nine_columns(tmp_path, ctf):
    back = read_ctf_pkl(save(tmp_path / "ctf.pkl", ctf))
    np.testing.assert_allclose(back, ctf, rtol=1e-6)
    assert len(CTF_COLUMNS) == 9
    with pytest.raises(ParticleFormatError, match=r"expected an array \(N, 9\).*found shape \(4, 8\)"):
        read_ctf_pkl(save(tmp_path / "ctf.pkl", ctf[:, :8]))


@pytest.mark.parametrize("label", ["box_size", "pixel_size_angstrom", "voltage_kv"])
def test_ctf_that_cannot_be_is_named(tmp_path, ctf, label):
    ctf[2, list(CTF_COLUMNS).index(label)] = 0
    with pytest.raises(ParticleFormatError, match=rf"row 3 \(of 4\), column {label}"):
        read_ctf_pkl(save(tmp_path / "ctf.pkl", ctf))


@pytest.mark.parametrize("rows", [[3, 0, 2], np.asarray([3, 0, 2]), np.asarray([3, 0, 2], dtype=np.uint32), (3, 0, 2)])
def test_indices_are_whole_numbers_in_their_order(tmp_path, rows):
    back = read_indices_pkl(save(tmp_path / "ind.pkl", rows))
    assert back.tolist() == [3, 0, 2]
    assert back.dtype == np.int64


@pytest.mark.parametrize("rows", [[0.5], [-1, 2], [], [[1, 2]], [1, 1], [[1], [2, 3]], [True, False], {"a": 1}])
def test_indices_of_another_form_are_refused(tmp_path, rows):
    with pytest.raises(ParticleFormatError, match=r"ind\.pkl"):
        read_indices_pkl(save(tmp_path / "ind.pkl", rows))


@pytest.mark.parametrize(
    "content",
    [
        # Seven bytes that ask for a memo of gigabytes, nine for as large a byte array, a string, a frame.
        b"Nr\xff\xff\xff\x1f.",
        b"\x80\x05\x96\x00\x00\x00\x00\x02\x00\x00\x00.",
        b"\x80\x04\x8e\x00\x00\x00\x00\x02\x00\x00\x00.",
        b"p" + b"9" * 5000 + b"\n.",
    ],
)
def test_a_pickle_cannot_ask_for_memory_that_its_bytes_do_not_justify(tmp_path, content):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ParticleFormatError, match=r"bomb\.pkl: not a readable pickle"):
            load_numpy_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_pickle_makes_no_array_without_its_bytes(tmp_path):
    named = b"cnumpy\nndarray\n((I4000000000\nI9\nttR."
    started = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I4000000000\ntS'b'\ntR."
    for content in (named, started):
        (tmp_path / "bomb.pkl").write_bytes(content)
        with pytest.raises(ParticleFormatError, match=r"bomb\.pkl: (refused|not a readable pickle)"):
            load_numpy_pickle(tmp_path / "bomb.pkl")


def test_lists_that_hold_each_other_are_not_unfolded(tmp_path):
    nested: list = [0.0]
    for _ in range(40):
        nested = [nested] * 10
    for read in (read_ctf_pkl, read_indices_pkl):
        with pytest.raises(ParticleFormatError, match="expected"):
            read(save(tmp_path / "alias.pkl", nested))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numbers_that_are_said_to_be_objects_are_refused_before_numpy_believes_it(
    tmp_path: Path, protocol: int
) -> None:
    content, path = pickle.dumps(np.zeros((2, 9)), protocol), tmp_path / "a.pkl"
    plain = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert plain in content
    path.write_bytes(content.replace(plain, plain[:-2] + b"\x3ft"))
    with pytest.raises(ParticleFormatError, match="something else than numbers"):
        load_numpy_pickle(path)
