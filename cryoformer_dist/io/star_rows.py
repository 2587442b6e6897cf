"""The rows of RELION's particles with their optics, whichever version wrote them; their poses and image names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.limits import (
    AMPLITUDE_CONTRAST,
    ANGLE,
    BEAM_TILT,
    BOX_SIZE,
    DEFOCUS,
    NUMBER,
    PIXEL_SIZE,
    POSITIVE,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    Quantity,
    check_column,
)
from cryoformer_dist.io.stated import OPTIONS, StatedValues, refuse_restated
from cryoformer_dist.physics.pose import rotation_from_relion_euler

Block = dict[str, np.ndarray]

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PIXELS = ("rlnOriginX", "rlnOriginY")
DEFOCI = ("rlnDefocusU", "rlnDefocusV")
DEFOCUS_ANGLE = "rlnDefocusAngle"
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize")
TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
# More images than ten digits count are in no stack.
_NUMBER_FROM_1 = re.compile(r"0*[1-9][0-9]{0,9}")
# Every other column is any finite number.
_LIMITS: Mapping[str, Quantity] = {
    **dict(zip(MICROSCOPE, (VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST), strict=True)),
    **dict.fromkeys(PIXEL_SIZES[:2], PIXEL_SIZE),
    **dict.fromkeys((PIXEL_SIZES[2], "rlnMagnification"), POSITIVE),
    **dict.fromkeys((*ANGLES, DEFOCUS_ANGLE, "rlnPhaseShift"), ANGLE),
    **dict.fromkeys(DEFOCI, DEFOCUS),
    **dict.fromkeys(TILT, BEAM_TILT),
    # We write 0 where it is not known.
    "rlnImageSize": replace(BOX_SIZE, least=0),
}
# An image for each tilt: poses and CTF stand elsewhere.
_OF_TILT_SERIES = ("rlnTomoSubTomosAre2DStacks", "rlnTomoParticleName", "rlnTomoVisibleFrames")
# Which column a value stands for that the user states.
_STATED = dict(zip(OPTIONS, (*MICROSCOPE, PIXEL_SIZES[0]), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class StarRows:
    """The particles block, with the optics table looked up per row.

    Attributes
    ----------
    path
        The file.
    block_name
        Name of the particles block.
    particles, optics
        Columns of the two blocks; `optics` is empty before RELION 3.1.
    optics_row
        ``(N,)`` row of `optics` of each particle; 0 without one.
    """

    path: Path
    block_name: str
    particles: Block
    optics: Block
    optics_row: np.ndarray

    def __len__(self) -> int:
        return len(self.optics_row)

    def has(self, label: str) -> bool:
        """Whether either block has the column."""
        return label in self.optics or label in self.particles

    def has_all(self, labels: Sequence[str]) -> bool:
        """Whether every one of the columns is there."""
        return all(map(self.has, labels))

    def has_any(self, labels: Sequence[str]) -> bool:
        """Whether at least one of the columns is there."""
        return any(map(self.has, labels))

    def cells(self, label: str) -> np.ndarray:
        """Look up a column ``(N,)`` as read; the optics table wins, as in RELION."""
        return self.optics[label][self.optics_row] if label in self.optics else self.particles[label]

    def numbers(self, label: str) -> np.ndarray:
        """Look up a column ``(N,)`` as float64 within its limits.

        Raises
        ------
        ParticleFormatError
            If a cell is no number, or one that cannot be; names row, column and limit.
        """
        values = _as_numbers(self.path, label, self.cells(label))
        check_column(self.path, label, values, _LIMITS.get(label, NUMBER))
        return values

    def optional(self, label: str, default: float) -> np.ndarray:
        """Look up a column that a file may leave out."""
        return self.numbers(label) if self.has(label) else np.full(len(self), default)


def open_rows(path: Path, blocks: Mapping[str, Block]) -> StarRows:
    """Find the particles among the blocks.

    Raises
    ------
    ParticleFormatError
        If no block has ``rlnImageName``, it has no row, the particles are 3D or tilt series, or an optics
        group that a particle names is not in the optics table.
    """
    named = [name for name, block in blocks.items() if "rlnImageName" in block]
    if not named:
        _refuse_other_programs(path, blocks)
        found = ", ".join(f"data_{name}" for name in blocks)
        raise ParticleFormatError(
            f"{path}: not a particle file, no block has the column rlnImageName (blocks: {found}); give the "
            "file that lists the particles, such as run_data.star or particles.star"
        )
    name = "particles" if "particles" in named else named[0]
    particles = blocks[name]
    count = len(particles["rlnImageName"])
    if count == 0:
        raise ParticleFormatError(f"{path}: block data_{name} has no rows; give a file with particles")
    optics = blocks.get("optics", {})
    _refuse_tomography(path, blocks, optics)
    if not len(optics.get("rlnOpticsGroup", ())):
        return StarRows(path, name, particles, {}, np.zeros(count, dtype=np.int64))
    return StarRows(path, name, particles, optics, _optics_rows(path, particles, optics, count))


def add_stated(rows: StarRows, stated: StatedValues) -> StarRows:
    """Complete the columns by what the user says of all particles.

    Raises
    ------
    ParticleFormatError
        If the file has such a column itself, or a class of a refinement is asked for.
    """
    if stated.class_number is not None:
        raise ParticleFormatError(
            f"{rows.path}: --class belongs to cryoSPARC's heterogeneous refinements; leave it out: a .star file has "
            "one pose for each particle"
        )
    values = {_STATED[name]: value for name, value in stated.numbers().items()}
    options = {_STATED[name]: OPTIONS[name][0] for name in stated.numbers()}
    if stated.centred:
        values |= dict.fromkeys(ORIGINS_ANGSTROM, 0.0)
        options |= dict.fromkeys(ORIGINS_ANGSTROM, "--centred")
    for label, option in options.items():
        alike = next((group for group in (PIXEL_SIZES, ORIGINS_ANGSTROM + ORIGINS_PIXELS) if label in group), (label,))
        for column in filter(rows.has, alike):
            refuse_restated(rows.path, option, column)
    added = {label: np.full(len(rows), value) for label, value in values.items()}
    return replace(rows, particles=rows.particles | added)


def refuse_missing(rows: StarRows, require_poses: bool, require_ctf: bool) -> None:
    """Name every column that is needed and absent, in one message.

    Raises
    ------
    ParticleFormatError
        With the columns and what to give instead.
    """
    lacking: list[str] = []
    remedies: list[str] = []
    if require_poses:
        poses = [label for label in ANGLES if not rows.has(label)]
        if not (rows.has_all(ORIGINS_ANGSTROM) or rows.has_all(ORIGINS_PIXELS)):
            poses.append("rlnOriginXAngst, rlnOriginYAngst (or rlnOriginX, rlnOriginY)")
        if poses:
            lacking.append(f"poses: {', '.join(poses)}")
            remedies.append("give a file from a 3D refinement, or --poses")
        if poses and poses[0] not in ANGLES:
            remedies.append("or --centred if every particle is in the middle of its image")
    if require_ctf:
        ctf = [label for label in (*DEFOCI, DEFOCUS_ANGLE, *MICROSCOPE) if not rows.has(label)]
        if not rows.has_any(PIXEL_SIZES):
            ctf.append("rlnImagePixelSize (or rlnDetectorPixelSize with rlnMagnification)")
        if ctf:
            lacking.append(f"CTF: {', '.join(ctf)}")
            stateable = [OPTIONS[name][0] for name, label in _STATED.items() if any(label in each for each in ctf)]
            remedies.append("add the columns, or give --ctf" + "".join(f", {option}" for option in stateable))
    if lacking:
        where = f"data_{rows.block_name}" + (" and data_optics" if rows.optics else "")
        raise ParticleFormatError(
            f"{rows.path}: missing columns in {where}: {'; '.join(lacking)}. To go on: {'; '.join(remedies)}"
        )


def star_poses(rows: StarRows, pixel_size_angstrom: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Rotations ``(N, 3, 3)`` and shifts ``(N, 2)`` float32; without the columns None and zeros.

    Angstrom origins win over pixel ones.
    """
    if not rows.has_all(ANGLES):
        return None, np.zeros((len(rows), 2), dtype=np.float32)
    euler = np.stack([rows.numbers(label) for label in ANGLES], axis=1)
    rotation = rotation_from_relion_euler(torch.from_numpy(euler)).numpy().astype(np.float32)
    if rows.has_all(ORIGINS_ANGSTROM):
        shift = np.stack([rows.numbers(label) for label in ORIGINS_ANGSTROM], axis=1)
    elif rows.has_all(ORIGINS_PIXELS):
        if not pixel_size_angstrom.all():
            raise ParticleFormatError(
                f"{rows.path}: rlnOriginX/Y are in pixels and the file has no pixel size; add "
                "rlnImagePixelSize, or give --poses"
            )
        shift = np.stack([rows.numbers(label) for label in ORIGINS_PIXELS], axis=1) * pixel_size_angstrom[:, None]
    else:
        return None, np.zeros((len(rows), 2), dtype=np.float32)
    return rotation, shift.astype(np.float32)


def half_sets(rows: StarRows) -> np.ndarray:
    """Half-set ``(N,)`` int8 of each particle: 1, 2, or 0 where there is none.

    Raises
    ------
    ParticleFormatError
        If a cell is something else; names the row.
    """
    half = rows.optional("rlnRandomSubset", 0.0)
    strange = ~np.isin(half, (0, 1, 2))
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise ParticleFormatError(
            f"{rows.path}, particle row {row + 1}, column rlnRandomSubset: {half[row]:g} is no half-set; write 1 or 2, "
            "or 0 for none"
        )
    return half.astype(np.int8)


def split_image_names(path: Path, image_names: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Take ``000001@stack.mrcs`` apart.

    Returns
    -------
    names
        Distinct stacks in order of appearance.
    stack
        ``(N,)`` int32 index into them.
    stack_index
        ``(N,)`` int64 from 0 (RELION counts from 1).

    Raises
    ------
    ParticleFormatError
        If a cell is of another form; names the row.
    """
    known: dict[str, int] = {}
    stack = np.empty(len(image_names), dtype=np.int32)
    stack_index = np.empty(len(image_names), dtype=np.int64)
    for row, cell in enumerate(image_names.tolist()):
        number, mark, name = str(cell).partition("@")
        if not mark or not name or not _NUMBER_FROM_1.fullmatch(number):
            raise ParticleFormatError(
                f"{path}, particle row {row + 1}, column rlnImageName: {str(cell)[:200]!r} is not <number from "
                "1>@<stack>, such as 000001@Extract/job007/stack.mrcs; single images and subtomograms are "
                "not supported"
            )
        stack[row] = known.setdefault(name, len(known))
        stack_index[row] = int(number) - 1
    return list(known), stack, stack_index


def _refuse_other_programs(path: Path, blocks: Mapping[str, Block]) -> None:
    """Name a STAR file of particles that RELION's columns do not describe."""
    labels = [label for block in blocks.values() for label in block]
    if any(label.startswith("cisTEM") for label in labels):
        raise ParticleFormatError(
            f"{path}: a cisTEM file; export the refinement package from cisTEM as RELION, or convert the file to "
            "RELION's columns"
        )
    if any(label.startswith(("rlnTomo", "wrp")) for label in labels):
        raise ParticleFormatError(
            f"{path}: a tilt-series (tomography) file; only single particles are read: give the .star of 2D images"
        )


def _refuse_tomography(path: Path, blocks: Mapping[str, Block], optics: Block) -> None:
    if any(label in block for block in blocks.values() for label in _OF_TILT_SERIES):
        raise ParticleFormatError(f"{path}: tilt-series particles (RELION 5 tomography); single-particle files only")
    dimensions = optics.get("rlnImageDimensionality")
    if dimensions is not None and (_as_numbers(path, "rlnImageDimensionality", dimensions) != 2).any():
        raise ParticleFormatError(
            f"{path}, data_optics, column rlnImageDimensionality: not 2; subtomograms are not supported, "
            "give 2D particles"
        )


def _optics_rows(path: Path, particles: Block, optics: Block, count: int) -> np.ndarray:
    """Row of the optics table of each particle."""
    table = _as_numbers(path, "rlnOpticsGroup", optics["rlnOpticsGroup"])
    if len(np.unique(table)) != len(table):
        raise ParticleFormatError(f"{path}, data_optics, column rlnOpticsGroup: a group is listed twice; number them")
    if "rlnOpticsGroup" not in particles:
        if len(table) == 1:
            return np.zeros(count, dtype=np.int64)
        raise ParticleFormatError(
            f"{path}: {len(table)} optics groups and no column rlnOpticsGroup among the particles; add it"
        )
    wanted = _as_numbers(path, "rlnOpticsGroup", particles["rlnOpticsGroup"])
    order = np.argsort(table)
    place = np.searchsorted(table[order], wanted).clip(max=len(table) - 1)
    unknown = table[order][place] != wanted
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise ParticleFormatError(
            f"{path}, particle row {row + 1}, column rlnOpticsGroup: group {wanted[row]:g} is not in "
            f"data_optics (groups {', '.join(f'{group:g}' for group in sorted(table.tolist()))}); add it there"
        )
    return order[place]


def _as_numbers(path: Path, label: str, cells: np.ndarray) -> np.ndarray:
    try:
        return cells.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        row = next(row for row, cell in enumerate(cells.tolist()) if not _is_number(cell))
        raise ParticleFormatError(
            f"{path}, row {row + 1}, column {label}: {str(cells[row])[:60]!r} is not a number; correct the cell"
        ) from None


def _is_number(cell: object) -> bool:
    try:
        return bool(np.isfinite(float(str(cell))))
    except ValueError:
        return False
