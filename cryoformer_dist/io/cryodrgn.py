"""CryoDRGN's pickles (``poses.pkl``, ``ctf.pkl``, ``ind.pkl``), read without trusting them; ``z.pkl`` too written."""

import io
import pickle
import pickletools
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.limits import (
    AMPLITUDE_CONTRAST,
    ANGLE,
    BOX_SIZE,
    DEFOCUS,
    PIXEL_SIZE,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    check_column,
    check_defocus,
    check_rotations,
)
from cryoformer_dist.storage.places import replaced

CTF_COLUMNS = {
    "box_size": BOX_SIZE,
    "pixel_size_angstrom": PIXEL_SIZE,
    "defocus_u_angstrom": DEFOCUS,
    "defocus_v_angstrom": DEFOCUS,
    "defocus_angle_deg": ANGLE,
    "voltage_kv": VOLTAGE,
    "spherical_aberration_mm": SPHERICAL_ABERRATION,
    "amplitude_contrast": AMPLITUDE_CONTRAST,
    "phase_shift_deg": ANGLE,
}


def load_numpy_pickle(path: Path) -> Any:
    """Read the numpy arrays and plain containers of a pickle; it can name nothing else, so nothing runs.

    Raises
    ------
    ParticleFormatError
        If the file is missing, is no pickle, or names anything beyond numpy arrays: save plain arrays
        instead.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ParticleFormatError(f"{path}: no such file, or unreadable ({error.strerror}); check it") from None
    try:
        _refuse_false_lengths(content)
        return _NumpyUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _RefusedGlobal as refused:
        raise ParticleFormatError(
            f"{path}: refused, it names {refused}, and only plain numpy arrays are read from a pickle; save "
            "it again as numpy arrays"
        ) from None
    # A damaged pickle can raise almost anything from the machine that rebuilds it.
    except Exception as error:
        raise ParticleFormatError(f"{path}: not a readable pickle ({str(error)[:200]}); export it again") from error


def read_poses_pkl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Poses of cryoDRGN: ``(rotations, translations)`` or the rotations alone.

    Returns
    -------
    rotation
        ``(N, 3, 3)`` float32; cryoDRGN's matrix is RELION's A.
    shift_fraction
        ``(N, 2)`` float32 (x, y) as fractions of the box, to add to the image to centre it; 0 when the file
        has none.

    Raises
    ------
    ParticleFormatError
        If the shapes are others, a matrix is no rotation, or a number is not finite.
    """
    content = load_numpy_pickle(path)
    parts = list(content) if isinstance(content, tuple | list) else [content]
    rotation = _float_array(path, parts[0] if parts else None)
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3) or len(parts) > 2:
        raise ParticleFormatError(
            f"{path}: expected rotations (N, 3, 3) and translations (N, 2), found {len(parts)} part(s), the "
            f"first of shape {rotation.shape}; make the file with 'cryodrgn parse_pose_star' or "
            "'parse_pose_csparc'"
        )
    shift = _float_array(path, parts[1]) if len(parts) == 2 else np.zeros((len(rotation), 2), dtype=np.float32)
    if shift.shape != (len(rotation), 2):
        raise ParticleFormatError(
            f"{path}: {len(rotation)} rotations but translations of shape {shift.shape}; both need one row per particle"
        )
    check_rotations(path, "rotation", rotation)
    check_column(path, "translation", shift)
    return rotation, shift


def write_poses_pkl(path: Path, rotation: np.ndarray, shift_fraction: np.ndarray) -> None:
    """Write poses as cryoDRGN keeps them, whole or not at all; shapes and units are those of `read_poses_pkl`."""
    with replaced(path) as beside:
        beside.write_bytes(pickle.dumps((np.float32(rotation), np.float32(shift_fraction))))


def read_ctf_pkl(path: Path) -> np.ndarray:
    """CTF parameters of cryoDRGN, ``(N, 9)`` float64 in the order of `CTF_COLUMNS`.

    Raises
    ------
    ParticleFormatError
        If the array is not ``(N, 9)``, or holds a number that cannot be.
    """
    table = _float_array(path, load_numpy_pickle(path), np.float64)
    if table.ndim != 2 or table.shape[1] != len(CTF_COLUMNS):
        raise ParticleFormatError(
            f"{path}: expected an array (N, 9) of {', '.join(CTF_COLUMNS)}; found shape {table.shape}; make "
            "the file with 'cryodrgn parse_ctf_star' or 'parse_ctf_csparc'"
        )
    for values, (label, quantity) in zip(table.T, CTF_COLUMNS.items(), strict=True):
        check_column(path, label, values, quantity)
        if quantity is DEFOCUS:
            check_defocus(path, label, values, table[:, -1])
    return table


def read_indices_pkl(path: Path) -> np.ndarray:
    """Read selected rows of cryoDRGN, ``(k,)`` int64 from 0.

    Raises
    ------
    ParticleFormatError
        If the content is not a list of whole numbers >= 0, or names a row twice.
    """
    content = load_numpy_pickle(path)
    if isinstance(content, list | tuple) and not all(isinstance(row, int | np.integer) for row in content):
        raise ParticleFormatError(f"{path}: expected a flat list of row numbers; export it again")
    try:
        rows = np.asarray(content)
    except (ValueError, OverflowError) as error:
        raise ParticleFormatError(f"{path}: expected a flat list of row numbers ({error})") from error
    if rows.ndim != 1 or rows.size == 0 or not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0:
        raise ParticleFormatError(
            f"{path}: expected a flat, non-empty array of row numbers from 0, found {rows.dtype} of shape {rows.shape}"
        )
    if len(np.unique(rows)) != len(rows):
        raise ParticleFormatError(f"{path}: names a row twice; give every particle once")
    return rows.astype(np.int64)


def write_indices_pkl(path: Path, rows: np.ndarray) -> None:
    """Write row numbers ``(k,)`` from 0 as cryoDRGN keeps them, whole or not at all."""
    with replaced(path) as beside:
        beside.write_bytes(pickle.dumps(np.asarray(rows, dtype=np.int64)))


def write_ctf_pkl(path: Path, table: np.ndarray) -> None:
    """Write CTF parameters ``(N, 9)`` in the order of `CTF_COLUMNS`, whole or not at all."""
    with replaced(path) as beside:
        beside.write_bytes(pickle.dumps(np.float32(table)))


def write_latents_pkl(path: Path, latent: np.ndarray, log_variance: np.ndarray | None) -> None:
    """Write latents ``(k, dimensions)`` as ``z.pkl``: means, then a second pickle of log variances, if there are."""
    parts = [latent] if log_variance is None else [latent, log_variance]
    with replaced(path) as beside:
        beside.write_bytes(b"".join(pickle.dumps(np.float32(part)) for part in parts))


class _RefusedGlobal(Exception):
    """A pickle named something that is not a plain numpy array."""


_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
# How a pickle ends what it says of an array of numbers: no parts, no fixed size, no flags.
_OF_NUMBERS = (None, None, None, -1, -1, 0)


def _refuse_false_lengths(content: bytes) -> None:
    """Refuse a pickle that asks for memory that its bytes do not justify: seven can ask for gigabytes.

    Walking over the instructions checks the length of each against the bytes that are there; the memo, a table that
    grows to the number that is asked for, is checked here. So is what arrays are said to be of: numpy believes it that
    numbers are objects, and frees what is no object.

    Raises
    ------
    ValueError
        If it does.
    """
    said: deque[Any] = deque(maxlen=len(_OF_NUMBERS))
    for count, (instruction, argument, _) in enumerate(pickletools.genops(content), start=1):
        if instruction.name in _MEMO and int(argument or 0) > count:
            raise ValueError(f"a memo of {argument} entries after {count} instructions")
        if instruction.name == "TUPLE" and tuple(said)[:3] == _OF_NUMBERS[:3] and tuple(said) != _OF_NUMBERS:
            raise ValueError("an array of something else than numbers")
        if instruction.name not in (*_MEMO, "MEMOIZE"):
            said.append(argument if instruction.name != "NONE" else None)


class _NumpyUnpickler(pickle.Unpickler):
    """Resolves the handful of names that numpy arrays need and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED_GLOBALS.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise _RefusedGlobal(f"{module}.{name}")
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedGlobal(f"the outside object {pid!r}")


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocols 0-2 spell bytes; any other codec is refused."""
    if encoding.lower().replace("-", "") not in ("latin1", "iso88591"):
        raise _RefusedGlobal(f"the codec {encoding}")
    return text.encode("latin1")


class _ArrayName:
    """Stands for numpy's class of arrays: a pickle may name it, and not make arrays of any size by it."""


_ARRAY = _ArrayName()


def _empty_array(kind: _ArrayName, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """How numpy's pickles begin an array, which its bytes then fill; any other use is refused."""
    if kind is not _ARRAY or shape != (0,):
        raise _RefusedGlobal("an array without its bytes")
    return np.ndarray((0,), dtype=np.dtype(code.decode("latin1")))


def _numpy_globals() -> dict[tuple[str, str], Any]:
    # Taken from what numpy itself writes, so that they are right in every numpy version.
    array = np.zeros(1)
    scalar = np.float64(0).__reduce__()[0]
    frombuffer = array.__reduce_ex__(5)[0]
    return {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("numpy", "ndarray"): _ARRAY,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode_latin1,
    }


_ALLOWED_GLOBALS = _numpy_globals()


def _float_array(path: Path, content: Any, kind: type[np.floating] = np.float32) -> np.ndarray:
    if not isinstance(content, np.ndarray):
        raise ParticleFormatError(f"{path}: expected an array of numbers, found {type(content).__name__}; save one")
    try:
        with np.errstate(over="ignore"):
            return np.asarray(content, dtype=kind)
    except (TypeError, ValueError) as error:
        raise ParticleFormatError(f"{path}: expected an array of numbers ({error}); export it again") from error
