"""A store of 21 small images in three shards of two chunks each, written by hand."""

from pathlib import Path

import numpy as np
import pytest
from support.store_attributes import store_attributes

from cryoformer_dist.data import store as store_module
from cryoformer_dist.data.store import complete_store, create_store, write_shard
from cryoformer_dist.data.stored_particles import COLUMNS, StoreLayout

ROWS, BOX, SHARD, CHUNK = 21, 6, 8, 4


# Rows per checksum of the metadata.
PART = 9


def small_images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, BOX, BOX)).astype(np.float16)


def small_columns() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    columns = {name: (random.random((ROWS, *shape)) * 2).astype(dtype) for name, (dtype, shape) in COLUMNS.items()}
    # What equals the fill value everywhere must still be on disk.
    columns["half_set"][:] = 0
    return columns


def write_small_store(path: Path) -> Path:
    with pytest.MonkeyPatch.context() as changes:
        changes.setattr(store_module, "_PARTICLE_ROWS", PART)
        layout = StoreLayout(ROWS, BOX, SHARD, CHUNK)
        create_store(path, layout)
        for shard in reversed(range(layout.shards)):
            start, stop = layout.shard_range(shard)
            write_shard(path, shard, small_images()[start:stop])
        complete_store(path, store_attributes(BOX), small_columns())
    return path
