"""From a particle table and its stacks to a particle store: a plan, one shard's work, and the finish.

Shards are independent and their content depends on the plan only, so they may be written by anybody, in any
order, and again after a kill: the store comes out the same, byte for byte.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.contrast import Contrast
from cryoformer_dist.data.conversion_record import PLAN_FILE, PlanRecord, find_record, marker, write_record
from cryoformer_dist.data.image_normalisation import (
    ContrastChoice,
    Normalisation,
    check_diameter,
    image_location,
    measure_normalisation,
    normalise_images,
    settle_box,
    stored_pixel_size_angstrom,
)
from cryoformer_dist.data.provenance import describe_source, program_name, stored_column
from cryoformer_dist.data.store import (
    PROGRESS_FOLDER,
    ParticleStore,
    complete_store,
    create_store,
    is_complete,
    write_shard,
)
from cryoformer_dist.data.store_attributes import (
    SCHEMA_VERSION,
    Conversion,
    Source,
    StoreAttributes,
    StoredOptics,
)
from cryoformer_dist.data.stored_particles import COLUMNS, DEFAULT_CHUNK_ROWS, DEFAULT_SHARD_ROWS, StoreLayout
from cryoformer_dist.errors import ParticleFormatError, StoreError
from cryoformer_dist.io.half_sets import settle_half_sets
from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.io.reading import check_stacks
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues
from cryoformer_dist.progress import Progress
from cryoformer_dist.storage.lease import sole_writer
from cryoformer_dist.storage.places import Place, in_reach, make_folder, place_at, remove_folder, write_whole


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What the user may choose.

    Attributes
    ----------
    box_size
        Side of the stored images in pixels, even; that of the source when ``None``.
    contrast
        ``light`` or ``dark`` protein in the source; ``auto`` measures it.
    particle_diameter_angstrom
        What lies outside is background; the circle that fills the box when ``None``.
    seed
        Of the row permutation and of the sample.
    overwrite
        Replace a store that is there already.
    stated
        What was said of the particles when they were read, for the record.
    allow_duplicates
        The source may list an image more than once; its copies stay in one half-set.
    """

    box_size: int | None = None
    contrast: ContrastChoice = "auto"
    particle_diameter_angstrom: float | None = None
    seed: int = 0
    shard_rows: int = DEFAULT_SHARD_ROWS
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    overwrite: bool = False
    stated: StatedValues = NOTHING_STATED
    allow_duplicates: bool = False


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Everything that decides the bytes of a store; can be pickled and sent to workers.

    Attributes
    ----------
    order
        `(particles,)` table row of each store row: a seeded random permutation.
    fingerprint
        sha256 of inputs and options: an interrupted conversion goes on only under the same one.
    overwrite
        Replace a store that is there already.
    """

    table: ParticleTable
    output: Place
    layout: StoreLayout
    order: NDArray[np.int64]
    normalisation: Normalisation
    contrast: Contrast
    attributes: StoreAttributes
    fingerprint: str
    overwrite: bool


def plan_conversion(table: ParticleTable, output: str | Place, options: ConversionOptions) -> ConversionPlan:
    """Verify every input, settle every number of the conversion, and write nothing.

    Parameters
    ----------
    table
        Particles, as `read_particles` gives them.
    output
        Where the store goes: a directory, or ``s3://bucket/prefix``.

    Raises
    ------
    StoreError
        If ``output`` is something else, a finished store, or an unfinished one of another plan.
    ParticleFormatError
        If a stack is missing or damaged, an image is listed twice, or the images cannot share the box.
    """
    output = place_at(output)
    if len(table) == 0:
        raise ParticleFormatError(f"{table.source}: no particles; check the file, or the selection made with --ind")
    check_stacks(table)
    table = settle_half_sets(table, options.allow_duplicates, options.seed)
    box_size = settle_box(table, options.box_size)
    check_diameter(table, options.particle_diameter_angstrom)
    layout = _choose_layout(len(table), box_size, options)
    source = describe_source(table)
    fingerprint = _plan_fingerprint(table, source, options)
    with in_reach(output):
        recorded = find_record(output, fingerprint, options.overwrite)
    normalisation = Normalisation(box_size, options.particle_diameter_angstrom)
    if recorded is None:
        normalisation, contrast = measure_normalisation(table, normalisation, options.contrast, options.seed)
    else:
        contrast = recorded.contrast
        normalisation = replace(normalisation, sign=contrast.sign, noise=recorded.noise)
    return ConversionPlan(
        table=table,
        output=output,
        layout=layout,
        order=np.random.default_rng([options.seed, 0]).permutation(len(table)),
        normalisation=normalisation,
        contrast=contrast,
        attributes=_describe_store(table, source, normalisation, contrast, options),
        fingerprint=fingerprint,
        overwrite=options.overwrite,
    )


def begin_conversion(plan: ConversionPlan) -> list[int]:
    """Make the directory of the store and list the shards that are still to be written.

    A store that the plan replaces is removed here, an interrupted conversion of the same plan is kept.

    Raises
    ------
    StoreError
        As `plan_conversion`: since the plan was made, somebody else may have begun, or finished.
    """
    folder = plan.output / PROGRESS_FOLDER
    record = PlanRecord(plan.fingerprint, plan.contrast, plan.normalisation.noise)
    with in_reach(plan.output):
        resumes = find_record(plan.output, plan.fingerprint, plan.overwrite) is not None
        if resumes and is_complete(plan.output):
            return []
        if not resumes:
            remove_folder(plan.output)
        make_folder(folder)
        write_record(plan.output, record)
        create_store(plan.output, plan.layout)
        return [shard for shard in range(plan.layout.shards) if not marker(plan.output, shard).exists()]


@contextmanager
def converting(plan: ConversionPlan) -> Iterator[list[int]]:
    """Begin a conversion, and be the only one who writes that store to the end of the block; see `begin_conversion`.

    Raises
    ------
    InUseError
        If somebody else writes it.
    """
    with sole_writer(plan.output):
        yield begin_conversion(plan)


def convert_shard(plan: ConversionPlan, shard: int) -> int:
    """Read, normalise and write one shard, then mark it as done.

    Returns
    -------
    Number of particles written.

    Raises
    ------
    ParticleFormatError
        If an image cannot be normalised or does not fit float16: file and image number are named.
    """
    start, stop = plan.layout.shard_range(shard)
    rows = plan.order[start:stop]
    box = plan.normalisation.box_size
    images = np.empty((len(rows), box, box), dtype=np.float16)
    for positions, block in normalise_images(plan.table, rows, plan.normalisation):
        # A value beyond 65504 becomes infinite here and is refused below.
        with np.errstate(over="ignore"):
            images[positions] = block.numpy().astype(np.float16)
    _check_finite(plan.table, rows, images)
    with in_reach(plan.output):
        write_shard(plan.output, shard, images)
        write_whole(marker(plan.output, shard), "")
    return len(rows)


def finish_conversion(plan: ConversionPlan) -> ParticleStore:
    """Write what is known of the particles, mark the store complete, remove the progress folder, open the store.

    Raises
    ------
    StoreError
        If a shard is missing.
    """
    folder = plan.output / PROGRESS_FOLDER
    with in_reach(plan.output):
        # It is already when a kill came while the progress folder was removed.
        if not is_complete(plan.output):
            columns = {name: stored_column(plan.table, name)[plan.order] for name in COLUMNS}
            complete_store(plan.output, plan.attributes, columns)
        if folder.is_dir():
            # The plan goes last: while it is there, the same command recognises its own store.
            for name in sorted((file.name for file in folder.iterdir()), key=lambda name: name == PLAN_FILE):
                (folder / name).unlink()
            if isinstance(folder, Path):
                folder.rmdir()
    return ParticleStore.open(plan.output)


def convert_serially(plan: ConversionPlan, progress: Progress | None = None) -> ParticleStore:
    """Write every shard of a plan in this process.

    Parameters
    ----------
    progress
        Called with (particles written, particles in all); after a resumption it starts where it stopped.
    """
    with converting(plan) as pending:
        total = plan.layout.particles
        done = total - particles_in(plan, pending)
        if progress is not None:
            progress(done, total)
        for shard in pending:
            done += convert_shard(plan, shard)
            if progress is not None:
                progress(done, total)
        return finish_conversion(plan)


def particles_in(plan: ConversionPlan, shards: list[int]) -> int:
    """How many particles some shards hold."""
    ranges = [plan.layout.shard_range(shard) for shard in shards]
    return sum(stop - start for start, stop in ranges)


def _choose_layout(particles: int, box_size: int, options: ConversionOptions) -> StoreLayout:
    """Cut of the rows; a small set is not padded to a full shard."""
    chunk = options.chunk_rows
    if chunk < 1 or options.shard_rows % chunk:
        raise StoreError(
            f"a shard of {options.shard_rows} rows does not hold whole chunks of {chunk}: choose a multiple"
        )
    return StoreLayout(particles, box_size, min(options.shard_rows, -(-particles // chunk) * chunk), chunk)


def _plan_fingerprint(table: ParticleTable, source: Source, options: ConversionOptions) -> str:
    """Hash everything that decides the bytes of the store, and when the stacks were last changed."""
    choices = asdict(options)
    choices.pop("overwrite")
    content = {
        "source": asdict(source),
        "options": choices,
        "optics": [asdict(group) for group in table.optics],
        "schema": SCHEMA_VERSION,
        "changed": [path.stat().st_mtime_ns for path in table.stack_paths],
        "program": program_name(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_store(
    table: ParticleTable, source: Source, normalisation: Normalisation, contrast: Contrast, options: ConversionOptions
) -> StoreAttributes:
    """Gather what the store says about itself."""
    pixel_sizes = stored_pixel_size_angstrom(table, normalisation.box_size)
    groups = zip(table.optics, pixel_sizes, strict=True)
    return StoreAttributes(
        program=program_name(),
        box_size=normalisation.box_size,
        pixel_size_angstrom=pixel_sizes[0],
        optics=tuple(_stored_optics(group, normalisation.box_size, pixel_size) for group, pixel_size in groups),
        has_poses=table.rotation is not None,
        source=source,
        contrast=contrast,
        conversion=Conversion(
            options.seed, normalisation.particle_diameter_angstrom, options.stated, options.allow_duplicates
        ),
        noise=normalisation.noise,
    )


def _stored_optics(group: OpticsGroup, box_size: int, pixel_size_angstrom: float) -> StoredOptics:
    own = {each.name: getattr(group, each.name) for each in fields(group)}
    stored = own | {"box_size": box_size, "pixel_size_angstrom": pixel_size_angstrom}
    return StoredOptics(**stored, source_pixel_size_angstrom=group.pixel_size_angstrom, source_box_size=group.box_size)


def _check_finite(table: ParticleTable, rows: NDArray[np.int64], images: NDArray[np.float16]) -> None:
    """No pixel left the range of float16."""
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
    if bad.size:
        raise ParticleFormatError(
            f"{image_location(table, int(rows[bad[0]]))} has a pixel more than 65504 background deviations "
            "away: leave it out or remove its hot pixels"
        )
