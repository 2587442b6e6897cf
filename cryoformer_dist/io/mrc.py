"""MRC files: stacks of images and volumes, in and out (the only module that imports mrcfile)."""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from cryoformer_dist.errors import ParticleFormatError, PixelSizeConflictWarning
from cryoformer_dist.io.limits import PIXEL_SIZE
from cryoformer_dist.io.mrc_header import (
    HEADER_BYTES,
    IMAGE_MODES,
    OTHER_MODES,
    MRCHeader,
    check_length,
    compression_module,
    refuse_other_kinds,
)
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.storage.places import replaced

# Two pixel sizes closer than this relative difference are the same number, rounded by somebody.
PIXEL_SIZE_TOLERANCE = 1e-3
_MAX_LABELS, _LABEL_BYTES = 10, 80
_DEFAULT_LABEL = "cryoformer-dist"


def read_header(path: Path) -> MRCHeader:
    """Read a header, plain or compressed, of either byte order, with or without the ``MAP`` mark.

    Raises
    ------
    ParticleFormatError
        If the file is missing, is no MRC file, or holds complex, packed or 4D data.
    """
    with _quietly(path):
        refuse_other_kinds(path)
    with _quietly(path), mrcfile.open(path, permissive=True, header_only=True) as opened:
        # All at once: each field that is asked of mrcfile's record by name takes as long as opening the file.
        fields = dict(zip(opened.header.dtype.names, opened.header.item(), strict=True))
    if min(fields["nx"], fields["ny"], fields["nz"]) <= 0 or fields["nsymbt"] < 0:
        raise ParticleFormatError(
            f"{path}: not an MRC file (its header would mean {fields['nx']} x {fields['ny']} x "
            f"{fields['nz']} pixels); check the file"
        )
    if fields["mode"] not in IMAGE_MODES:
        kind = OTHER_MODES.get(fields["mode"], "unknown")
        raise ParticleFormatError(
            f"{path}: MRC mode {fields['mode']} ({kind}) holds no real images; convert it to mode 2 "
            "(float32) or 12 (float16)"
        )
    if fields["ispg"] >= 401:
        raise ParticleFormatError(
            f"{path}: a stack of volumes (space group {fields['ispg']}); split it into single maps"
        )
    intervals = (fields["mx"], fields["my"], fields["mz"])
    x, y, z = (_voxel_size(length, count) for length, count in zip(fields["cella"], intervals, strict=True))
    return MRCHeader(
        path=path,
        sections=fields["nz"],
        rows=fields["ny"],
        columns=fields["nx"],
        mode=fields["mode"],
        voxel_size_angstrom=(x, y, z),
        axes=(fields["mapc"], fields["mapr"], fields["maps"]),
        data_offset=HEADER_BYTES + fields["nsymbt"],
    )


class ImageStack:
    """Square images of one file, memory-mapped unless compressed (then held in memory).

    Attributes
    ----------
    header
        What the file says of itself.
    """

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        if self.header.rows != self.header.columns:
            raise ParticleFormatError(
                f"{path}: images of {self.header.rows} x {self.header.columns} pixels are not square; "
                "extract square particles"
            )
        self._images = _stored_array(self.header)

    def __len__(self) -> int:
        return self.header.sections

    @property
    def box_size(self) -> int:
        """Side of the images in pixels."""
        return self.header.columns

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the header; 0 when unset."""
        return self.header.pixel_size_angstrom

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images ``(k, box, box)`` float32 in the order asked for.

        Raises
        ------
        IndexError
            If an index is not in ``0 .. len - 1``.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.header.path} holds images 0 to {len(self) - 1}; asked for {wanted.tolist()[:8]}")
        return np.ascontiguousarray(self._images[wanted], dtype=np.float32)


def open_stack(path: Path) -> ImageStack:
    """Open ``.mrcs`` or ``.mrc``, plain or compressed by gzip or bzip2.

    Raises
    ------
    ParticleFormatError
        If it is missing, no MRC file, truncated, or its images are not square.
    """
    return ImageStack(path)


@contextmanager
def new_stack(path: Path, pixel_size_angstrom: float, labels: Sequence[str] = ()) -> Iterator["StackWriter"]:
    """A float32 ``.mrcs`` to append images to; the file gets its name only when all went well.

    Parameters
    ----------
    path
        The stack to write; one that exists is replaced.
    pixel_size_angstrom
        For the header.
    labels
        Provenance, at most 10 lines of 80 characters (longer ones are cut).

    Raises
    ------
    ValueError
        If no image was appended.
    """
    with replaced(path) as beside:
        writer = StackWriter(path, beside, pixel_size_angstrom, labels)
        yield writer
        writer.finish()


class StackWriter:
    """Writes what is appended to a stack beside the one it is to become; made by `new_stack`."""

    def __init__(self, path: Path, beside: Path, pixel_size_angstrom: float, labels: Sequence[str]) -> None:
        self.path, self._beside = path, beside
        self.count = 0
        self._pixel_size_angstrom = pixel_size_angstrom
        self._labels = labels
        self._box: tuple[int, ...] = ()
        self._sum = self._sum_of_squares = 0.0
        self._least, self._most = np.inf, -np.inf

    def append(self, images: np.ndarray) -> None:
        """Add images ``(k, box, box)``.

        Raises
        ------
        ValueError
            If they are not square, of another box than before, or not finite.
        """
        block = np.ascontiguousarray(images, dtype="<f4")
        if block.ndim != 3 or block.shape[1] != block.shape[2] or (self._box and block.shape[1:] != self._box):
            raise ValueError(f"{self.path}: images of shape {block.shape} do not extend a stack of {self._box} images")
        if not np.isfinite(block).all():
            raise ValueError(f"{self.path}: images {self.count} .. {self.count + len(block) - 1} hold NaN or infinity")
        if not len(block):
            return
        if not self._box:
            self._box = block.shape[1:]
            self._create(block[:1])
        with self._beside.open("r+b") as handle:
            handle.seek(HEADER_BYTES + self.count * block[0].nbytes)
            handle.write(block.tobytes())
        self.count += len(block)
        self._sum += block.sum(dtype=np.float64)
        self._sum_of_squares += np.square(block, dtype=np.float64).sum()
        self._least, self._most = min(self._least, float(block.min())), max(self._most, float(block.max()))

    def finish(self) -> None:
        """Bring the header up to date."""
        if self.count == 0:
            raise ValueError(f"{self.path}: no image was appended; an empty stack is not written")
        pixels = self.count * self._box[0] * self._box[1]
        mean = self._sum / pixels
        # mrcfile says that the file is longer than its header promises: the header is what we are here to
        # correct.
        with _quietly(self._beside), mrcfile.mmap(self._beside, mode="r+", permissive=True) as opened:
            opened.header.nz = self.count
            opened.header.dmin, opened.header.dmax = self._least, self._most
            opened.header.dmean = mean
            opened.header.rms = max(self._sum_of_squares / pixels - mean**2, 0.0) ** 0.5

    def _create(self, first: np.ndarray) -> None:
        with mrcfile.new(self._beside, overwrite=True) as created:
            created.set_data(first)
            created.set_image_stack()
            created.voxel_size = self._pixel_size_angstrom
            _set_labels(created.header, self._labels)


def read_volume(path: Path) -> Volume:
    """Read a cubic map as ``[z, y, x]``, whatever its axis order; its place in space is not kept.

    Parameters
    ----------
    path
        ``.mrc`` or ``.map``, plain or compressed.

    Raises
    ------
    ParticleFormatError
        If the map is not cubic, has no equal voxel sides or such that cannot be, is truncated, or holds a voxel that is
        not finite.

    Warns
    -----
    PixelSizeConflictWarning
        If the header gives no voxel size: 1 angstrom is taken.
    """
    header = read_header(path)
    stored = _stored_array(header)
    columns_rows_sections = header.axes if sorted(header.axes) == [1, 2, 3] else (1, 2, 3)
    sections_rows_columns = columns_rows_sections[::-1]
    voxels = stored.transpose([sections_rows_columns.index(axis) for axis in (3, 2, 1)])
    if len(set(voxels.shape)) != 1:
        raise ParticleFormatError(
            f"{path}: the map is {' x '.join(map(str, voxels.shape))} voxels (z, y, x), not a cube; pad or "
            "resample it to a cubic box"
        )
    densities = np.array(voxels, dtype=np.float32, order="C")
    if not np.isfinite(densities).all():
        z, y, x = np.argwhere(~np.isfinite(densities))[0].tolist()
        raise ParticleFormatError(
            f"{path}: {int((~np.isfinite(densities)).sum())} voxels are not finite, the first at x {x}, y {y}, z {z}; "
            "write the map again without NaN and infinity"
        )
    return Volume(torch.from_numpy(densities), _cubic_voxel_size(header))


def write_volume(path: Path, volume: Volume, labels: Sequence[str] = ()) -> None:
    """Write a map with voxel size, provenance, and its centre voxel ``box // 2`` at the origin of space.

    Raises
    ------
    ValueError
        If a voxel is not finite.
    """
    voxels = volume.voxels.detach().cpu().numpy().astype("<f4")
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path}: the volume holds {int((~np.isfinite(voxels)).sum())} voxels that are not finite")
    with replaced(path) as beside, mrcfile.new(beside, overwrite=True) as created:
        created.set_data(voxels)
        created.set_volume()
        created.voxel_size = volume.voxel_size_angstrom
        corner = [-(length // 2) * volume.voxel_size_angstrom for length in reversed(voxels.shape)]
        created.header.origin = tuple(corner)
        _set_labels(created.header, labels)


@contextmanager
def _quietly(path: Path) -> Iterator[None]:
    """Odd headers are judged here, not by mrcfile's warnings; its errors become ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except FileNotFoundError:
        raise ParticleFormatError(f"{path}: no such file; check the path or give --datadir") from None
    except ParticleFormatError:
        raise
    except (OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        raise ParticleFormatError(f"{path}: cannot be read as MRC ({error}); check or copy the file again") from error


def _stored_array(header: MRCHeader) -> np.ndarray:
    """Pixels ``(sections, rows, columns)`` as stored: a memory map, or an array when compressed."""
    check_length(header)
    opener: Any = mrcfile.open if compression_module(header.path) else mrcfile.mmap
    with _quietly(header.path), opener(header.path, permissive=True) as opened:
        return np.asarray(opened.data).reshape(header.sections, header.rows, header.columns)


def _voxel_size(length: float, intervals: int) -> float:
    size = length / intervals if intervals > 0 else 0.0
    return size if np.isfinite(size) and size > 0 else 0.0


def _cubic_voxel_size(header: MRCHeader) -> float:
    x, y, z = header.voxel_size_angstrom
    if max(x, y, z) == 0:
        warnings.warn(
            f"{header.path}: the header gives no voxel size; 1 A is taken: write it into the header",
            PixelSizeConflictWarning,
            stacklevel=3,
        )
        return 1.0
    if max(x, y, z) - min(x, y, z) > PIXEL_SIZE_TOLERANCE * max(x, y, z):
        raise ParticleFormatError(
            f"{header.path}: voxel sides {x:.5g}, {y:.5g}, {z:.5g} A differ; resample the map to cubic voxels"
        )
    if not PIXEL_SIZE.allows(np.asarray(x)):
        raise ParticleFormatError(
            f"{header.path}: the header says {x:g} A per voxel, which is not {PIXEL_SIZE}; correct it"
        )
    return x


def _set_labels(header: Any, labels: Sequence[str]) -> None:
    """Ours instead of mrcfile's own dated line, so that equal content gives equal bytes."""
    lines = [line.encode("ascii", "replace")[:_LABEL_BYTES] for line in (labels or (_DEFAULT_LABEL,))][:_MAX_LABELS]
    header.label[:] = b""
    header.label[: len(lines)] = lines
    header.nlabl = len(lines)
