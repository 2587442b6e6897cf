"""The particle store: a sharded, checksummed Zarr v3 group of normalised images and their metadata.

The images lie in many files, one per shard; everything else about the particles in one, read as a whole. Store rows
are a seeded random permutation of the source rows, so any shard is a fair sample of the set and shuffling shards, then
rows inside shards, is a global shuffle; ``source_row`` maps back. The mark that the store is complete is written last.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from cryoformer_dist.data.store_attributes import (
    SCHEMA_VERSION,
    StoreAttributes,
    attributes_to_write,
    read_attributes,
)
from cryoformer_dist.data.store_seals import (
    REMEDY,
    ArraySeal,
    name_rows,
    read_seals,
    require_place,
    require_shard,
    shard_file,
    write_seals,
)
from cryoformer_dist.data.stored_particles import (
    PACKED_ROW,
    StoredParticles,
    StoreLayout,
    pack_columns,
    unpack_columns,
)
from cryoformer_dist.errors import StoreError, StoreNotFoundError
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.progress import Progress
from cryoformer_dist.storage.places import OBJECT_STORE_OPTIONS, Place, in_reach, is_refused, place_at, synchronise

PROGRESS_FOLDER = ".conversion"
_ARRAYS = ("images", "particles")
_SEALS, _GROUP = "seals", {"zarr_format": 3, "node_type": "group"}
# Rows per checksum of the metadata: 1.3 MB.
_PARTICLE_ROWS = 16_384


def _open_group(path: Place, mode: str) -> Any:
    """Zarr group with few threads: data loaders and Ray tasks bring their own parallelism."""
    zarr.config.set({"threading.max_workers": 2, "async.concurrency": 4})
    # Rows that happen to equal the fill value must be on disk too: an absent file means damage.
    zarr.config.set({"array.write_empty_chunks": True})
    place, options = (path, None) if isinstance(path, Path) else (str(path), OBJECT_STORE_OPTIONS)
    return zarr.open_group(place, mode=mode, zarr_format=3, use_consolidated=False, storage_options=options)


def create_store(path: Place, layout: StoreLayout) -> None:
    """Write the frame of a store, marked unfinished; what is there already is kept.

    Raises
    ------
    StoreError
        If what is there is damaged.
    """
    try:
        _create_frame(path, layout)
    # Zarr's parsers of metadata have no error in common.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{path}: the unfinished conversion is damaged ({error}); give --overwrite to begin it anew"
        ) from error


def _create_frame(path: Place, layout: StoreLayout) -> None:
    group = _open_group(path, "a")
    if "schema_version" not in group.attrs:
        group.attrs.put({"schema_version": SCHEMA_VERSION, "complete": False})
    box, rows = layout.box_size, min(_PARTICLE_ROWS, layout.particles)
    _create_array(group, "images", "float16", (layout.particles, box, box), layout.chunk_rows, layout.shard_rows)
    whole = -(-layout.particles // rows) * rows
    _create_array(group, "particles", "uint8", (layout.particles, PACKED_ROW.itemsize), rows, whole)


def _create_array(group: Any, name: str, dtype: str, shape: tuple[int, ...], chunk_rows: int, shard_rows: int) -> None:
    if name in group:
        if (group[name].shape, group[name].shards, str(group[name].dtype)) != (shape, (shard_rows, *shape[1:]), dtype):
            raise ValueError(f"array '{name}' has another form")
        return
    group.create_array(
        name,
        shape=shape,
        chunks=(chunk_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
    )


def write_shard(path: Place, shard: int, images: NDArray[np.float16]) -> None:
    """Write the images of one shard and wait until the disk has them."""
    _write_file(path, _open_group(path, "r+")["images"], shard, images)


def _write_file(path: Place, array: Any, shard: int, values: NDArray[Any]) -> None:
    """Write one shard of an array, whole, and wait until the disk has it."""
    file = shard_file(path, array, shard)
    if isinstance(file, Path):
        # What a crash left of it; an object is whole or not there.
        file.unlink(missing_ok=True)
    start = shard * array.shards[0]
    array[start : start + len(values)] = values
    for target in (file, file.parent):
        synchronise(target)


def complete_store(path: Place, attributes: StoreAttributes, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write what is known of the particles, then the attributes and, in the same atomic step, the mark of a store.

    Parameters
    ----------
    columns
        Every name in ``COLUMNS``, each with all rows.

    Raises
    ------
    StoreError
        If a shard is missing.
    """
    group = _open_group(path, "r+")
    images = group["images"]
    for shard in range(-(-images.shape[0] // images.shards[0])):
        require_shard(path, "images", images, shard)
    _write_file(path, group["particles"], 0, pack_columns(columns))
    seals = write_seals({name: ArraySeal.of(path, group[name]) for name in _ARRAYS})
    if isinstance(path, Path):
        for leftover in path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)
    group.attrs.put({_SEALS: seals, **attributes_to_write(attributes, images.shape[0])})
    for target in (path / "zarr.json", path):
        synchronise(target)


def is_store_directory(path: Place) -> bool:
    """Whether a directory was begun by this program, finished or not, and so may be replaced by it."""
    if (path / PROGRESS_FOLDER).is_dir():
        return True
    return "schema_version" in _read_group(path).get("attributes", {})


def is_complete(path: Place) -> bool:
    """Whether a directory holds a finished store."""
    return _read_group(path).get("attributes", {}).get("complete") is True


def _read_group(path: Place) -> dict[str, Any]:
    """What a group's own file says; nothing where it cannot be read or is not as Zarr writes it."""
    try:
        content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    as_written = isinstance(content, dict) and isinstance(content.get("attributes"), dict)
    return content if as_written and content.items() >= _GROUP.items() else {}


class ParticleStore:
    """A finished particle store, opened for reading; opening reads the attributes only.

    Parameters
    ----------
    path
        Directory of the store; use ``ParticleStore.open``, which checks it.
    """

    def __init__(self, path: Place, group: Any):
        self.path = path
        content = dict(group.attrs)
        self.attributes = read_attributes(content, path)
        self._seals = read_seals(path, content.get(_SEALS), _ARRAYS)
        self._arrays = {name: group[name] for name in _ARRAYS}
        self._images = self._arrays["images"]
        self._moved: StoredParticles | None = None
        # Shards whose chunks are known to be in their places.
        self._in_place: set[tuple[str, int]] = set()
        if content.get("fingerprint") != self.fingerprint:
            raise StoreError(
                f"{path / 'zarr.json'}: the attributes are not those that were written (fingerprint "
                f"{self.fingerprint[:12]}, recorded {str(content.get('fingerprint'))[:12]}); {REMEDY}"
            )

    @classmethod
    def open(cls, path: str | Place) -> Self:
        """Open a store.

        Parameters
        ----------
        path
            A directory, or ``s3://bucket/prefix``.

        Raises
        ------
        StorageError
            If the object store cannot be reached, or refuses.
        StoreNotFoundError
            If there is nothing at ``path``.
        StoreError
            If it is not a particle store, its conversion is unfinished, its attributes are of another schema, or what
            it says of itself is damaged.
        """
        path = place_at(path)
        with in_reach(path):
            return cls(path, cls._open_checked(path))

    @classmethod
    def _open_checked(cls, path: Place) -> Any:
        """The group of a finished store."""
        if not path.exists():
            raise StoreNotFoundError(f"{path}: no such particle store; make it with 'cryoformer-dist convert'")
        if not is_store_directory(path):
            raise StoreError(f"{path}: not a particle store; make one with 'cryoformer-dist convert'")
        if not is_complete(path):
            raise StoreError(f"{path}: conversion unfinished: run the same convert command again to continue")
        return _open_group(path, "r")

    def __reduce__(self) -> tuple[Any, ...]:
        # What the files hold is read again where the store arrives; only other poses travel.
        moved = None if self._moved is None else {"_moved": self._moved}
        return type(self).open, (str(self.path),), moved

    def __len__(self) -> int:
        return int(self._images.shape[0])

    @property
    def box_size(self) -> int:
        """Side of the stored images in pixels."""
        return int(self._images.shape[1])

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the stored images of the first optics group."""
        return self.attributes.pixel_size_angstrom

    @property
    def shard_size(self) -> int:
        """Rows per shard; the last shard may hold fewer."""
        return int(self._images.shards[0])

    @property
    def chunk_size(self) -> int:
        """Rows per checksummed chunk."""
        return int(self._images.chunks[0])

    @property
    def has_poses(self) -> bool:
        """Whether the source file carried poses."""
        return self.attributes.has_poses

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the attributes and the number of particles; the places of the sources do not count."""
        return self.attributes.fingerprint(len(self))

    def read_images(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Read images in the order asked for.

        Parameters
        ----------
        rows
            `(k,)` store rows, in any order, repeats allowed; rows of one shard are read fastest.

        Returns
        -------
        `(k, box_size, box_size)` float16.

        Raises
        ------
        StoreError
            If a row does not exist, or a chunk is damaged or absent: array, chunk, rows and file are named.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        absent = rows[(rows < 0) | (rows >= len(self))]
        if absent.size:
            raise StoreError(f"{self.path}: row {absent[0]} asked for, rows are 0 .. {len(self) - 1}")
        images = np.empty((rows.size, self.box_size, self.box_size), dtype=np.float16)
        chunk_of_row = rows // self.chunk_size
        for first, last in _split_into_runs(np.unique(chunk_of_row), self.shard_size // self.chunk_size):
            wanted = np.flatnonzero((chunk_of_row >= first) & (chunk_of_row <= last))
            start = first * self.chunk_size
            block = self._read("images", start, min((last + 1) * self.chunk_size, len(self)))
            images[wanted] = block[rows[wanted] - start]
        return images

    def particles(self) -> StoredParticles:
        """All that is known of the particles (about 100 bytes each), read once and not to be written to."""
        return self._as_stored if self._moved is None else self._moved

    @cached_property
    def _as_stored(self) -> StoredParticles:
        columns = unpack_columns(self._read("particles", 0, len(self)))
        group = columns["optics_group"]
        self._refuse_impossible_optics()
        names = ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "pixel_size_angstrom")
        optics = {
            name: np.array([getattr(entry, name) for entry in self.attributes.optics], dtype=np.float32)[group]
            for name in names
        }
        for values in (*columns.values(), *optics.values()):
            values.flags.writeable = False
        return StoredParticles(
            **columns,
            **optics,
            has_poses=self.has_poses,
            noise_filter=self.attributes.noise_filter(group),
            even_aberration=self.attributes.even_aberration(group),
        )

    def _refuse_impossible_optics(self) -> None:
        for number, entry in enumerate(self.attributes.optics):
            if not 0 <= entry.amplitude_contrast < 1:
                raise StoreError(
                    f"{self.path}: optics group {number} has an amplitude contrast of {entry.amplitude_contrast:g}; it "
                    "must lie in [0, 1): correct the optics table of the particle file and convert again"
                )

    def with_pose(self, rows: NDArray[np.integer[Any]], pose: Pose) -> "ParticleStore":
        """The same images, some of them at other poses; the files stay as they are."""
        other = copy.copy(self)
        other._moved = self.particles().with_pose(rows, pose)
        return other

    def verify(self, progress: Progress | None = None) -> None:
        """Read every chunk of every array back through its checksum.

        Parameters
        ----------
        progress
            Called with (shard files read, shard files in all).

        Raises
        ------
        StoreError
            Naming array, chunk, rows and file of the first damaged or absent chunk.
        """
        shards = range(-(-len(self) // self.shard_size))
        for shard in shards:
            require_shard(self.path, "images", self._images, shard)
        for shard in shards:
            start = shard * self.shard_size
            self._read("images", start, min(start + self.shard_size, len(self)))
            if progress is not None:
                progress(shard + 1, len(shards) + 1)
        self._read("particles", 0, len(self))
        if progress is not None:
            progress(len(shards) + 1, len(shards) + 1)

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` .. ``stop`` of one shard of an array, or a StoreError that names the damage."""
        array = self._arrays[name]
        shard = start // array.shards[0]
        with in_reach(self.path):
            require_shard(self.path, name, array, shard)
            if (name, shard) not in self._in_place:
                require_place(self.path, array, shard, self._seals[name])
                self._in_place.add((name, shard))
            try:
                return np.asarray(array[start:stop])
            except (ValueError, OSError) as error:
                if is_refused(error):
                    raise
                chunk, reason = self._first_damaged_chunk(array, start, stop, error)
                raise StoreError(
                    f"{self.path}: array '{name}', chunk {chunk} ({name_rows(array, chunk)}) is damaged, file "
                    f"{shard_file(self.path, array, shard)}: {reason}; {REMEDY}"
                ) from error

    def _first_damaged_chunk(self, array: Any, start: int, stop: int, error: Exception) -> tuple[int, Exception]:
        """Find the first chunk in a damaged range that cannot be read by itself."""
        size = array.chunks[0]
        for chunk in range(start // size, -(-stop // size)):
            try:
                array[chunk * size : min((chunk + 1) * size, len(self))]
            except (ValueError, OSError) as reason:
                return chunk, reason
        return start // size, error


def _split_into_runs(chunks: NDArray[np.int64], chunks_per_shard: int) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbouring chunks inside one shard."""
    breaks = np.flatnonzero((np.diff(chunks) > 1) | (chunks[1:] % chunks_per_shard == 0)) + 1
    for run in np.split(chunks, breaks):
        if run.size:
            yield int(run[0]), int(run[-1])
