"""One door for particles of any program, and the check that their images are what the file says."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError, PixelSizeConflictWarning
from cryoformer_dist.io.cryodrgn import CTF_COLUMNS, read_ctf_pkl, read_indices_pkl, read_poses_pkl
from cryoformer_dist.io.cryosparc import read_cs
from cryoformer_dist.io.limits import PIXEL_SIZE, check_column, check_rotations, check_shifts
from cryoformer_dist.io.mrc import PIXEL_SIZE_TOLERANCE, read_header
from cryoformer_dist.io.mrc_header import MRCHeader, check_length
from cryoformer_dist.io.particles import OpticsColumns, OpticsGroup, ParticleTable, group_optics, unapplied_terms
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.io.stack_paths import is_readable_file, resolve_stacks
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues

_STACK_SUFFIXES = (".mrcs", ".mrc")
_COMPRESSED_SUFFIXES = (".gz", ".bz2")
# Where a file has its rotations and shifts, for errors.
_POSE_COLUMNS = {
    ".star": ("rlnAngleRot, rlnAngleTilt, rlnAnglePsi", "rlnOriginX, rlnOriginY (Angst)"),
    ".cs": ("alignments3D/pose", "alignments3D/shift"),
}


def read_particles(
    path: Path,
    *,
    datadir: Path | None = None,
    passthrough: Sequence[Path] = (),
    poses: Path | None = None,
    ctf: Path | None = None,
    indices: Path | None = None,
    require_poses: bool = True,
    stated: StatedValues = NOTHING_STATED,
) -> ParticleTable:
    """Read particles from ``.star``, ``.cs``, ``.mrcs``, ``.mrc`` or a ``.txt`` list of stacks.

    Parameters
    ----------
    path
        The particles.
    datadir
        Folder of the stacks, where they are not where the file says.
    passthrough
        Further ``.cs`` files of the same job.
    poses, ctf, indices
        CryoDRGN's pickles; poses and CTF replace those of the file, indices keep the named rows.
    require_poses
        False to accept a file without poses (`ParticleTable.rotation` is then None).
    stated
        Values for what the file leaves out.

    Raises
    ------
    ParticleFormatError
        If anything needed is missing or cannot be; says where and what to give.

    Warns
    -----
    AberrationsNotAppliedWarning
        If the file carries aberrations, a B-factor or a CTF scale, which the forward model leaves out.
    """
    if passthrough and path.suffix.lower() != ".cs":
        raise ParticleFormatError(f"{path}: --passthrough belongs to cryoSPARC .cs files only; leave it out")
    require = {"require_poses": require_poses and poses is None, "require_ctf": ctf is None}
    table = _read_dialect(path, datadir, passthrough, stated, **require)
    if ctf is not None:
        table = _replace_ctf(table, ctf, indices)
    table = _fill_boxes(table, from_pickle=ctf is not None)
    if poses is not None:
        table = _replace_poses(table, poses, indices)
    _check_geometry(table, poses)
    if indices is not None:
        table = table.select(_read_rows(indices, len(table), table.source))
    return table


def check_stacks(table: ParticleTable) -> None:
    """Every image that the table names is there, of the promised size, even and square.

    Raises
    ------
    ParticleFormatError
        If a stack is missing, truncated, too short for a row, or of another or an odd box; says which.

    Warns
    -----
    PixelSizeConflictWarning
        If a header disagrees with the metadata about the pixel size; the metadata wins.
    """
    used = np.unique(table.stack)
    missing = [path for path in (table.stack_paths[number] for number in used) if not is_readable_file(path)]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ParticleFormatError(
            f"{table.source}: {len(missing)} of {len(used)} stacks not found (as written, beside the file, "
            f"in the folders above it, or in --datadir if given): {shown}; give --datadir with the folder "
            f"that holds them{_near_misses(table.source.absolute().parent, missing)}"
        )
    order = np.argsort(table.stack, kind="stable")
    starts = np.searchsorted(table.stack[order], used)
    conflicts: list[str] = []
    for number, rows in zip(used, np.split(order, starts[1:]), strict=True):
        header = _read_named_header(table, table.stack_paths[number])
        _check_stack(table, header, rows)
        conflicts += _find_conflicts(table, header, rows)
    if conflicts:
        more = f" (and {len(conflicts) - 1} more stacks)" if len(conflicts) > 1 else ""
        warnings.warn(
            f"{conflicts[0]}{more}; the value in {table.source} is used", PixelSizeConflictWarning, stacklevel=2
        )


def _near_misses(folder: Path, missing: Sequence[Path]) -> str:
    """Say which stacks are there with the other suffix."""
    for path in missing:
        other = folder / path.with_suffix({".mrc": ".mrcs", ".mrcs": ".mrc"}.get(path.suffix.lower(), path.suffix))
        if other.name != path.name and is_readable_file(other):
            return f"; {other} is there: rename it, or correct the file"
        if path.name.endswith(":mrcs"):
            return "; the mark :mrcs at the end of names is not read: remove it"
    return ""


def _read_named_header(table: ParticleTable, stack: Path) -> MRCHeader:
    """Read the header of a stack; an error also names the file that lists it."""
    try:
        return read_header(stack)
    except ParticleFormatError as error:
        raise ParticleFormatError(f"{table.source}: one of its stacks cannot be used: {error}") from error


def _read_dialect(
    path: Path,
    datadir: Path | None,
    passthrough: Sequence[Path],
    stated: StatedValues,
    *,
    require_poses: bool,
    require_ctf: bool,
) -> ParticleTable:
    suffix = path.suffix.lower()
    if suffix == ".star":
        return read_star(path, datadir=datadir, require_poses=require_poses, require_ctf=require_ctf, stated=stated)
    if suffix == ".cs":
        return read_cs(
            path, passthrough, datadir=datadir, require_poses=require_poses, require_ctf=require_ctf, stated=stated
        )
    bare = path.with_suffix("").suffix.lower() if suffix in _COMPRESSED_SUFFIXES else suffix
    if bare not in (*_STACK_SUFFIXES, ".txt"):
        raise ParticleFormatError(f"{path}: unknown kind {suffix!r}; give a .star, .cs, .mrcs, .mrc or .txt file")
    stated.refuse_any(path)
    lacking = [option for option, needed in (("--poses", require_poses), ("--ctf", require_ctf)) if needed]
    if lacking:
        raise ParticleFormatError(
            f"{path}: bare images have neither poses nor CTF; give {' and '.join(lacking)}, or the .star or .cs file"
        )
    return _list_images(path, datadir)


def _list_images(path: Path, datadir: Path | None) -> ParticleTable:
    """All images of a stack, or of the stacks that a ``.txt`` lists one per line."""
    if not path.is_file():
        raise ParticleFormatError(f"{path}: no such file; check the path")
    stacks: tuple[Path, ...] = (path,)
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        stacks = resolve_stacks([line for line in lines if line and not line.startswith("#")], path, datadir)
    if not stacks:
        raise ParticleFormatError(f"{path}: lists no stack; write one path per line")
    counts = [read_header(stack).sections for stack in stacks]
    count = sum(counts)
    zeros = np.zeros(count, dtype=np.float32)
    return ParticleTable(
        source=path,
        stack_paths=stacks,
        stack=np.repeat(np.arange(len(stacks), dtype=np.int32), counts),
        stack_index=np.concatenate([np.arange(images, dtype=np.int64) for images in counts]),
        rotation=None,
        shift_angstrom=np.zeros((count, 2), dtype=np.float32),
        defocus_u_angstrom=zeros,
        defocus_v_angstrom=zeros,
        defocus_angle_deg=zeros,
        phase_shift_deg=zeros,
        optics=(OpticsGroup("opticsGroup1", 0.0, 0, 0.0, 0.0, 0.0),),
        optics_group=np.zeros(count, dtype=np.int32),
        half_set=np.zeros(count, dtype=np.int8),
        uid=np.zeros(count, dtype=np.uint64),
        source_row=np.arange(count, dtype=np.int64),
    )


def _read_rows(indices: Path, count: int, source: Path) -> np.ndarray:
    rows = read_indices_pkl(indices)
    if rows.max() >= count:
        raise ParticleFormatError(
            f"{indices}: names row {int(rows.max())} (from 0) and {source} has {count} particles; give the "
            "indices of this file"
        )
    return rows


def _align_rows(path: Path, values: np.ndarray, table: ParticleTable, indices: Path | None) -> np.ndarray:
    """Bring a pickle, which holds all particles or those of `indices`, to the rows of the table."""
    if len(values) == len(table):
        return values
    if indices is not None:
        rows = _read_rows(indices, len(table), table.source)
        if len(values) == len(rows):
            spread = np.repeat(values[:1], len(table), axis=0)
            spread[rows] = values
            return spread
    raise ParticleFormatError(
        f"{path}: {len(values)} rows for the {len(table)} particles of {table.source}; give the pickle of this file"
    )


def _replace_ctf(table: ParticleTable, path: Path, indices: Path | None) -> ParticleTable:
    values = _align_rows(path, read_ctf_pkl(path), table, indices)
    column = {label: values[:, place] for place, label in enumerate(CTF_COLUMNS)}
    terms = unapplied_terms(table.optics)
    masks = [sum(1 << terms.index(term) for term in group.unapplied_aberrations) for group in table.optics]
    optics, optics_group = group_optics(
        OpticsColumns(
            pixel_size_angstrom=column["pixel_size_angstrom"],
            box_size=column["box_size"],
            voltage_kv=column["voltage_kv"],
            spherical_aberration_mm=column["spherical_aberration_mm"],
            amplitude_contrast=column["amplitude_contrast"],
            group=table.optics_group,
            names={number: group.name for number, group in enumerate(table.optics)},
            terms=np.asarray(masks, dtype=np.int64)[table.optics_group],
            term_names=terms,
            imaging=[table.optics[group].imaging for group in table.optics_group],
        )
    )
    return replace(
        table,
        defocus_u_angstrom=column["defocus_u_angstrom"].astype(np.float32),
        defocus_v_angstrom=column["defocus_v_angstrom"].astype(np.float32),
        defocus_angle_deg=column["defocus_angle_deg"].astype(np.float32),
        phase_shift_deg=column["phase_shift_deg"].astype(np.float32),
        optics=optics,
        optics_group=optics_group,
    )


def _fill_boxes(table: ParticleTable, from_pickle: bool) -> ParticleTable:
    """Box sizes that the metadata leave out, from the stacks.

    A ``ctf.pkl`` keeps box and pixel size of the extraction when images are downsampled later (cryoDRGN's
    custom), so there the stack decides the box and the pixel size follows.
    """
    _, first = np.unique(table.optics_group, return_index=True)
    optics = list(table.optics)
    for row in first.tolist():
        number = int(table.optics_group[row])
        group, path = optics[number], table.stack_paths[table.stack[row]]
        if (group.box_size and not from_pickle) or not is_readable_file(path):
            continue
        box = _read_named_header(table, path).columns
        scale = group.box_size / box if from_pickle else 1.0
        optics[number] = replace(group, box_size=box, pixel_size_angstrom=group.pixel_size_angstrom * scale)
    return replace(table, optics=tuple(optics))


def _replace_poses(table: ParticleTable, path: Path, indices: Path | None) -> ParticleTable:
    rotation, shift_fraction = read_poses_pkl(path)
    rotation, shift_fraction = (_align_rows(path, values, table, indices) for values in (rotation, shift_fraction))
    box_angstrom = table.per_particle(lambda group: group.box_size * group.pixel_size_angstrom)
    if not box_angstrom.all():
        raise ParticleFormatError(
            f"{path}: its shifts are fractions of the box, and the box of {table.source} is not known "
            "without its stacks; give --datadir with the folder that holds them"
        )
    return replace(table, rotation=rotation, shift_angstrom=shift_fraction * box_angstrom[:, None])


def _check_geometry(table: ParticleTable, poses: Path | None) -> None:
    """What depends on several columns: pixel sizes as the stacks have it, poses, shifts within the box."""
    known = np.asarray([group.pixel_size_angstrom for group in table.optics])
    check_column(table.source, "pixel size by optics group", known[known != 0], PIXEL_SIZE)
    if table.rotation is None:
        return
    source, (rotation, shift) = table.source, _POSE_COLUMNS.get(table.source.suffix.lower(), ("rotation", "shift"))
    if poses is not None:
        source, (rotation, shift) = poses, ("rotation", "translation")
    check_rotations(source, rotation, table.rotation)
    box_angstrom = table.per_particle(lambda group: group.box_size * group.pixel_size_angstrom)
    check_shifts(source, shift, table.shift_angstrom, box_angstrom)


def _check_stack(table: ParticleTable, header: MRCHeader, rows: np.ndarray) -> None:
    """One stack against the rows of the table that use it."""
    if header.rows != header.columns:
        raise ParticleFormatError(
            f"{header.path}: images of {header.rows} x {header.columns} pixels are not square; extract square particles"
        )
    beyond = rows[(table.stack_index[rows] >= header.sections) | (table.stack_index[rows] < 0)]
    if len(beyond):
        row = int(beyond.min())
        raise ParticleFormatError(
            f"{table.source}, particle row {int(table.source_row[row]) + 1}: image "
            f"{int(table.stack_index[row]) + 1} of {header.path}, which holds {header.sections} "
            f"({len(beyond)} such rows); give the stack that belongs to the file"
        )
    check_length(header)
    for number in np.unique(table.optics_group[rows]).tolist():
        group = table.optics[number]
        if group.box_size != header.columns:
            row = int(table.source_row[rows[table.optics_group[rows] == number][0]])
            raise ParticleFormatError(
                f"{header.path}: box {header.columns}, but {table.source} says {group.box_size} for optics "
                f"group {group.name} (particle row {row + 1}); give the metadata of these images, or correct "
                "the box there"
            )
    if header.columns % 2:
        raise ParticleFormatError(
            f"{header.path}: odd box {header.columns}; only even boxes are used: crop or extract again to "
            f"{header.columns - 1} or {header.columns + 1} pixels"
        )


def _find_conflicts(table: ParticleTable, header: MRCHeader, rows: np.ndarray) -> list[str]:
    """Say when the header has another pixel size than the metadata; an unset header has none."""
    for number in np.unique(table.optics_group[rows]).tolist():
        size = table.optics[number].pixel_size_angstrom
        if header.pixel_size_angstrom and abs(header.pixel_size_angstrom - size) > PIXEL_SIZE_TOLERANCE * size:
            return [
                f"{header.path}: the header says {header.pixel_size_angstrom:.5g} A per pixel, the metadata "
                f"{size:.5g} A"
            ]
    return []
