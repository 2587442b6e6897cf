"""What an MRC header promises, and whether the file keeps it."""

import bz2
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cryoformer_dist.errors import ParticleFormatError

HEADER_BYTES = 1024
IMAGE_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
OTHER_MODES = {3: "complex int16", 4: "complex64", 101: "4-bit"}


@dataclass(frozen=True, slots=True)
class MRCHeader:
    """What the header promises.

    Attributes
    ----------
    path
        The file.
    sections, rows, columns
        Lengths of the stored axes, slowest first.
    mode
        MRC mode: 0 int8, 1 int16, 2 float32, 6 uint16, 12 float16.
    voxel_size_angstrom
        ``(x, y, z)``; 0 where unset.
    axes
        ``(mapc, mapr, maps)``: which of x=1, y=2, z=3 the columns, rows and sections run along.
    data_offset
        Bytes before the first pixel (1024 and the extended header).
    """

    path: Path
    sections: int
    rows: int
    columns: int
    mode: int
    voxel_size_angstrom: tuple[float, float, float]
    axes: tuple[int, int, int]
    data_offset: int

    @property
    def expected_bytes(self) -> int:
        """Least length of the (uncompressed) file."""
        item = np.dtype(IMAGE_MODES[self.mode]).itemsize
        return self.data_offset + self.sections * self.rows * self.columns * item

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size along x; 0 when unset."""
        return self.voxel_size_angstrom[0]


def check_length(header: MRCHeader) -> None:
    """Every pixel that the header promises is on disk (a compressed file is decompressed once to count).

    Raises
    ------
    ParticleFormatError
        If the file is shorter: copy it again.
    """
    actual = _available_bytes(header)
    extended = header.data_offset - HEADER_BYTES
    if extended and actual == header.expected_bytes - extended:
        raise ParticleFormatError(
            f"{header.path}: the header promises an extended header of {extended} bytes that is not there; all images "
            "are: set nsymbt (bytes 93 to 96) to 0, or write the stack again"
        )
    if actual < header.expected_bytes:
        raise ParticleFormatError(
            f"{header.path}: truncated, the header promises {header.expected_bytes} bytes ({header.sections} "
            f"x {header.rows} x {header.columns}, mode {header.mode}) and the file has {actual}; copy or "
            "export it again"
        )


def refuse_other_kinds(path: Path) -> None:
    """Tell a file that cannot be MRC by its first bytes, before its numbers are taken for lengths.

    Raises
    ------
    ParticleFormatError
        If the mode is none that MRC knows, in either byte order, or the extended header is longer than the file.
    """
    if compression_module(path) is not None:
        return
    with path.open("rb") as handle:
        start = handle.read(HEADER_BYTES)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    known = [order for order in orders if int.from_bytes(start[12:16], order) in (*IMAGE_MODES, *OTHER_MODES)]
    if len(start) < HEADER_BYTES or not known:
        raise ParticleFormatError(f"{path}: not an MRC file (no valid header); check the file")
    extended, room = int.from_bytes(start[92:96], known[0], signed=True), path.stat().st_size - HEADER_BYTES
    if extended > room:
        raise ParticleFormatError(
            f"{path}: its header promises an extended header of {extended} bytes, and {room} bytes follow; copy the "
            "file again"
        )


def compression_module(path: Path) -> Any:
    """Pick the module that decompresses the file, or None; told by its first bytes, as mrcfile does."""
    with path.open("rb") as handle:
        start = handle.read(212)
    if start[208:212] == b"MAP ":
        return None
    return gzip if start[:2] == b"\x1f\x8b" else bz2 if start[:3] == b"BZh" else None


def _available_bytes(header: MRCHeader) -> int:
    """Length of the file, decompressed as far as its header promises: a small file may grow without end."""
    module = compression_module(header.path)
    if module is None:
        return header.path.stat().st_size
    count = 0
    with module.open(header.path, "rb") as handle:
        try:
            while count < header.expected_bytes and (piece := handle.read(1 << 20)):
                count += len(piece)
        except EOFError:
            # The compressed stream itself is cut: what came before it is what there is.
            return min(count, header.expected_bytes - 1)
        except (OSError, zlib.error) as error:
            raise ParticleFormatError(f"{header.path}: damaged compressed file ({error}); copy it again") from error
    return count
