"""What a particle store holds beside the images, and how its rows are cut into chunks and shards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cryoformer_dist.errors import StoreError
from cryoformer_dist.physics.aberrations import EvenAberration
from cryoformer_dist.physics.ctf import CTF_NUMBERS, CTFParams, NoiseFilter
from cryoformer_dist.physics.pose import Pose

DEFAULT_CHUNK_ROWS = 64
DEFAULT_SHARD_ROWS = 512

# One row of every per-particle array: name -> (dtype, shape of one row).
COLUMNS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "rotation": ("float32", (3, 3)),
    "shift_angstrom": ("float32", (2,)),
    "defocus_u_angstrom": ("float32", ()),
    "defocus_v_angstrom": ("float32", ()),
    "defocus_angle_deg": ("float32", ()),
    "phase_shift_deg": ("float32", ()),
    "optics_group": ("int32", ()),
    "half_set": ("int8", ()),
    "source_row": ("int64", ()),
    "uid": ("uint64", ()),
}
# All of them of one particle side by side, as they are on disk.
PACKED_ROW = np.dtype([(name, np.dtype(dtype).newbyteorder("<"), shape) for name, (dtype, shape) in COLUMNS.items()])


def pack_columns(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Every name in ``COLUMNS``, each `(particles, ...)`, as bytes `(particles, bytes of a row)`."""
    packed = np.empty(len(columns["source_row"]), PACKED_ROW)
    for name in COLUMNS:
        packed[name] = columns[name]
    return packed.view(np.uint8).reshape(len(packed), PACKED_ROW.itemsize)


def unpack_columns(packed: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What `pack_columns` took, each column by itself in memory."""
    rows = np.ascontiguousarray(packed).view(PACKED_ROW)[:, 0]
    return {name: rows[name].astype(dtype) for name, (dtype, _) in COLUMNS.items()}


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """How many rows a store has and how they are cut: chunks are checksummed, shards are files."""

    particles: int
    box_size: int
    shard_rows: int = DEFAULT_SHARD_ROWS
    chunk_rows: int = DEFAULT_CHUNK_ROWS

    @property
    def shards(self) -> int:
        """Number of files that hold the images."""
        return -(-self.particles // self.shard_rows)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First row of a shard and one past its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.particles)


@dataclass(frozen=True, slots=True)
class StoredParticles:
    """Everything about the particles but their pixels, one row per store row, in memory.

    Parameters
    ----------
    rotation
        `(particles, 3, 3)` RELION matrices A; identities when the source had no poses.
    shift_angstrom
        `(particles, 2)` what is added to the image to centre it.
    pixel_size_angstrom
        `(particles,)` of the stored image.
    half_set
        `(particles,)` 1 or 2, 0 when unknown.
    source_row
        `(particles,)` row in the source file.
    noise_filter
        What whitened the images; ``None`` where their noise is white by itself.
    even_aberration
        Of the microscope, beyond defocus and spherical aberration; ``None`` where there is none.
    """

    rotation: NDArray[np.float32]
    shift_angstrom: NDArray[np.float32]
    defocus_u_angstrom: NDArray[np.float32]
    defocus_v_angstrom: NDArray[np.float32]
    defocus_angle_deg: NDArray[np.float32]
    phase_shift_deg: NDArray[np.float32]
    optics_group: NDArray[np.int32]
    half_set: NDArray[np.int8]
    source_row: NDArray[np.int64]
    uid: NDArray[np.uint64]
    voltage_kv: NDArray[np.float32]
    spherical_aberration_mm: NDArray[np.float32]
    amplitude_contrast: NDArray[np.float32]
    pixel_size_angstrom: NDArray[np.float32]
    has_poses: bool = True
    noise_filter: NoiseFilter | None = None
    even_aberration: EvenAberration | None = None

    def __len__(self) -> int:
        return len(self.source_row)

    def pose(self, rows: NDArray[np.integer[Any]] | slice = slice(None)) -> Pose:
        """Poses of some rows as tensors.

        Raises
        ------
        StoreError
            If the store was converted from a file without poses.
        """
        if not self.has_poses:
            raise StoreError(
                "this store has no poses: convert again from a refined file, or give the poses with --poses"
            )
        return Pose(
            rotation=torch.from_numpy(self.rotation[rows].copy()),
            shift_angstrom=torch.from_numpy(self.shift_angstrom[rows].copy()),
        )

    def with_pose(self, rows: NDArray[np.integer[Any]], pose: Pose) -> "StoredParticles":
        """The same particles, some rows at other poses."""
        rotation, shift = self.rotation.copy(), self.shift_angstrom.copy()
        rotation[rows], shift[rows] = pose.rotation.numpy(), pose.shift_angstrom.numpy()
        return replace(self, rotation=rotation, shift_angstrom=shift)

    def ctf(self, rows: NDArray[np.integer[Any]] | slice = slice(None)) -> CTFParams:
        """CTF parameters of some rows as tensors, with what whitened their images."""
        ctf = CTFParams(*(torch.from_numpy(getattr(self, name)[rows].copy()) for name in CTF_NUMBERS))
        noise, even = self.noise_filter, self.even_aberration
        if noise is None and even is None:
            return ctf
        chosen = rows if isinstance(rows, slice) else torch.tensor(rows)
        return replace(
            ctf,
            noise_filter=None if noise is None else noise[chosen],
            even_aberration=None if even is None else even[chosen],
        )
