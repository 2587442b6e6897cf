"""What RELION's columns mean, whichever version wrote them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.particles import Correction, Imaging, OpticsColumns, check_finite
from cryoformer_dist.physics.aberrations import with_beam_tilt
from cryoformer_dist.physics.ctf import electron_wavelength_angstrom
from cryoformer_dist.physics.pose import rotation_from_relion_euler

Block = dict[str, np.ndarray]

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PIXELS = ("rlnOriginX", "rlnOriginY")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize")

_TERMS = (
    "anisotropic magnification (rlnMagMat)",
    "CTF B-factor (rlnCtfBfactor)",
    "CTF scale (rlnCtfScalefactor)",
)
_TILT, _ODD, _EVEN = ("rlnBeamTiltX", "rlnBeamTiltY"), "rlnOddZernike", "rlnEvenZernike"
_FLIPPED, _MULTIPLIED = "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"
_CORRECTIONS: tuple[Correction, ...] = ("none", "phases flipped", "multiplied by CTF")
# RELION prints six decimals: below half of the last one a term is absent.
_NEUTRAL = 5e-7
_DEFAULT_MAGNIFICATION = 1e4
_ANGSTROM_PER_MICROMETRE = 1e4


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

    def numbers(self, label: str, *, positive: bool = False) -> np.ndarray:
        """Look up a column ``(N,)`` as finite float64.

        Raises
        ------
        ParticleFormatError
            If a cell is no number, not finite, or (`positive`) not above 0; names row and column.
        """
        values = _as_numbers(self.path, label, self.cells(label))
        check_finite(self.path, {label: values}, positive=(label,) if positive else ())
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
    if require_ctf:
        ctf = [label for label in (*DEFOCUS, *MICROSCOPE) if not rows.has(label)]
        if not rows.has_any(PIXEL_SIZES):
            ctf.append("rlnImagePixelSize (or rlnDetectorPixelSize with rlnMagnification)")
        if ctf:
            lacking.append(f"CTF: {', '.join(ctf)}")
            remedies.append("add the columns, or give --ctf")
    if lacking:
        where = f"data_{rows.block_name}" + (" and data_optics" if rows.optics else "")
        raise ParticleFormatError(
            f"{rows.path}: missing columns in {where}: {'; '.join(lacking)}. To go on: {'; '.join(remedies)}"
        )


def image_pixel_size(rows: StarRows) -> np.ndarray:
    """Pixel size ``(N,)`` of the images in angstrom: stated, or detector pixel over magnification.

    Warns
    -----
    CryoFormerWarning
        If there is a detector pixel size without a magnification: 10000 is taken, RELION's default.
    """
    label = next(label for label in PIXEL_SIZES if rows.has(label))
    size = rows.numbers(label, positive=True)
    if label != "rlnDetectorPixelSize":
        return size
    if rows.has("rlnMagnification"):
        return size * _ANGSTROM_PER_MICROMETRE / rows.numbers("rlnMagnification", positive=True)
    warnings.warn(
        f"{rows.path}: rlnDetectorPixelSize without rlnMagnification; magnification 10000 is taken, that is "
        f"{size[0]:.5g} A per pixel",
        CryoFormerWarning,
        stacklevel=3,
    )
    return size * (_ANGSTROM_PER_MICROMETRE / _DEFAULT_MAGNIFICATION)


def optics_columns(rows: StarRows, pixel_size_angstrom: np.ndarray) -> OpticsColumns:
    """Gather what decides the optics group of each row; columns that a file may lack here are 0."""
    voltage, aberration, contrast = (
        rows.numbers(label, positive=label == "rlnVoltage") if rows.has(label) else np.zeros(len(rows))
        for label in MICROSCOPE
    )
    names: dict[int, str] = {}
    if "rlnOpticsGroupName" in rows.optics:
        names = {row: str(name) for row, name in enumerate(rows.optics["rlnOpticsGroupName"])}
    return OpticsColumns(
        pixel_size_angstrom=pixel_size_angstrom,
        box_size=rows.optional("rlnImageSize", 0.0),
        voltage_kv=voltage,
        spherical_aberration_mm=aberration,
        amplitude_contrast=contrast,
        group=rows.optics_row,
        names=names,
        terms=_unapplied_terms(rows),
        term_names=_TERMS,
        imaging=_imagings(rows),
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
        if not mark or not name or not number.isdecimal() or int(number) < 1:
            raise ParticleFormatError(
                f"{path}, particle row {row + 1}, column rlnImageName: {cell!r} is not <number from "
                "1>@<stack>, such as 000001@Extract/job007/stack.mrcs; single images and subtomograms are "
                "not supported"
            )
        stack[row] = known.setdefault(name, len(known))
        stack_index[row] = int(number) - 1
    return list(known), stack, stack_index


def _refuse_tomography(path: Path, blocks: Mapping[str, Block], optics: Block) -> None:
    if any("rlnTomoSubTomosAre2DStacks" in block for block in blocks.values()):
        raise ParticleFormatError(f"{path}: tilt-series particles (RELION 5 tomography); single-particle files only")
    dimensions = optics.get("rlnImageDimensionality")
    if dimensions is not None and (_as_numbers(path, "rlnImageDimensionality", dimensions) != 2).any():
        raise ParticleFormatError(
            f"{path}, data_optics, column rlnImageDimensionality: not 2; subtomograms are not supported, "
            "give 2D particles"
        )


def _optics_rows(path: Path, particles: Block, optics: Block, count: int) -> np.ndarray:
    """Row of the optics table of each particle."""
    table = _as_numbers(path, "rlnOpticsGroup", optics["rlnOpticsGroup"]).astype(np.int64)
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
            f"data_optics (groups {sorted(table.tolist())}); add it there"
        )
    return order[place]


def _imagings(rows: StarRows) -> list[Imaging]:
    """What was done to the images of each row, and the microscope's aberrations.

    Raises
    ------
    ParticleFormatError
        If some are said to be both flipped and multiplied, coefficients are no numbers, or a beam tilt lacks voltage
        and spherical aberration.
    """
    flipped, multiplied = (rows.optional(label, 0.0) != 0 for label in (_FLIPPED, _MULTIPLIED))
    both = flipped & multiplied
    if both.any():
        row = int(np.flatnonzero(both)[0])
        raise ParticleFormatError(
            f"{rows.path}, particle row {row + 1}: {_FLIPPED} and {_MULTIPLIED} are both set; images are one of "
            "the two: set the other to 0"
        )
    odd, even = _coefficients(rows, _ODD), _coefficients(rows, _EVEN)
    tilted = _with_beam_tilts(rows, odd)
    corrections = [_CORRECTIONS[flip + 2 * multiply] for flip, multiply in zip(flipped, multiplied, strict=True)]
    return [Imaging(*one) for one in zip(corrections, map(_trimmed, tilted), map(_trimmed, even), strict=True)]


def _coefficients(rows: StarRows, label: str) -> list[tuple[float, ...]]:
    """Numbers of each row in a list like ``[0,0.5]``; none where there is no such column."""
    if not rows.has(label):
        return [()] * len(rows)
    known: dict[str, tuple[float, ...]] = {}
    for row, cell in enumerate(map(str, rows.cells(label))):
        if cell in known:
            continue
        try:
            known[cell] = tuple(float(number) for number in cell.strip("[] ").split(",") if number.strip())
        except ValueError:
            raise ParticleFormatError(
                f"{rows.path}, row {row + 1}, column {label}: {cell!r} is not a list of numbers like [0,0.5]; correct "
                "the cell"
            ) from None
    return [known[cell] for cell in map(str, rows.cells(label))]


def _with_beam_tilts(rows: StarRows, odd: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Odd coefficients of each row with its beam tilt."""
    if not rows.has_any(_TILT):
        return odd
    tilt = np.stack([rows.optional(label, 0.0) for label in _TILT], axis=1)
    if not rows.has_all(MICROSCOPE[:2]) and (np.abs(tilt) > _NEUTRAL).any():
        raise ParticleFormatError(f"{rows.path}: {_TILT[0]} needs {MICROSCOPE[0]} and {MICROSCOPE[1]}; add the columns")
    voltage, aberration = (rows.optional(label, 300.0) for label in MICROSCOPE[:2])
    wavelength = electron_wavelength_angstrom(torch.from_numpy(voltage)).numpy()
    return [
        with_beam_tilt(own, (x, y), cs, length)
        for own, (x, y), cs, length in zip(odd, tilt.tolist(), aberration.tolist(), wavelength.tolist(), strict=True)
    ]


def _trimmed(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    """The same up to the last that is there at all."""
    present = [place for place, value in enumerate(coefficients) if abs(value) > _NEUTRAL]
    return coefficients[: present[-1] + 1] if present else ()


def _unapplied_terms(rows: StarRows) -> np.ndarray:
    """Bit mask ``(N,)`` over `_TERMS`."""
    present = np.zeros((len(_TERMS), len(rows)), dtype=bool)
    for label, identity in (("00", 1.0), ("01", 0.0), ("10", 0.0), ("11", 1.0)):
        present[0] |= np.abs(rows.optional(f"rlnMagMat{label}", identity) - identity) > _NEUTRAL
    # These two vary from particle to particle: they mark the whole file, or they would split its optics
    # groups.
    present[1] = (np.abs(rows.optional("rlnCtfBfactor", 0.0)) > _NEUTRAL).any()
    present[2] = (np.abs(rows.optional("rlnCtfScalefactor", 1.0) - 1.0) > _NEUTRAL).any()
    return (present.astype(np.int64) << np.arange(len(_TERMS), dtype=np.int64)[:, None]).sum(axis=0)


def _as_numbers(path: Path, label: str, cells: np.ndarray) -> np.ndarray:
    try:
        return cells.astype(np.float64)
    except (TypeError, ValueError):
        row = next(row for row, cell in enumerate(cells.tolist()) if not _is_number(cell))
        raise ParticleFormatError(
            f"{path}, row {row + 1}, column {label}: {cells[row]!r} is not a number; correct the cell"
        ) from None


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True
