"""The fields of cryoSPARC ``.cs`` files: read without ever unpickling, joined over files, their form checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.storage.places import replaced

Fields = dict[str, np.ndarray]

# Files with many result groups have headers past numpy's default of 10 kB.
_MAX_HEADER_BYTES = 1 << 20
_TEXT, _WHOLE, _NUMBERS = "SU", "iu", "fiu"
_KIND_NAMES = {_TEXT: "text", _WHOLE: "whole numbers", _NUMBERS: "numbers"}
# Of the fields that are read: kind and shape of one row.
_FORMS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "uid": (_WHOLE, ()),
    "blob/path": (_TEXT, ()),
    "blob/idx": (_WHOLE, ()),
    "blob/shape": (_WHOLE, (2,)),
    "blob/psize_A": (_NUMBERS, ()),
    "alignments3D/pose": (_NUMBERS, (3,)),
    "alignments3D/shift": (_NUMBERS, (2,)),
    "alignments3D/psize_A": (_NUMBERS, ()),
    "alignments3D/split": (_WHOLE, ()),
    "alignments3D_multi/psize_A": (_NUMBERS, ()),
    "ctf/exp_group_id": (_WHOLE, ()),
    **{f"ctf/{name}": (_NUMBERS, ()) for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A")},
    **{f"ctf/{name}": (_NUMBERS, ()) for name in ("df_angle_rad", "phase_shift_rad", "bfactor", "scale")},
}
# Of these the shape of a row is not fixed.
_ANY_SHAPE: Mapping[str, str] = {
    **{f"ctf/{name}": _NUMBERS for name in ("tilt_A", "trefoil_A", "tetra_A", "anisomag", "shift_A")},
    "alignments3D_multi/pose": _NUMBERS,
    "alignments3D_multi/shift": _NUMBERS,
    "alignments3D_multi/split": _WHOLE,
}


def load_records(path: Path) -> np.ndarray:
    """Read the records of one file, without ever unpickling.

    Raises
    ------
    ParticleFormatError
        If the file is missing, cut, damaged, of another kind, or has no rows.
    """
    if not path.is_file():
        raise ParticleFormatError(f"{path}: no such file; check the path")
    with path.open("rb") as handle:
        start = handle.read(6)
        handle.seek(0)
        if start != b"\x93NUMPY":
            raise ParticleFormatError(
                f"{path}: no .cs header (the file starts with {start!r} instead of \\x93NUMPY): it was cut "
                "or is of another kind; export the particles from cryoSPARC again"
            )
        try:
            records: np.ndarray = np.lib.format.read_array(
                handle, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES
            )
        # The header is a Python literal: what its parser, and then numpy, raise over damage has no common class.
        except Exception as error:
            raise ParticleFormatError(
                f"{path}: truncated or damaged .cs file ({str(error)[:200]}); export the particles again"
            ) from error
    if not records.dtype.names or records.ndim != 1:
        raise ParticleFormatError(f"{path}: a plain numpy array, not a cryoSPARC table; give the job's particles .cs")
    if len(records) == 0:
        raise ParticleFormatError(f"{path}: has 0 rows ({len(records.dtype.names)} fields); give a job with particles")
    _refuse_other_forms(path, {name: records[name] for name in records.dtype.names})
    return records


def save_records(path: Path, records: np.ndarray) -> None:
    """Write records as cryoSPARC does, whole or not at all."""
    with replaced(path) as beside, beside.open("wb") as handle:
        np.save(handle, records, allow_pickle=False)


def column_of(fields: Fields, label: str) -> np.ndarray:
    """Return a field ``(N,)`` as float32; zeros when the caller allowed it to be absent."""
    return fields.get(label, np.zeros(len(fields["blob/path"]))).astype(np.float32)


def join_files(path: Path, passthrough: Sequence[Path]) -> Fields:
    """Fields of a file, completed from its passthrough files in the order of its own rows.

    Raises
    ------
    ParticleFormatError
        If a file cannot be read, or a passthrough has no ``uid``, has one twice, or lacks a particle.
    """
    records = load_records(path)
    fields: Fields = {name: records[name] for name in records.dtype.names or ()}
    for other_path in passthrough:
        other = load_records(other_path)
        for where, names in ((path, fields), (other_path, other.dtype.names or ())):
            if "uid" not in names:
                raise ParticleFormatError(f"{where}: no field uid, so it cannot be joined; export the job again")
        order = np.argsort(other["uid"], kind="stable")
        keys = other["uid"][order]
        if (keys[1:] == keys[:-1]).any():
            raise ParticleFormatError(f"{other_path}: a uid occurs twice, so rows cannot be joined; remove duplicates")
        place = np.searchsorted(keys, fields["uid"]).clip(max=len(keys) - 1)
        absent = keys[place] != fields["uid"]
        if absent.any():
            row = int(np.flatnonzero(absent)[0])
            raise ParticleFormatError(
                f"{other_path}: lacks {int(absent.sum())} of the {len(absent)} particles of {path} (first: "
                f"row {row + 1}, uid {fields['uid'][row]}); give the passthrough file of the same job"
            )
        fields |= {name: other[name][order[place]] for name in other.dtype.names or () if name not in fields}
    return fields


def number_stacks(path: Path, paths: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct stacks in order of appearance, and the ``(N,)`` int32 index into them.

    Raises
    ------
    ParticleFormatError
        If a path is no UTF-8; names the row.
    """
    distinct, first, inverse = np.unique(paths, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    names = []
    for name, row in zip(distinct[order].tolist(), first[order].tolist(), strict=True):
        try:
            names.append(name.decode() if isinstance(name, bytes) else str(name))
        except UnicodeDecodeError:
            raise ParticleFormatError(
                f"{path}, particle row {row + 1} (of {len(paths)}), field blob/path: {name!r} is not UTF-8 text; the "
                "file is damaged: export the particles again"
            ) from None
    return names, rank[inverse.reshape(-1)]


def _refuse_other_forms(path: Path, fields: Fields) -> None:
    for name, values in fields.items():
        kinds, shape = _FORMS.get(name, (_ANY_SHAPE.get(name), values.shape[1:]))
        if kinds is not None and (values.dtype.kind not in kinds or values.shape[1:] != shape):
            raise ParticleFormatError(
                f"{path}: field {name} holds {values.dtype} of shape {values.shape[1:]} in each row, and should hold "
                f"{_KIND_NAMES[kinds]} of shape {shape}; export the particles again"
            )
