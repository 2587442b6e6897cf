"""Particles of any program in one dialect-free table."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cryoformer_dist.errors import AberrationsNotAppliedWarning, ParticleFormatError
from cryoformer_dist.physics.aberrations import EvenAberration
from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.pose import Pose

Correction = Literal["none", "phases flipped", "multiplied by CTF"]
"""What was done to the images for their CTF before they were written."""


@dataclass(frozen=True, slots=True)
class Imaging:
    """What sets the images of a source apart from ``CTF * projection + noise``, or its CTF from the usual.

    Attributes
    ----------
    correction
        Of signal and noise alike; conversion undoes it.
    odd_zernike
        Coefficients of the odd aberrations, beam tilt among them; conversion frees images of them.
    even_zernike
        Coefficients of the even aberrations; part of the CTF. See `physics.aberrations`.
    """

    correction: Correction = "none"
    odd_zernike: tuple[float, ...] = ()
    even_zernike: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class OpticsGroup:
    """Particles that share a microscope setting.

    Attributes
    ----------
    name
        As the source file calls it; ``opticsGroup<n>`` when it has no name.
    pixel_size_angstrom
        Of the stored image; 0 when a pickle of CTF parameters is still to say it.
    box_size
        Side of the image in pixels; 0 when neither the metadata nor a readable stack says it.
    voltage_kv, spherical_aberration_mm, amplitude_contrast
        Of the microscope; a spherical aberration of 0 is valid (corrected instrument).
    unapplied_aberrations
        Names of the terms present in the source that the forward model leaves out.
    imaging
        Of the images in the source.
    """

    name: str
    pixel_size_angstrom: float
    box_size: int
    voltage_kv: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    unapplied_aberrations: tuple[str, ...] = ()
    imaging: Imaging = Imaging()


@dataclass(frozen=True, slots=True, eq=False)
class ParticleTable:
    """One row per particle, in the order of the source file; ``N`` rows.

    Attributes
    ----------
    source
        The metadata file.
    stack_paths
        Distinct image stacks.
    stack
        ``(N,)`` int32 index into `stack_paths`.
    stack_index
        ``(N,)`` int64 position in the stack, from 0.
    rotation
        ``(N, 3, 3)`` float32 RELION matrix A, or None when the file has no poses and the caller allowed it.
    shift_angstrom
        ``(N, 2)`` float32 (x, y) to add to the image to centre it.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg, phase_shift_deg
        ``(N,)`` float32; underfocus is positive, the angle runs from +x towards +y.
    optics
        The optics groups.
    optics_group
        ``(N,)`` int32 index into `optics`.
    half_set
        ``(N,)`` int8: 1, 2, or 0 when unknown.
    uid
        ``(N,)`` uint64 of cryoSPARC, else 0.
    source_row
        ``(N,)`` int64 row of the source file, from 0.
    """

    source: Path
    stack_paths: tuple[Path, ...]
    stack: np.ndarray
    stack_index: np.ndarray
    rotation: np.ndarray | None
    shift_angstrom: np.ndarray
    defocus_u_angstrom: np.ndarray
    defocus_v_angstrom: np.ndarray
    defocus_angle_deg: np.ndarray
    phase_shift_deg: np.ndarray
    optics: tuple[OpticsGroup, ...]
    optics_group: np.ndarray
    half_set: np.ndarray
    uid: np.ndarray
    source_row: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self)
        for name in _ROW_FIELDS:
            values = getattr(self, name)
            if values is not None and len(values) != rows:
                raise ValueError(f"{name} has {len(values)} rows where stack has {rows}: give one per particle")

    def __len__(self) -> int:
        return len(self.stack)

    def select(self, rows: np.ndarray) -> "ParticleTable":
        """Keep the particles of a mask ``(N,)`` or of indices, in their order; `source_row` points home."""
        changes = {name: getattr(self, name)[rows] for name in _ROW_FIELDS if getattr(self, name) is not None}
        return replace(self, **changes)

    def per_particle(self, value: Callable[[OpticsGroup], float]) -> np.ndarray:
        """``(N,)`` float32 of a number that the optics groups hold."""
        return np.asarray([value(group) for group in self.optics], dtype=np.float32)[self.optics_group]

    def ctf_params(self) -> CTFParams:
        """Collect the CTF of every particle, fields ``(N,)`` float32."""
        return CTFParams(
            defocus_u_angstrom=_tensor(self.defocus_u_angstrom),
            defocus_v_angstrom=_tensor(self.defocus_v_angstrom),
            defocus_angle_deg=_tensor(self.defocus_angle_deg),
            phase_shift_deg=_tensor(self.phase_shift_deg),
            voltage_kv=_tensor(self.per_particle(lambda group: group.voltage_kv)),
            spherical_aberration_mm=_tensor(self.per_particle(lambda group: group.spherical_aberration_mm)),
            amplitude_contrast=_tensor(self.per_particle(lambda group: group.amplitude_contrast)),
            even_aberration=EvenAberration.of(
                torch.tensor(self.optics_group),
                [group.imaging.even_zernike for group in self.optics],
            ),
        )

    def pose(self) -> Pose:
        """Collect the pose of every particle.

        Raises
        ------
        ParticleFormatError
            If the source file held no poses: give a refined file or a file of poses.
        """
        if self.rotation is None:
            raise ParticleFormatError(f"{self.source} holds no poses: give a refined particle file or --poses")
        return Pose(rotation=_tensor(self.rotation), shift_angstrom=_tensor(self.shift_angstrom))


@dataclass(frozen=True, slots=True, eq=False)
class NewPoses:
    """Poses to be written into a copy of a particle file.

    Attributes
    ----------
    source_row
        ``(k,)`` rows of the file, from 0.
    rotation, shift_angstrom
        ``(k, 3, 3)`` RELION matrices and ``(k, 2)`` (x, y) to add to the image.
    """

    source_row: np.ndarray
    rotation: np.ndarray
    shift_angstrom: np.ndarray


_ROW_FIELDS = (
    *("stack", "stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom"),
    *("defocus_angle_deg", "phase_shift_deg", "optics_group", "half_set", "uid", "source_row"),
)


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Make a float32 tensor that owns its memory."""
    return torch.from_numpy(np.array(values, dtype=np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class OpticsColumns:
    """What decides the optics group of each row: ``(N,)`` arrays, and names for `group`.

    Attributes
    ----------
    group
        Number of the source's own group (optics table, exposure group); 0 where it has none.
    names
        What the source calls those groups.
    terms
        Bit mask of the unapplied terms; bit k is ``term_names[k]``.
    imaging
        Of each row; as recorded when ``None``.
    """

    pixel_size_angstrom: np.ndarray
    box_size: np.ndarray
    voltage_kv: np.ndarray
    spherical_aberration_mm: np.ndarray
    amplitude_contrast: np.ndarray
    group: np.ndarray
    names: dict[int, str]
    terms: np.ndarray
    term_names: Sequence[str]
    imaging: Sequence[Imaging] | None = field(default=None, kw_only=True)


def group_optics(columns: OpticsColumns) -> tuple[tuple[OpticsGroup, ...], np.ndarray]:
    """Rows with the same optics share a group; groups keep the source's order, then that of first appearance.

    Returns
    -------
    optics
        One group per distinct combination.
    optics_group
        ``(N,)`` int32 index into it.
    """
    imagings = columns.imaging or [Imaging()] * len(columns.group)
    number = {imaging: place for place, imaging in enumerate(dict.fromkeys(imagings))}
    keys = np.stack(
        [
            np.asarray(values, dtype=np.float64)
            for values in (
                *(columns.group, columns.pixel_size_angstrom, columns.box_size, columns.voltage_kv),
                *(columns.spherical_aberration_mm, columns.amplitude_contrast, columns.terms),
                [number[imaging] for imaging in imagings],
            )
        ],
        axis=1,
    )
    distinct, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.lexsort((first, distinct[:, 0]))
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    taken: set[str] = set()
    optics = []
    for position, row in enumerate(distinct[order], start=1):
        name = columns.names.get(int(row[0]), f"opticsGroup{position}")
        name = name if name not in taken else f"{name}_{position}"
        taken.add(name)
        mask = int(row[6])
        terms = tuple(term for bit, term in enumerate(columns.term_names) if mask >> bit & 1)
        microscope = (row[1].item(), int(row[2]), row[3].item(), row[4].item(), row[5].item())
        optics.append(OpticsGroup(name, *microscope, terms, list(number)[int(row[7])]))
    return tuple(optics), rank[inverse.reshape(-1)]


def unapplied_terms(optics: Sequence[OpticsGroup]) -> list[str]:
    """Names of the terms that any of the groups has and the forward model leaves out, sorted."""
    return sorted({term for group in optics for term in group.unapplied_aberrations})


def warn_of_unapplied_terms(source: Path, optics: Sequence[OpticsGroup]) -> None:
    """Say which terms of the source the forward model leaves out, if any."""
    if terms := unapplied_terms(optics):
        warnings.warn(
            f"{source}: not applied: {', '.join(terms)}; the particles are used as if they had none",
            AberrationsNotAppliedWarning,
            stacklevel=3,
        )


def refuse_rows_beyond(source: Path, particles: int, source_row: np.ndarray) -> None:
    """Refuse rows ``(k,)`` that a source file of so many particles does not have.

    Raises
    ------
    ParticleFormatError
        If there is any: give the file that the particles were read from.
    """
    if source_row.size and source_row.max() >= particles:
        raise ParticleFormatError(
            f"{source}: has {particles} particles, and row {int(source_row.max()) + 1} is asked for; give the file "
            "that the particles were read from"
        )
