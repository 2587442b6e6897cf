"""What a store says of where its particles came from."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.store_attributes import Source, SourceStack
from cryoformer_dist.data.stored_particles import COLUMNS
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.versions import installed_version


def describe_source(table: ParticleTable) -> Source:
    """Name the source files with checksums; of stacks size and header, a whole read would double the work."""
    used = np.bincount(table.stack, minlength=len(table.stack_paths))
    numbers = hashlib.sha256()
    for name in COLUMNS:
        numbers.update(np.ascontiguousarray(stored_column(table, name)).tobytes())
    for places in (table.stack, table.stack_index):
        numbers.update(np.ascontiguousarray(places).tobytes())
    with table.source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stacks = tuple(
        _describe_stack(path, int(particles)) for path, particles in zip(table.stack_paths, used, strict=True)
    )
    return Source(str(table.source.absolute()), sha256, numbers.hexdigest(), stacks)


def stored_column(table: ParticleTable, name: str) -> NDArray[Any]:
    """Take a per-particle array of the table; identities where the file has no poses."""
    if name == "rotation" and table.rotation is None:
        return np.broadcast_to(np.eye(3, dtype=np.float32), (len(table), 3, 3))
    values: NDArray[Any] = getattr(table, name)
    return values


def program_name() -> str:
    """Name and version of this program."""
    return f"cryoformer-dist {installed_version('cryoformer-dist') or '(not installed)'}"


def _describe_stack(path: Path, particles: int) -> SourceStack:
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(1024)).hexdigest()
    return SourceStack(str(path.absolute()), particles, path.stat().st_size, header)
