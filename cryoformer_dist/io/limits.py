"""What a microscope, an image and a pose can be: one table of limits for every number that is read from anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Farther than this from orthonormal is not a rounding error of a single-precision matrix.
_ORTHONORMAL_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit and its limits.

    Attributes
    ----------
    name, unit
        In the words of an error.
    least, most
        Both are allowed.
    mistaken_units
        Units that files give it in by mistake, and how many of ours each is.
    """

    name: str = "number"
    unit: str = ""
    least: float = -_LARGEST_FLOAT32
    most: float = _LARGEST_FLOAT32
    mistaken_units: Mapping[str, float] = field(default_factory=dict)

    def allows(self, values: np.ndarray) -> np.ndarray:
        """Which of some values can be; NaN and infinity cannot, nor what is infinite or zero by rounding to float32."""
        allowed: np.ndarray = (values >= self.least) & (values <= self.most)
        return allowed

    def explain(self, value: float) -> str:
        """Say in which unit a value would be possible; empty when in none."""
        for unit, factor in self.mistaken_units.items():
            if self.allows(np.asarray(value * factor)):
                return f"; {value:g} {unit} would be {value * factor:g}{_spaced(self.unit)}: was it written in {unit}?"
        return ""

    def __str__(self) -> str:
        if self.most == _LARGEST_FLOAT32:
            return "a finite number" if self.least < 0 else "a positive number"
        return f"within {self.least:g} to {self.most:g}{_spaced(self.unit)}"


NUMBER = Quantity()
POSITIVE = Quantity(least=float(np.finfo(np.float32).tiny))
VOLTAGE = Quantity("voltage", "kV", 20, 1500, {"V": 1e-3, "MV": 1e3})
SPHERICAL_ABERRATION = Quantity("spherical aberration", "mm", 0, 20, {"micrometre": 1e-3})
# All of the contrast from amplitudes would leave no phase contrast.
AMPLITUDE_CONTRAST = Quantity("amplitude contrast", "", 0, float(np.nextafter(np.float32(1), 0)), {"percent": 1e-2})
PIXEL_SIZE = Quantity("pixel size", "A", 0.05, 50, {"nanometre": 10, "picometre": 1e-2, "metre": 1e10})
DEFOCUS = Quantity("defocus", "A", -1e5, 1e5, {"nanometre": 10, "micrometre": 1e4, "picometre": 1e-2})
TYPICAL_DEFOCUS = Quantity("median defocus", "A", 500, 1e5, DEFOCUS.mistaken_units)
ANGLE = Quantity("angle", "degrees", -3600, 3600)
ROTATION_VECTOR = Quantity("rotation", "radians", -10, 10, {"degrees": np.pi / 180})
ANGLE_RADIANS = Quantity("angle", "radians", -63, 63, {"degrees": np.pi / 180})
BOX_SIZE = Quantity("box", "pixels", 2, 16384)
BEAM_TILT = Quantity("beam tilt", "mrad", -100, 100)
ABERRATION = Quantity("aberration coefficient", "", -1e4, 1e4)


def check_column(source: Path, column: str, values: np.ndarray, quantity: Quantity = NUMBER) -> None:
    """Refuse numbers that cannot be.

    Parameters
    ----------
    values
        ``(rows, ...)``.

    Raises
    ------
    ParticleFormatError
        With file, first such row, column, value, limit, and the unit that would explain it.
    """
    numbers = values.reshape(len(values), -1)
    bad = ~quantity.allows(numbers).all(axis=1)
    if not bad.any():
        return
    row = int(np.flatnonzero(bad)[0])
    shown = numbers[row].tolist()
    value = next(number for number in shown if not quantity.allows(np.asarray(number)))
    wanted = quantity if np.isfinite(value) else NUMBER
    raise ParticleFormatError(
        f"{source}, particle row {row + 1} (of {len(values)}), column {column}: {quantity.name} "
        f"{value:g}{_spaced(quantity.unit)} is not {wanted} ({int(bad.sum())} such rows){quantity.explain(value)}; "
        "correct or remove those particles"
    )


def check_defocus(source: Path, column: str, values: np.ndarray, phase_shift: np.ndarray | None) -> None:
    """Refuse defocus ``(rows,)`` of which a row cannot be, or most are in another unit than angstrom.

    In focus are only images of a phase plate, whose ``phase_shift`` ``(rows,)`` is not 0.

    Raises
    ------
    ParticleFormatError
        With the median and the unit that would explain it.
    """
    check_column(source, column, values, DEFOCUS)
    median = float(np.median(values))
    in_focus = phase_shift is not None and bool((phase_shift != 0).all()) and not values.any()
    if in_focus or TYPICAL_DEFOCUS.allows(np.asarray(median)):
        return
    remedy = TYPICAL_DEFOCUS.explain(median)
    if TYPICAL_DEFOCUS.allows(np.asarray(-median)):
        remedy = "; underfocus is positive: was it written with the other sign?"
    raise ParticleFormatError(
        f"{source}, column {column}: the median defocus of {len(values)} rows is {median:g} A, and particles have "
        f"it {TYPICAL_DEFOCUS}{remedy}; write defocus in angstrom"
    )


def check_rotations(source: Path, column: str, rotation: np.ndarray) -> None:
    """Refuse matrices ``(rows, 3, 3)`` that are no rotations.

    Raises
    ------
    ParticleFormatError
        If one is not finite, not orthonormal, or mirrors; names the row.
    """
    check_column(source, column, rotation)
    # Squares of what float32 holds are no numbers of float32.
    rotation = rotation.astype(np.float64)
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    wrong = ~(error <= _ORTHONORMAL_TOLERANCE) | (np.linalg.det(rotation) < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ParticleFormatError(
            f"{source}, particle row {row + 1} (of {len(rotation)}), column {column}: the matrix is not a rotation "
            f"({int(wrong.sum())} such rows); export the poses again"
        )


def check_shifts(source: Path, column: str, shift_angstrom: np.ndarray, box_angstrom: np.ndarray) -> None:
    """Refuse shifts ``(rows, 2)`` that put a particle's centre outside its image of sides ``(rows,)``; 0 is unknown.

    Raises
    ------
    ParticleFormatError
        Names the row, its shift and the limit.
    """
    check_column(source, column, shift_angstrom)
    limit = np.where(box_angstrom > 0, box_angstrom / 2, np.inf)
    beyond = (np.abs(shift_angstrom) > limit[:, None]).any(axis=1)
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        x, y = shift_angstrom[row].tolist()
        raise ParticleFormatError(
            f"{source}, particle row {row + 1} (of {len(beyond)}), column {column}: a shift of ({x:g}, {y:g}) A puts "
            f"the centre outside the image, which ends {limit[row]:g} A from its middle ({int(beyond.sum())} such "
            "rows); were origins of other pixels taken, or angstrom for pixels? Correct or remove those particles"
        )


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""
