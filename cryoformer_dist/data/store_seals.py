"""What ties every part of a finished particle store to its place in it.

Zarr guards each chunk by a checksum of its own, which says nothing of where the chunk belongs, and reads an array by
metadata that nothing guards. So the store's attributes hold the checksum of every chunk, in order, and of each array's
metadata. A chunk's checksum is already on disk, in the four bytes after it: comparing these costs no arithmetic.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.errors import StoreError
from cryoformer_dist.storage.places import Place, in_reach, read_pieces

REMEDY = "copy the store again from where it was whole, or convert the particles again"
# Of the checksum that follows a chunk.
_SUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class ArraySeal:
    """What an array was when its store was completed.

    Attributes
    ----------
    metadata_crc32
        Of its ``zarr.json``.
    chunk_crc32c
        `(chunks,)` of each chunk as it is on disk.
    """

    metadata_crc32: int
    chunk_crc32c: NDArray[np.uint32]

    @staticmethod
    def of(path: Place, array: Any) -> "ArraySeal":
        """Seal of an array all of whose shards are on disk."""
        shards = range(-(-array.shape[0] // array.shards[0]))
        sums = [read_sums(path, array, shard) for shard in shards]
        return ArraySeal(_sum_metadata(path, array.basename), np.concatenate(sums))


def shard_file(path: Place, array: Any, shard: int) -> Place:
    """File that holds one shard of an array."""
    key = array.metadata.encode_chunk_key((shard,) + (0,) * (array.ndim - 1))
    file: Place = path / array.basename / str(key)
    return file


def chunk_bytes(array: Any) -> int:
    """Bytes of a chunk on disk, with its checksum."""
    return int(np.prod(array.chunks)) * int(array.dtype.itemsize) + _SUM_BYTES


def chunks_in(array: Any, shard: int) -> range:
    """Numbers of the chunks that a shard holds."""
    per_shard, all_chunks = array.shards[0] // array.chunks[0], -(-array.shape[0] // array.chunks[0])
    return range(shard * per_shard, min((shard + 1) * per_shard, all_chunks))


def require_shard(path: Place, name: str, array: Any, shard: int) -> None:
    """See that a shard file has its full length: zarr silently reads an absent or empty one as zeros."""
    file = shard_file(path, array, shard)
    start, per_shard = shard * array.shards[0], array.shards[0] // array.chunks[0]
    stop = min(start + array.shards[0], array.shape[0])
    # The index holds 16 bytes a chunk and its own checksum.
    expected = len(chunks_in(array, shard)) * chunk_bytes(array) + 16 * per_shard + _SUM_BYTES
    try:
        with in_reach(path):
            size = int(file.stat().st_size)
    except FileNotFoundError:
        size = None
    if size != expected:
        problem = "is missing" if size is None else f"has {size} bytes instead of {expected}"
        rows = f"chunk {shard * per_shard} on, rows {start} .. {stop - 1}"
        raise StoreError(f"{path}: array '{name}', shard {shard} ({rows}) {problem}, file {file}; {REMEDY}")


def require_place(path: Place, array: Any, shard: int, seal: ArraySeal) -> None:
    """See that the chunks of a whole shard are those that were written there, and no others.

    Raises
    ------
    StoreError
        Naming array, chunk, rows and file of the first that is not.
    """
    chunks = chunks_in(array, shard)
    written, found = seal.chunk_crc32c[chunks.start : chunks.stop], read_sums(path, array, shard)
    if not np.array_equal(found, written):
        chunk = chunks[int(np.argmax(found != written))] if len(found) == len(written) else chunks[0]
        raise StoreError(
            f"{path}: array '{array.basename}', chunk {chunk} ({name_rows(array, chunk)}) is not the one that was "
            f"written there, file {shard_file(path, array, shard)}; {REMEDY}"
        )


def name_rows(array: Any, chunk: int) -> str:
    """Rows of a chunk, for messages."""
    size = array.chunks[0]
    return f"rows {chunk * size} .. {min((chunk + 1) * size, array.shape[0]) - 1}"


def read_sums(path: Place, array: Any, shard: int) -> NDArray[np.uint32]:
    """Checksums of a shard's chunks, as they are on disk; the shard file has its full length."""
    ends = [(number + 1) * chunk_bytes(array) for number in range(len(chunks_in(array, shard)))]
    pieces = read_pieces(shard_file(path, array, shard), [end - _SUM_BYTES for end in ends], _SUM_BYTES)
    return np.frombuffer(b"".join(pieces), dtype="<u4").astype(np.uint32)


def write_seals(seals: Mapping[str, ArraySeal]) -> dict[str, Any]:
    """What the attributes of a store hold of them."""
    return {
        name: {
            "metadata_crc32": seal.metadata_crc32,
            "chunk_crc32c": base64.b64encode(seal.chunk_crc32c.astype("<u4").tobytes()).decode(),
        }
        for name, seal in seals.items()
    }


def read_seals(path: Place, content: Any, names: tuple[str, ...]) -> dict[str, ArraySeal]:
    """Seals of a store's arrays, whose metadata are what was written.

    Raises
    ------
    StoreError
        If an array or a seal is missing or damaged.
    """
    seals = {}
    for name in names:
        try:
            sums = base64.b64decode(content[name]["chunk_crc32c"], validate=True)
            seals[name] = ArraySeal(content[name]["metadata_crc32"], np.frombuffer(sums, dtype="<u4"))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise StoreError(f"{path}: its record of array '{name}' is damaged ({error!r}); {REMEDY}") from error
        try:
            found = _sum_metadata(path, name)
        except FileNotFoundError:
            raise StoreError(f"{path}: array '{name}' is missing; {REMEDY}") from None
        if found != seals[name].metadata_crc32:
            raise StoreError(f"{path / name / 'zarr.json'}: not what was written; {REMEDY}")
    return seals


def _sum_metadata(path: Place, name: str) -> int:
    return zlib.crc32((path / name / "zarr.json").read_bytes())
