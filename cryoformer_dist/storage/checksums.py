"""Checksums of files: what was written, and whether it is still that."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file was when it was written.

    Attributes
    ----------
    bytes
        Its length.
    crc32
        Of its content.
    """

    bytes: int
    crc32: int


def sum_file(path: Path) -> FileSum:
    """Length and checksum of a file; read in pieces, so that a file of any length may come."""
    length = crc32 = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            length, crc32 = length + len(block), zlib.crc32(block, crc32)
    return FileSum(length, crc32)


def find_change(path: Path, written: FileSum) -> str | None:
    """What has become of a file since it was written, in words that follow its name; ``None`` if nothing."""
    try:
        found = sum_file(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found.bytes != written.bytes:
        return f"has {found.bytes} bytes instead of {written.bytes}"
    return None if found == written else f"is not what was written (crc32 {found.crc32:08x}, not {written.crc32:08x})"


def sum_content(content: Mapping[str, Any]) -> int:
    """crc32 of what JSON holds, whatever its layout."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
