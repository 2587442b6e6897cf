"""What the user says of particles whose file does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.limits import (
    AMPLITUDE_CONTRAST,
    PIXEL_SIZE,
    SPHERICAL_ABERRATION,
    VOLTAGE,
    Quantity,
)

OPTIONS: Mapping[str, tuple[str, Quantity]] = {
    "voltage_kv": ("--voltage", VOLTAGE),
    "spherical_aberration_mm": ("--cs", SPHERICAL_ABERRATION),
    "amplitude_contrast": ("--amplitude-contrast", AMPLITUDE_CONTRAST),
    "pixel_size_angstrom": ("--pixel-size", PIXEL_SIZE),
}


@dataclass(frozen=True, slots=True)
class StatedValues:
    """Values for what a particle file leaves out; ``None`` where the file is to say it.

    Attributes
    ----------
    centred
        The particles are in the middle of their images: shifts are 0.
    class_number
        Of the classes of a heterogeneous refinement, the one (from 0) whose poses are taken, for all particles.
    """

    voltage_kv: float | None = None
    spherical_aberration_mm: float | None = None
    amplitude_contrast: float | None = None
    pixel_size_angstrom: float | None = None
    centred: bool = False
    class_number: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.numbers().items():
            option, quantity = OPTIONS[name]
            if not quantity.allows(np.asarray(value)):
                raise ParticleFormatError(f"{option} {value:g}: not {quantity}{quantity.explain(value)}")

    def numbers(self) -> dict[str, float]:
        """The numbers that are stated, by name."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    def refuse_any(self, path: Path) -> None:
        """Refuse values for a file that cannot lack any.

        Raises
        ------
        ParticleFormatError
            If anything is stated.
        """
        if self != NOTHING_STATED:
            raise ParticleFormatError(
                f"{path}: {', '.join(OPTIONS[name][0] for name in OPTIONS)}, --centred and --class belong to .star and "
                ".cs files; --ctf and --poses give everything here: leave the others out"
            )


NOTHING_STATED = StatedValues()


def refuse_restated(path: Path, option: str, column: str) -> None:
    """Refuse a value that the file has itself.

    Raises
    ------
    ParticleFormatError
        Always: one of the two is wrong, or the option not needed.
    """
    raise ParticleFormatError(f"{path}: has {column} itself, and {option} is for files without; leave {option} out")
