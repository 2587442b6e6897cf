"""CryoSPARC ``.cs`` files, in and out."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.cs_fields import Fields, column_of, join_files, load_records, number_stacks, save_records
from cryoformer_dist.io.limits import (
    AMPLITUDE_CONTRAST,
    ANGLE_RADIANS,
    BOX_SIZE,
    DEFOCUS,
    NUMBER,
    PIXEL_SIZE,
    ROTATION_VECTOR,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    check_column,
    check_defocus,
)
from cryoformer_dist.io.particles import (
    NewPoses,
    OpticsColumns,
    ParticleTable,
    group_optics,
    refuse_rows_beyond,
    warn_of_unapplied_terms,
)
from cryoformer_dist.io.stack_paths import resolve_stacks
from cryoformer_dist.io.stated import NOTHING_STATED, OPTIONS, StatedValues, refuse_restated
from cryoformer_dist.physics.pose import axis_angle_from_rotation, rotation_from_axis_angle
from cryoformer_dist.storage.places import replaced

_IMAGES = ("blob/path", "blob/idx", "blob/shape", "blob/psize_A")
_POSE, _SHIFT, _POSE_PIXEL = "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A"
_MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_DEFOCI = ("ctf/df1_A", "ctf/df2_A")
_ANGLES = ("ctf/df_angle_rad", "ctf/phase_shift_rad")
_CTF = (*_MICROSCOPE, *_DEFOCI, *_ANGLES)
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
_MULTI = "alignments3D_multi"
_LIMITS = {
    "blob/psize_A": PIXEL_SIZE,
    "blob/shape": BOX_SIZE,
    _POSE: ROTATION_VECTOR,
    _SHIFT: NUMBER,
    _POSE_PIXEL: PIXEL_SIZE,
    **dict(zip(_MICROSCOPE, (VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST), strict=True)),
    **dict.fromkeys(_DEFOCI, DEFOCUS),
    **dict.fromkeys(_ANGLES, ANGLE_RADIANS),
    **dict.fromkeys(_TERMS, NUMBER),
}
# Which field a value stands for that the user states.
_STATED = dict(zip(OPTIONS, (*_MICROSCOPE, "blob/psize_A"), strict=True))


def read_cs(
    path: Path,
    passthrough: Sequence[Path] = (),
    *,
    datadir: Path | None = None,
    require_poses: bool = True,
    require_ctf: bool = True,
    stated: StatedValues = NOTHING_STATED,
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
    stated
        Values for fields that they lack, and the class of a heterogeneous refinement.

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
    fields = _choose_class(path, join_files(path, passthrough), stated.class_number)
    fields |= _stated_fields(path, fields, stated)
    _refuse_missing(path, fields, require_poses, require_ctf)
    _check_numbers(path, fields, require_ctf)
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
    save_records(output, _with_poses(source, output, records, np.arange(len(records)), poses))


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
        save_records(output, _with_poses(source, output, records, kept, poses))
    elif len(kept) < len(records):
        save_records(output, records[kept])
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


def _refuse_missing(path: Path, fields: Fields, require_poses: bool, require_ctf: bool) -> None:
    """Name every field that is needed and absent, in one message."""
    lacking: list[str] = []
    images = [label for label in _IMAGES if label not in fields]
    if images:
        lacking.append(f"images: {', '.join(images)}")
    poses = [label for label in (_POSE, _SHIFT) if label not in fields]
    if require_poses and poses and (classes := _classes(fields)):
        raise ParticleFormatError(
            f"{path}: poses are per class ({_MULTI}, {classes} classes), from a heterogeneous refinement; refine one "
            f"class and give that job's file, or take the poses of one class for all particles with --class 0 to "
            f"{classes - 1}"
        )
    if require_poses and poses:
        only_2d = "alignments2D/pose" in fields
        hint = " (only 2D alignments are there: run a 3D refinement)" if only_2d else ""
        lacking.append(f"poses: {', '.join(poses)}{hint}")
    ctf = [label for label in _CTF if label not in fields]
    if require_ctf and ctf:
        lacking.append(f"CTF: {', '.join(ctf)}")
    if lacking:
        options = [
            OPTIONS[name][0] for name, label in _STATED.items() if label in (*images, *(ctf if require_ctf else ()))
        ]
        options += ["--centred"] if require_poses and poses == [_SHIFT] else []
        stateable = f", or say what you know with {', '.join(options)}" if options else ""
        raise ParticleFormatError(
            f"{path}: missing fields: {'; '.join(lacking)}. They are often in the passthrough file of the "
            f"same job: give it with --passthrough{stateable}"
        )


def _make_table(path: Path, fields: Fields, datadir: Path | None) -> ParticleTable:
    count = len(fields["blob/path"])
    optics, optics_group = group_optics(_collect_optics(path, fields))
    names, stack = number_stacks(path, fields["blob/path"])
    rotation, shift = _convert_poses(path, fields)
    split = fields.get("alignments3D/split", np.full(count, -1)).astype(np.int64)
    return ParticleTable(
        source=path,
        stack_paths=resolve_stacks(names, path, datadir),
        stack=stack,
        stack_index=fields["blob/idx"].astype(np.int64),
        rotation=rotation,
        shift_angstrom=shift,
        defocus_u_angstrom=column_of(fields, "ctf/df1_A"),
        defocus_v_angstrom=column_of(fields, "ctf/df2_A"),
        defocus_angle_deg=np.rad2deg(column_of(fields, "ctf/df_angle_rad")),
        phase_shift_deg=np.rad2deg(column_of(fields, "ctf/phase_shift_rad")),
        optics=optics,
        optics_group=optics_group,
        half_set=np.where(np.isin(split, (0, 1)), split + 1, 0).astype(np.int8),
        uid=fields.get("uid", np.zeros(count)).astype(np.uint64),
        source_row=np.arange(count, dtype=np.int64),
    )


def _choose_class(path: Path, fields: Fields, class_number: int | None) -> Fields:
    """The fields with the poses of one class of a heterogeneous refinement as the poses.

    Raises
    ------
    ParticleFormatError
        If there are no classes, the class is not among them, or their poses have another form.
    """
    if class_number is None:
        return fields
    pose, shift, split = (fields.get(f"{_MULTI}/{name}") for name in ("pose", "shift", "split"))
    if pose is None or shift is None:
        raise ParticleFormatError(
            f"{path}: --class chooses among the poses of a heterogeneous refinement, and there is no {_MULTI}/pose "
            "and /shift; leave it out"
        )
    classes = _classes(fields)
    if pose.shape[1:] != (classes, 3) or shift.shape[1:] != (classes, 2):
        raise ParticleFormatError(
            f"{path}: rows of {_MULTI}/pose have shape {pose.shape[1:]}, of {_MULTI}/shift {shift.shape[1:]}; 3 and "
            "2 numbers for each class are wanted: export the job again"
        )
    if not 0 <= class_number < classes:
        raise ParticleFormatError(
            f"{path}: --class {class_number}: the classes are 0 to {classes - 1}; give one of them"
        )
    chosen = {_POSE: pose[:, class_number], _SHIFT: shift[:, class_number]}
    if split is not None and split.shape[1:] == (classes,):
        chosen["alignments3D/split"] = split[:, class_number]
    if f"{_MULTI}/psize_A" in fields:
        chosen[_POSE_PIXEL] = fields[f"{_MULTI}/psize_A"]
    return fields | chosen


def _classes(fields: Fields) -> int:
    """How many classes a heterogeneous refinement has poses of; 0 if there are none."""
    pose = fields.get(f"{_MULTI}/pose")
    return 0 if pose is None or pose.ndim < 2 else int(pose.shape[1])


def _stated_fields(path: Path, fields: Fields, stated: StatedValues) -> Fields:
    """What the user says of all particles, as fields.

    Raises
    ------
    ParticleFormatError
        If the file has such a field itself.
    """
    count = len(next(iter(fields.values())))
    added: Fields = {}
    for name, value in stated.numbers().items():
        if _STATED[name] in fields:
            refuse_restated(path, OPTIONS[name][0], _STATED[name])
        added[_STATED[name]] = np.full(count, value, dtype=np.float32)
    if stated.centred:
        if _SHIFT in fields:
            refuse_restated(path, "--centred", _SHIFT)
        added[_SHIFT] = np.zeros((count, 2), dtype=np.float32)
    return added


def _check_numbers(path: Path, fields: Fields, require_ctf: bool) -> None:
    for label, quantity in _LIMITS.items():
        if label in fields:
            check_column(path, label, fields[label].astype(np.float64), quantity)
            if quantity is DEFOCUS and require_ctf:
                check_defocus(path, label, fields[label], fields.get("ctf/phase_shift_rad"))


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
        voltage_kv=column_of(fields, "ctf/accel_kv"),
        spherical_aberration_mm=column_of(fields, "ctf/cs_mm"),
        amplitude_contrast=column_of(fields, "ctf/amp_contrast"),
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
