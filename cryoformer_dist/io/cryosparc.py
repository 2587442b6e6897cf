"""CryoSPARC ``.cs`` files, in and out."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.particles import (
    NewPoses,
    OpticsColumns,
    ParticleTable,
    check_finite,
    group_optics,
    refuse_rows_beyond,
    warn_of_unapplied_terms,
)
from cryoformer_dist.io.stack_paths import resolve_stacks
from cryoformer_dist.physics.pose import axis_angle_from_rotation, rotation_from_axis_angle
from cryoformer_dist.storage.places import replaced

Fields = dict[str, np.ndarray]

_IMAGES = ("blob/path", "blob/idx", "blob/shape", "blob/psize_A")
_POSE, _SHIFT, _POSE_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
_MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_CTF = (*_MICROSCOPE, "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/phase_shift_rad")
# Field and the value that means "none".
_TERMS = {
    "ctf/tilt_A": 0.0,
    "ctf/trefoil_A": 0.0,
    "ctf/tetra_A": 0.0,
    "ctf/anisomag": 0.0,
    "ctf/shift_A": 0.0,
    "ctf/bfactor": 0.0,
    "ctf/scale": 1.0,
}
_PER_PARTICLE_TERMS = ("ctf/bfactor", "ctf/scale")
_NEUTRAL = 5e-7
# Files with many result groups have headers past numpy's default of 10 kB.
_MAX_HEADER_BYTES = 1 << 22


def read_cs(
    path: Path,
    passthrough: Sequence[Path] = (),
    *,
    datadir: Path | None = None,
    require_poses: bool = True,
    require_ctf: bool = True,
) -> ParticleTable:
    """Read the particles of a cryoSPARC job; fields it lacks come from passthrough files, joined on ``uid``.

    Parameters
    ----------
    path
        ``cryosparc_..._particles.cs`` and the like; it decides which particles and in which order.
    passthrough
        ``..._passthrough_particles.cs``; a field that several files have is taken from the first.
    datadir, require_poses, require_ctf
        Where the stacks are, and whether poses (else None) and CTF and optics (else 0) must be there.

    Raises
    ------
    ParticleFormatError
        If a file has no header or no rows, fields are missing (all are named), or a passthrough lacks a
        particle.

    Warns
    -----
    AberrationsNotAppliedWarning
        As `read_particles` does.
    """
    fields = _join_files(path, passthrough)
    _refuse_missing(path, fields, require_poses, require_ctf)
    _check_numbers(path, fields)
    table = _make_table(path, fields, datadir)
    warn_of_unapplied_terms(path, table.optics)
    if table.rotation is not None and _POSE_PIXEL not in fields:
        warnings.warn(
            f"{path}: no field {_POSE_PIXEL}; shifts are taken in pixels of blob/psize_A",
            CryoFormerWarning,
            stacklevel=2,
        )
    return table


def update_cs_poses(
    source: Path, output: Path, source_row: np.ndarray, rotation: np.ndarray, shift_angstrom: np.ndarray
) -> None:
    """Copy a ``.cs`` with new ``alignments3D`` poses; every other field and row stays as it is.

    Shifts are written in pixels of the file's own ``alignments3D/psize_A``.

    Parameters
    ----------
    source
        The file that the particles came from (not its passthrough, which stays valid).
    output
        Where to write; may be `source` itself.
    source_row
        ``(k,)`` rows from 0.
    rotation, shift_angstrom
        ``(k, 3, 3)`` RELION matrices and ``(k, 2)`` (x, y) to add to the image.

    Raises
    ------
    ParticleFormatError
        If the source has fewer rows than `source_row` says, or no pixel size to write the shifts in.

    Warns
    -----
    CryoFormerWarning
        If the source has no pose fields and some of its rows get no pose: those rows are left out.
    """
    records = load_records(source)
    refuse_rows_beyond(source, len(records), source_row)
    poses = NewPoses(source_row, rotation, shift_angstrom)
    _save(output, _with_poses(source, output, records, np.arange(len(records)), poses))


def select_cs_rows(source: Path, output: Path, source_row: np.ndarray, poses: NewPoses | None = None) -> None:
    """Copy some particles of a ``.cs`` with all their fields, in its order.

    Parameters
    ----------
    source
        A job's particles.
    output
        Where to write, whole or not at all.
    source_row
        ``(k,)`` rows to keep, from 0; with all of them the copy is the file itself.
    poses
        New ones of some of these; without pose fields in the source, the others are left out.

    Raises
    ------
    ParticleFormatError
        If the source is no ``.cs``, has fewer rows than that, or no pixel size to write shifts in.
    """
    records, kept = load_records(source), np.sort(source_row)
    refuse_rows_beyond(source, len(records), kept)
    if poses is not None:
        _save(output, _with_poses(source, output, records, kept, poses))
    elif len(kept) < len(records):
        _save(output, records[kept])
    else:
        with replaced(output) as beside:
            shutil.copyfile(source, beside)


def _with_poses(source: Path, output: Path, records: np.ndarray, kept: np.ndarray, poses: NewPoses) -> np.ndarray:
    """Some of the records, with new poses; those without one only if the source has pose fields."""
    pixel_size = _require_pixel_size(source, records)
    if not {_POSE, _SHIFT} <= set(records.dtype.names or ()):
        records = _add_pose_fields(records, pixel_size)
        left_out = np.setdiff1d(kept, poses.source_row)
        kept = np.intersect1d(kept, poses.source_row)
        if len(left_out):
            warnings.warn(
                f"{output}: {source} has no pose fields, so its {len(left_out)} particles without a new pose are left "
                "out",
                CryoFormerWarning,
                stacklevel=3,
            )
    rows, rotation = poses.source_row, torch.from_numpy(poses.rotation.astype(np.float64))
    records[_POSE][rows] = axis_angle_from_rotation(rotation).numpy()
    records[_SHIFT][rows] = poses.shift_angstrom / pixel_size[rows, None]
    chosen: np.ndarray = records[kept]
    return chosen


def _save(path: Path, records: np.ndarray) -> None:
    """Write records as cryoSPARC does, whole or not at all."""
    with replaced(path) as beside, beside.open("wb") as handle:
        np.save(handle, records, allow_pickle=False)


def load_records(path: Path) -> np.ndarray:
    """Read the records of one file, without ever unpickling.

    Raises
    ------
    ParticleFormatError
        If there is no such file, or it is no table with rows.
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
        except (ValueError, EOFError) as error:
            raise ParticleFormatError(
                f"{path}: truncated or damaged .cs file ({error}); export the particles again"
            ) from error
    if not records.dtype.names:
        raise ParticleFormatError(f"{path}: a plain numpy array, not a cryoSPARC table; give the job's particles .cs")
    if len(records) == 0:
        raise ParticleFormatError(f"{path}: has 0 rows ({len(records.dtype.names)} fields); give a job with particles")
    return records


def _join_files(path: Path, passthrough: Sequence[Path]) -> Fields:
    """Fields of the file, completed from its passthrough files in the order of its own rows."""
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


def _refuse_missing(path: Path, fields: Fields, require_poses: bool, require_ctf: bool) -> None:
    """Name every field that is needed and absent, in one message."""
    lacking: list[str] = []
    images = [label for label in _IMAGES if label not in fields]
    if images:
        lacking.append(f"images: {', '.join(images)}")
    poses = [label for label in (_POSE, _SHIFT) if label not in fields]
    if require_poses and poses:
        only_2d = "alignments2D/pose" in fields
        hint = " (only 2D alignments are there: run a 3D refinement)" if only_2d else ""
        lacking.append(f"poses: {', '.join(poses)}{hint}")
    ctf = [label for label in _CTF if label not in fields]
    if require_ctf and ctf:
        lacking.append(f"CTF: {', '.join(ctf)}")
    if lacking:
        raise ParticleFormatError(
            f"{path}: missing fields: {'; '.join(lacking)}. They are often in the passthrough file of the "
            "same job: give it with --passthrough"
        )


def _make_table(path: Path, fields: Fields, datadir: Path | None) -> ParticleTable:
    count = len(fields["blob/path"])
    optics, optics_group = group_optics(_collect_optics(path, fields))
    names, stack = _number_stacks(fields["blob/path"])
    rotation, shift = _convert_poses(path, fields)
    split = fields.get("alignments3D/split", np.full(count, -1)).astype(np.int64)
    return ParticleTable(
        source=path,
        stack_paths=resolve_stacks(names, path, datadir),
        stack=stack,
        stack_index=fields["blob/idx"].astype(np.int64),
        rotation=rotation,
        shift_angstrom=shift,
        defocus_u_angstrom=_column(fields, "ctf/df1_A"),
        defocus_v_angstrom=_column(fields, "ctf/df2_A"),
        defocus_angle_deg=np.rad2deg(_column(fields, "ctf/df_angle_rad")),
        phase_shift_deg=np.rad2deg(_column(fields, "ctf/phase_shift_rad")),
        optics=optics,
        optics_group=optics_group,
        half_set=np.where(np.isin(split, (0, 1)), split + 1, 0).astype(np.int8),
        uid=fields.get("uid", np.zeros(count)).astype(np.uint64),
        source_row=np.arange(count, dtype=np.int64),
    )


def _check_numbers(path: Path, fields: Fields) -> None:
    positive = [label for label in ("blob/psize_A", "ctf/accel_kv") if label in fields]
    numeric = [label for label in (*_CTF, "blob/psize_A", _POSE, _SHIFT) if label in fields]
    check_finite(path, {label: fields[label].astype(np.float64) for label in numeric}, positive)


def _collect_optics(path: Path, fields: Fields) -> OpticsColumns:
    count = len(fields["blob/path"])
    shape = fields["blob/shape"].reshape(count, -1)
    uneven = shape.min(axis=1) != shape.max(axis=1)
    if uneven.any():
        row = int(np.flatnonzero(uneven)[0])
        raise ParticleFormatError(
            f"{path}, particle row {row + 1}, field blob/shape: {shape[row].tolist()} is not square; extract "
            "square images"
        )
    exposure_group = fields.get("ctf/exp_group_id", np.zeros(count, dtype=np.int64)).astype(np.int64)
    mask = np.zeros(count, dtype=np.int64)
    for bit, (label, neutral) in enumerate(_TERMS.items()):
        if label in fields:
            present = (np.abs(fields[label].reshape(count, -1) - neutral) > _NEUTRAL).any(axis=1)
            # A term of single particles marks the whole file, or it would split its optics groups.
            mask |= (present.any() if label in _PER_PARTICLE_TERMS else present).astype(np.int64) << bit
    return OpticsColumns(
        pixel_size_angstrom=fields["blob/psize_A"],
        box_size=shape[:, 0],
        voltage_kv=_column(fields, "ctf/accel_kv"),
        spherical_aberration_mm=_column(fields, "ctf/cs_mm"),
        amplitude_contrast=_column(fields, "ctf/amp_contrast"),
        group=exposure_group,
        names={int(group): f"exposureGroup{group}" for group in np.unique(exposure_group)},
        terms=mask,
        term_names=tuple(_TERMS),
    )


def _convert_poses(path: Path, fields: Fields) -> tuple[np.ndarray | None, np.ndarray]:
    count = len(fields["blob/path"])
    if _POSE not in fields or _SHIFT not in fields:
        return None, np.zeros((count, 2), dtype=np.float32)
    pixel_size = _pose_pixel_size(fields)
    assert pixel_size is not None, "blob/psize_A was checked before"
    check_finite(path, {_POSE_PIXEL: pixel_size}, positive=(_POSE_PIXEL,))
    vector = torch.from_numpy(fields[_POSE].astype(np.float64))
    rotation = rotation_from_axis_angle(vector).numpy().astype(np.float32)
    return rotation, (fields[_SHIFT].astype(np.float64) * pixel_size[:, None]).astype(np.float32)


def _pose_pixel_size(fields: Fields) -> np.ndarray | None:
    """Pixel size ``(N,)`` in which the shifts are written."""
    size = fields.get(_POSE_PIXEL, fields.get("blob/psize_A"))
    return None if size is None else size.astype(np.float64)


def _require_pixel_size(source: Path, records: np.ndarray) -> np.ndarray:
    """Pixel size ``(N,)`` in which shifts are to be written."""
    size = _pose_pixel_size({name: records[name] for name in records.dtype.names or ()})
    if size is None:
        raise ParticleFormatError(
            f"{source}: no {_POSE_PIXEL} or blob/psize_A to write shifts in; give the job's own file"
        )
    return size


def _add_pose_fields(records: np.ndarray, pixel_size: np.ndarray) -> np.ndarray:
    """Copy the records with the three pose fields added."""
    present = records.dtype.names or ()
    wanted = [(_POSE, "<f4", (3,)), (_SHIFT, "<f4", (2,)), (_POSE_PIXEL, "<f4")]
    fields = [(name, records.dtype[name]) for name in present]
    wider = np.zeros(len(records), dtype=[*fields, *(field for field in wanted if field[0] not in present)])
    for name in present:
        wider[name] = records[name]
    wider[_POSE_PIXEL] = pixel_size
    return wider


def _number_stacks(paths: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Distinct stacks in order of appearance, and the ``(N,)`` int32 index into them."""
    distinct, first, inverse = np.unique(paths, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in distinct[order].tolist()]
    return names, rank[inverse.reshape(-1)]


def _column(fields: Fields, label: str) -> np.ndarray:
    """Return a field ``(N,)`` as float32; zeros when the caller allowed it to be absent."""
    return fields.get(label, np.zeros(len(fields["blob/path"]))).astype(np.float32)
