"""Random particles as files: a source with its stacks, and a finished store, both of one field of view."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from support.store_attributes import store_attributes

from cryoformer_dist.data.store import complete_store, create_store, write_shard
from cryoformer_dist.data.stored_particles import COLUMNS, StoreLayout
from cryoformer_dist.io.mrc import new_stack
from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.orchestration.step_benchmark import random_particles
from cryoformer_dist.physics.grids import radius_grid

FIELD_ANGSTROM = 384.0
_BLOCK = 512


def random_images(count: int, box: int) -> np.ndarray:
    """Noise around a blob, the same in every image: maps of them have a molecule."""
    blob = torch.exp(-((radius_grid(box, 2) / (0.15 * box)) ** 2)).numpy()
    noise = np.random.default_rng(0).standard_normal((count, box, box), dtype=np.float32)
    return np.asarray(noise + 2 * blob, dtype=np.float32)


def write_store(path: Path, count: int, box: int, shard_rows: int = _BLOCK) -> Path:
    """A finished store."""
    layout = StoreLayout(count, box, shard_rows)
    create_store(path, layout)
    for shard in range(layout.shards):
        start, stop = layout.shard_range(shard)
        write_shard(path, shard, random_images(stop - start, box).astype(np.float16))
    particles, pixel, attributes = random_particles(count), FIELD_ANGSTROM / box, store_attributes(box)
    optics = tuple(replace(group, pixel_size_angstrom=pixel) for group in attributes.optics)
    attributes = replace(attributes, pixel_size_angstrom=pixel, optics=optics)
    complete_store(path, attributes, {name: getattr(particles, name) for name in COLUMNS})
    return path


def write_source(folder: Path, count: int, box: int, stacks: int) -> Path:
    """A star file with its stacks, equally many images in each."""
    folder.mkdir()
    each, pixel = count // stacks, FIELD_ANGSTROM / box
    paths = tuple(folder / f"{number}.mrcs" for number in range(stacks))
    for path in paths:
        with new_stack(path, pixel) as stack:
            stack.append(random_images(each, box))
    particles, rows = random_particles(count), np.arange(count)
    names = ("rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_deg")
    names += ("phase_shift_deg", "optics_group", "half_set", "uid", "source_row")
    table = ParticleTable(
        source=folder / "particles.star",
        stack_paths=paths,
        stack=(rows // each).astype(np.int32),
        stack_index=rows % each,
        optics=(OpticsGroup("one", pixel, box, 300.0, 2.7, 0.1),),
        **{name: getattr(particles, name) for name in names},
    )
    images = [f"{index + 1:06d}@{number}.mrcs" for number, index in zip(table.stack, table.stack_index, strict=True)]
    write_star(table.source, table, images)
    return table.source
