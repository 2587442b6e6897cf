"""RELION ``.star`` files, 1.x to 5, in and out (the only module that imports starfile)."""

import linecache
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import starfile
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.limits import check_defocus
from cryoformer_dist.io.particles import (
    NewPoses,
    ParticleTable,
    group_optics,
    refuse_rows_beyond,
    warn_of_unapplied_terms,
)
from cryoformer_dist.io.stack_paths import resolve_stacks
from cryoformer_dist.io.star_optics import image_pixel_size, optics_columns
from cryoformer_dist.io.star_rows import (
    ANGLES,
    DEFOCI,
    DEFOCUS_ANGLE,
    ORIGINS_ANGSTROM,
    ORIGINS_PIXELS,
    PIXEL_SIZES,
    Block,
    StarRows,
    add_stated,
    half_sets,
    open_rows,
    refuse_missing,
    split_image_names,
    star_poses,
)
from cryoformer_dist.io.star_text import (
    LoopBlock,
    find_loop,
    format_block,
    read_star_lines,
    refuse_uneven_rows,
    replace_cells,
)
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues
from cryoformer_dist.physics.pose import relion_euler_from_rotation
from cryoformer_dist.storage.places import replaced

# Columns of names: starfile would turn "007" into 7.
_TEXT = (
    *("rlnImageName", "rlnMicrographName", "rlnOpticsGroupName", "rlnGroupName", "rlnOddZernike"),
    *("rlnEvenZernike", "rlnReferenceImage", "rlnCtfImage", "rlnMtfFileName", "rlnTomoName"),
)
# What may be uneven is looked for here; other blocks are not read.
_PARTICLE_BLOCKS = ("optics", "particles", "images", "")


def read_star(
    path: Path,
    *,
    datadir: Path | None = None,
    require_poses: bool = True,
    require_ctf: bool = True,
    stated: StatedValues = NOTHING_STATED,
) -> ParticleTable:
    """Read the particles of a RELION file of any version; blocks in any order, extra ones ignored.

    Parameters
    ----------
    path
        ``run_data.star``, ``particles.star`` and the like.
    datadir, require_poses, require_ctf
        Where the stacks are, and whether poses (else None) and CTF and optics (else 0) must be there.
    stated
        Values for columns that it lacks.

    Raises
    ------
    ParticleFormatError
        If it is no particle file, columns are missing (all are named), or a cell cannot be.

    Warns
    -----
    AberrationsNotAppliedWarning
        As `read_particles` does.
    """
    rows = add_stated(open_rows(path, read_blocks(path)), stated)
    refuse_missing(rows, require_poses, require_ctf)
    names, stack, stack_index = split_image_names(path, rows.particles["rlnImageName"])
    pixel_size = image_pixel_size(rows) if rows.has_any(PIXEL_SIZES) else np.zeros(len(rows))
    optics, optics_group = group_optics(optics_columns(rows, pixel_size))
    warn_of_unapplied_terms(path, optics)
    rotation, shift = star_poses(rows, pixel_size)
    defocus_u, defocus_v, defocus_angle, phase = (
        rows.optional(label, 0.0).astype(np.float32) for label in (*DEFOCI, DEFOCUS_ANGLE, "rlnPhaseShift")
    )
    if require_ctf:
        for label, values in zip(DEFOCI, (defocus_u, defocus_v), strict=True):
            check_defocus(path, label, values, phase)
    return ParticleTable(
        source=path,
        stack_paths=resolve_stacks(names, path, datadir),
        stack=stack,
        stack_index=stack_index,
        rotation=rotation,
        shift_angstrom=shift,
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_v,
        defocus_angle_deg=defocus_angle,
        phase_shift_deg=phase,
        optics=optics,
        optics_group=optics_group,
        half_set=half_sets(rows),
        uid=np.zeros(len(rows), dtype=np.uint64),
        source_row=np.arange(len(rows), dtype=np.int64),
    )


def write_star(path: Path, table: ParticleTable, image_names: Sequence[str]) -> None:
    """Write the particles as RELION 3.1 (optics and particles block), whole or not at all.

    Parameters
    ----------
    path
        The file to write; one that exists is replaced.
    table
        The particles; without poses the angles are left out.
    image_names
        ``000001@stack.mrcs`` of each particle, image numbers from 1.

    Raises
    ------
    ValueError
        If there is not one name per particle.
    """
    if len(image_names) != len(table):
        raise ValueError(f"{path}: {len(image_names)} image names for {len(table)} particles; give one each")
    optics = {
        "rlnOpticsGroupName": [group.name for group in table.optics],
        "rlnOpticsGroup": [str(number) for number in range(1, len(table.optics) + 1)],
        "rlnVoltage": _cells([group.voltage_kv for group in table.optics]),
        "rlnSphericalAberration": _cells([group.spherical_aberration_mm for group in table.optics]),
        "rlnAmplitudeContrast": _cells([group.amplitude_contrast for group in table.optics]),
        "rlnImagePixelSize": _cells([group.pixel_size_angstrom for group in table.optics]),
        "rlnImageSize": [str(group.box_size) for group in table.optics],
        "rlnImageDimensionality": ["2"] * len(table.optics),
    }
    particles: dict[str, Sequence[str]] = {"rlnImageName": image_names}
    if table.rotation is not None:
        euler = _euler(table.rotation)
        particles |= {label: _cells(euler[:, axis]) for axis, label in enumerate(ANGLES)}
        particles |= {label: _cells(table.shift_angstrom[:, axis]) for axis, label in enumerate(ORIGINS_ANGSTROM)}
    particles |= {
        "rlnDefocusU": _cells(table.defocus_u_angstrom),
        "rlnDefocusV": _cells(table.defocus_v_angstrom),
        "rlnDefocusAngle": _cells(table.defocus_angle_deg),
        "rlnPhaseShift": _cells(table.phase_shift_deg),
        "rlnOpticsGroup": [str(group + 1) for group in table.optics_group.tolist()],
    }
    if table.half_set.all():
        particles["rlnRandomSubset"] = [str(half) for half in table.half_set.tolist()]
    blocks = [format_block("optics", optics), format_block("particles", particles)]
    _write_text(path, "\n# version 30001\n\n" + "\n# version 30001\n\n".join(blocks))


def update_star_poses(
    source: Path, output: Path, source_row: np.ndarray, rotation: np.ndarray, shift_angstrom: np.ndarray
) -> None:
    """Copy a particle file with new poses; every other cell, column, block and comment stays as it is.

    Origins are written in the columns and units that the file uses.

    Parameters
    ----------
    source
        The file that the particles came from.
    output
        Where to write; may be `source` itself.
    source_row
        ``(k,)`` rows of the particles block, from 0.
    rotation, shift_angstrom
        ``(k, 3, 3)`` RELION matrices and ``(k, 2)`` (x, y) to add to the image.

    Raises
    ------
    ParticleFormatError
        If the source is no particle file any more, or has fewer rows than `source_row` says.

    Warns
    -----
    CryoFormerWarning
        If the source has no pose columns and some of its rows get no pose: those rows are left out.
    """
    file = _open_text(source, source_row)
    poses = NewPoses(source_row, rotation, shift_angstrom)
    _write_text(output, "".join(_pose_lines(file, poses, len(file.rows), output)))


def select_star_rows(source: Path, output: Path, source_row: np.ndarray, poses: NewPoses | None = None) -> None:
    """Copy some particles of a file, in its order, with the optics groups they use; all else stays, byte for byte.

    Parameters
    ----------
    source
        A particle file.
    output
        Where to write, whole or not at all.
    source_row
        ``(k,)`` rows of the particles block to keep, from 0; with all of them the copy is the file itself.
    poses
        New ones of some of these; without pose columns in the source, the others are left out.

    Raises
    ------
    ParticleFormatError
        If the source is no particle file, or has fewer rows than that.
    """
    file = _open_text(source, source_row)
    lines = list(file.lines) if poses is None else _pose_lines(file, poses, len(source_row), output)
    if len(source_row) < len(file.rows):
        optics = find_loop(file.lines, "optics") if file.rows.optics else None
        for number in np.delete(file.block.row_lines, source_row):
            lines[number] = ""
        for number in () if optics is None else np.delete(optics.row_lines, file.rows.optics_row[source_row]):
            lines[number] = ""
    _write_text(output, "".join(lines))


@dataclass(frozen=True, slots=True, eq=False)
class _StarText:
    """A particle file: its lines, each with its end; the particles block in them, and what it says."""

    rows: StarRows
    lines: list[str]
    block: LoopBlock


def _open_text(source: Path, source_row: np.ndarray) -> _StarText:
    """A particle file that has these rows."""
    rows = open_rows(source, read_blocks(source))
    refuse_rows_beyond(source, len(rows), source_row)
    with source.open(encoding="utf-8", errors="surrogateescape", newline="") as handle:
        lines = handle.readlines()
    block = find_loop(lines, rows.block_name)
    if block is None or len(block.row_lines) != len(rows):
        raise ParticleFormatError(f"{source}: block data_{rows.block_name} is not a plain table; rewrite it as loop_")
    return _StarText(rows, lines, block)


def _pose_lines(file: _StarText, poses: NewPoses, wanted: int, output: Path) -> list[str]:
    """The lines with new poses; rows that a new column has no cell for are emptied, and told if they were wanted."""
    rows, shift_angstrom = file.rows, poses.shift_angstrom
    euler = _euler(poses.rotation)
    columns: dict[str, Sequence[str]] = {label: _cells(euler[:, axis]) for axis, label in enumerate(ANGLES)}
    if rows.has_all(ORIGINS_PIXELS) and rows.has_any(PIXEL_SIZES):
        pixels = shift_angstrom / image_pixel_size(rows)[poses.source_row, None]
        columns |= {label: _cells(pixels[:, axis]) for axis, label in enumerate(ORIGINS_PIXELS)}
    if rows.has_all(ORIGINS_ANGSTROM) or ORIGINS_PIXELS[0] not in columns:
        columns |= {label: _cells(shift_angstrom[:, axis]) for axis, label in enumerate(ORIGINS_ANGSTROM)}
    left_out = wanted - len(poses.source_row)
    if left_out and not set(columns) <= set(file.block.labels):
        warnings.warn(
            f"{output}: {rows.path} has no pose columns, so its {left_out} particles without a new pose are left out",
            CryoFormerWarning,
            stacklevel=3,
        )
    return replace_cells(file.lines, file.block, columns, poses.source_row)


def read_blocks(path: Path) -> dict[str, Block]:
    """Read every block as columns ``(rows,)``; a block without a loop has one row.

    Raises
    ------
    ParticleFormatError
        If the file is missing or no well-formed STAR file.
    """
    if not path.is_file():
        raise ParticleFormatError(f"{path}: no such file; check the path")
    lines = read_star_lines(path)
    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=list(_TEXT))
    # starfile meets a broken file with whatever its parts raise: too many cells (pandas: ValueError), a block
    # without content (TypeError), an odd name (AttributeError), a lone label (ValueError).
    except Exception as error:
        for name in _PARTICLE_BLOCKS:
            refuse_uneven_rows(path, lines, name)
        raise ParticleFormatError(
            f"{path}: not a well-formed STAR file ({str(error)[:200]}); every row needs one cell per label"
        ) from error
    finally:
        # starfile reads through this cache and leaves a stale copy of the file behind when it fails.
        linecache.clearcache()
    if not blocks:
        raise ParticleFormatError(f"{path}: not a STAR file, it has no data_ block; give a .star of particles")
    for name, block in blocks.items():
        if not isinstance(block, dict) and (name in _PARTICLE_BLOCKS or "rlnImageName" in block):
            refuse_uneven_rows(path, lines, name, len(block))
    return {name: _columns(block) for name, block in blocks.items()}


def _columns(block: Any) -> Block:
    if isinstance(block, dict):
        return {label: np.asarray([value]) for label, value in block.items()}
    return {str(label): block[label].to_numpy() for label in block.columns}


def _euler(rotation: np.ndarray) -> np.ndarray:
    """Angles ``(N, 3)`` in double precision, so that six decimals are meant."""
    return relion_euler_from_rotation(torch.from_numpy(np.asarray(rotation, dtype=np.float64))).numpy()


def _cells(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:.6f}" for value in np.asarray(values, dtype=np.float64).tolist()]


def _write_text(path: Path, text: str) -> None:
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
