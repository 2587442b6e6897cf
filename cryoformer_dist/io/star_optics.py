"""What RELION's columns say of the microscope and of what was done to the images."""

import warnings

import numpy as np
import torch

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.limits import ABERRATION, PIXEL_SIZE, check_column
from cryoformer_dist.io.particles import Correction, Imaging, OpticsColumns
from cryoformer_dist.io.star_rows import MICROSCOPE, PIXEL_SIZES, TILT, StarRows
from cryoformer_dist.physics.aberrations import with_beam_tilt
from cryoformer_dist.physics.ctf import electron_wavelength_angstrom

_TERMS = (
    "anisotropic magnification (rlnMagMat)",
    "CTF B-factor (rlnCtfBfactor)",
    "CTF scale (rlnCtfScalefactor)",
)
_ODD, _EVEN = "rlnOddZernike", "rlnEvenZernike"
_FLIPPED, _MULTIPLIED = "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"
_CORRECTIONS: tuple[Correction, ...] = ("none", "phases flipped", "multiplied by CTF")
# RELION prints six decimals: below half of the last one a term is absent.
_NEUTRAL = 5e-7
_DEFAULT_MAGNIFICATION = 1e4
_ANGSTROM_PER_MICROMETRE = 1e4


def image_pixel_size(rows: StarRows) -> np.ndarray:
    """Pixel size ``(N,)`` of the images in angstrom: stated, or detector pixel over magnification.

    Warns
    -----
    CryoFormerWarning
        If there is a detector pixel size without a magnification: 10000 is taken, RELION's default.
    """
    label = next(label for label in PIXEL_SIZES if rows.has(label))
    size = rows.numbers(label)
    if label != "rlnDetectorPixelSize":
        return size
    if rows.has("rlnMagnification"):
        size = size * _ANGSTROM_PER_MICROMETRE / rows.numbers("rlnMagnification")
        check_column(rows.path, "rlnDetectorPixelSize (um) x 10^4 / rlnMagnification", size, PIXEL_SIZE)
        return size
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
        rows.numbers(label) if rows.has(label) else np.zeros(len(rows)) for label in MICROSCOPE
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
    # Millions of rows share a few ways.
    made: dict[tuple[int, tuple[float, ...], tuple[float, ...]], Imaging] = {}
    ways = list(zip((flipped + 2 * multiplied).tolist(), tilted, even, strict=True))
    for correction, tilt, other in set(ways):
        made[correction, tilt, other] = Imaging(_CORRECTIONS[correction], _trimmed(tilt), _trimmed(other))
    return [made[way] for way in ways]


def _coefficients(rows: StarRows, label: str) -> list[tuple[float, ...]]:
    """Numbers of each row in a list like ``[0,0.5]``; none where there is no such column."""
    if not rows.has(label):
        return [()] * len(rows)
    known: dict[str, tuple[float, ...]] = {}
    for row, cell in enumerate(map(str, rows.cells(label))):
        if cell in known:
            continue
        known[cell] = _parse_numbers(cell)
        if not ABERRATION.allows(np.asarray(known[cell])).all():
            raise ParticleFormatError(
                f"{rows.path}, row {row + 1}, column {label}: {cell[:200]!r} is not a list like [0,0.5] of numbers "
                f"{ABERRATION}; correct the cell"
            )
    return [known[cell] for cell in map(str, rows.cells(label))]


def _parse_numbers(cell: str) -> tuple[float, ...]:
    """Numbers of a list like ``[0,0.5]``; NaN where it is none."""
    try:
        return tuple(float(number) for number in cell.strip("[] ").split(",") if number.strip())
    except ValueError:
        return (np.nan,)


def _with_beam_tilts(rows: StarRows, odd: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Odd coefficients of each row with its beam tilt."""
    if not rows.has_any(TILT):
        return odd
    tilt = np.stack([rows.optional(label, 0.0) for label in TILT], axis=1)
    if not rows.has_all(MICROSCOPE[:2]) and (np.abs(tilt) > _NEUTRAL).any():
        raise ParticleFormatError(f"{rows.path}: {TILT[0]} needs {MICROSCOPE[0]} and {MICROSCOPE[1]}; add the columns")
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
