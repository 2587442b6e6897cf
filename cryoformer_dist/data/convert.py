"""From a particle table and its stacks to a particle store: a plan, one shard's work, and the finish.

Shards are independent and their content depends on the plan only, so they may be written by anybody, in any
order, and again after a kill: the store comes out the same, byte for byte.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.data.contrast import Contrast
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
from cryoformer_dist.data.noise_measurement import GroupNoise
from cryoformer_dist.data.store import (
    PROGRESS_FOLDER,
    ParticleStore,
    complete_store,
    create_store,
    is_complete,
    is_store_directory,
    write_shard,
)
from cryoformer_dist.data.store_attributes import (
    SCHEMA_VERSION,
    Conversion,
    Source,
    SourceStack,
    StoreAttributes,
    StoredOptics,
    read_noise,
)
from cryoformer_dist.data.stored_particles import COLUMNS, DEFAULT_CHUNK_ROWS, DEFAULT_SHARD_ROWS, StoreLayout
from cryoformer_dist.errors import ParticleFormatError, StoreError
from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.io.reading import check_stacks
from cryoformer_dist.progress import Progress
from cryoformer_dist.storage.places import Place, in_reach, make_folder, place_at, remove_folder, write_whole
from cryoformer_dist.versions import installed_version

_PLAN_FILE = "plan.json"


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
    """

    box_size: int | None = None
    contrast: ContrastChoice = "auto"
    particle_diameter_angstrom: float | None = None
    seed: int = 0
    shard_rows: int = DEFAULT_SHARD_ROWS
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Everything that decides the bytes of a store; can be pickled and sent to workers.

    Attributes
    ----------
    order
        `(particles,)` table row of each store row: a seeded random permutation.
    fingerprint
        sha256 of inputs and options: an interrupted conversion goes on only under the same one.
    resumes
        Whether an interrupted conversion of this very plan lies at ``output``.
    """

    table: ParticleTable
    output: Place
    layout: StoreLayout
    order: NDArray[np.int64]
    normalisation: Normalisation
    contrast: Contrast
    attributes: StoreAttributes
    fingerprint: str
    resumes: bool


@dataclass(frozen=True, slots=True)
class _PlanRecord:
    """What an interrupted conversion needs to go on, kept beside its shards.

    Attributes
    ----------
    fingerprint
        Of the plan.
    contrast, noise
        What was measured; see `Normalisation`.
    """

    fingerprint: str
    contrast: Contrast
    noise: tuple[GroupNoise, ...]


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
        If a stack is missing or damaged, or the images cannot share the box that is asked for.
    """
    output = place_at(output)
    if len(table) == 0:
        raise ParticleFormatError(f"{table.source}: no particles; check the file, or the selection made with --ind")
    check_stacks(table)
    box_size = settle_box(table, options.box_size)
    check_diameter(table, options.particle_diameter_angstrom)
    layout = _choose_layout(len(table), box_size, options)
    source = _describe_source(table)
    fingerprint = _plan_fingerprint(table, source, options)
    with in_reach(output):
        recorded = _check_output(output, fingerprint, options.overwrite)
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
        resumes=recorded is not None,
    )


def begin_conversion(plan: ConversionPlan) -> list[int]:
    """Make the directory of the store and list the shards that are still to be written.

    A store that the plan replaces is removed here, an interrupted conversion of the same plan is kept.
    """
    folder = plan.output / PROGRESS_FOLDER
    record = _PlanRecord(plan.fingerprint, plan.contrast, plan.normalisation.noise)
    with in_reach(plan.output):
        if plan.resumes and is_complete(plan.output):
            return []
        if not plan.resumes:
            remove_folder(plan.output)
        make_folder(folder)
        write_whole(folder / _PLAN_FILE, json.dumps(asdict(record), indent=1))
        create_store(plan.output, plan.layout)
        return [shard for shard in range(plan.layout.shards) if not _marker(plan, shard).exists()]


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
        write_whole(_marker(plan, shard), "")
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
            columns = {name: _column(plan.table, name)[plan.order] for name in COLUMNS}
            complete_store(plan.output, plan.attributes, columns)
        if folder.is_dir():
            # The plan goes last: while it is there, the same command recognises its own store.
            for name in sorted((file.name for file in folder.iterdir()), key=lambda name: name == _PLAN_FILE):
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
    pending = begin_conversion(plan)
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


def _describe_source(table: ParticleTable) -> Source:
    """Name the source files with checksums; of stacks size and header, a whole read would double the work."""
    used = np.bincount(table.stack, minlength=len(table.stack_paths))
    numbers = hashlib.sha256()
    for name in COLUMNS:
        numbers.update(np.ascontiguousarray(_column(table, name)).tobytes())
    for places in (table.stack, table.stack_index):
        numbers.update(np.ascontiguousarray(places).tobytes())
    with table.source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stacks = tuple(
        _describe_stack(path, int(particles)) for path, particles in zip(table.stack_paths, used, strict=True)
    )
    return Source(str(table.source.absolute()), sha256, numbers.hexdigest(), stacks)


def _describe_stack(path: Path, particles: int) -> SourceStack:
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(1024)).hexdigest()
    return SourceStack(str(path.absolute()), particles, path.stat().st_size, header)


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
        "program": _program(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_output(output: Place, fingerprint: str, overwrite: bool) -> _PlanRecord | None:
    """Read the record of an interrupted conversion of the same plan; None when a new one may start."""
    if not output.exists():
        return None
    if not is_store_directory(output) and (output.is_file() or any(output.iterdir())):
        raise StoreError(f"{output}: exists and is not a particle store: choose another output")
    record = _read_record(output / PROGRESS_FOLDER / _PLAN_FILE)
    if record is not None and record.fingerprint == fingerprint:
        return record
    if overwrite:
        return None
    if is_complete(output):
        raise StoreError(f"{output}: a finished store is there: choose another output, or give --overwrite")
    if record is not None:
        raise StoreError(
            f"{output}: an unfinished conversion of other particles or with other options is there: repeat "
            "its command to continue it, or give --overwrite to begin anew"
        )
    return None


def _read_record(file: Place) -> _PlanRecord | None:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    noise = tuple(read_noise(group) for group in content["noise"])
    return _PlanRecord(content["fingerprint"], Contrast(**content["contrast"]), noise)


def _describe_store(
    table: ParticleTable, source: Source, normalisation: Normalisation, contrast: Contrast, options: ConversionOptions
) -> StoreAttributes:
    """Gather what the store says about itself."""
    pixel_sizes = stored_pixel_size_angstrom(table, normalisation.box_size)
    groups = zip(table.optics, pixel_sizes, strict=True)
    return StoreAttributes(
        program=_program(),
        box_size=normalisation.box_size,
        pixel_size_angstrom=pixel_sizes[0],
        optics=tuple(_stored_optics(group, normalisation.box_size, pixel_size) for group, pixel_size in groups),
        has_poses=table.rotation is not None,
        source=source,
        contrast=contrast,
        conversion=Conversion(options.seed, normalisation.particle_diameter_angstrom),
        noise=normalisation.noise,
    )


def _stored_optics(group: OpticsGroup, box_size: int, pixel_size_angstrom: float) -> StoredOptics:
    own = {each.name: getattr(group, each.name) for each in fields(group)}
    stored = own | {"box_size": box_size, "pixel_size_angstrom": pixel_size_angstrom}
    return StoredOptics(**stored, source_pixel_size_angstrom=group.pixel_size_angstrom, source_box_size=group.box_size)


def _column(table: ParticleTable, name: str) -> NDArray[Any]:
    """Take a per-particle array of the table; identities where the file has no poses."""
    if name == "rotation" and table.rotation is None:
        return np.broadcast_to(np.eye(3, dtype=np.float32), (len(table), 3, 3))
    values: NDArray[Any] = getattr(table, name)
    return values


def _check_finite(table: ParticleTable, rows: NDArray[np.int64], images: NDArray[np.float16]) -> None:
    """No pixel left the range of float16."""
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
    if bad.size:
        raise ParticleFormatError(
            f"{image_location(table, int(rows[bad[0]]))} has a pixel more than 65504 background deviations "
            "away: leave it out or remove its hot pixels"
        )


def _marker(plan: ConversionPlan, shard: int) -> Place:
    """File that says that a shard is on the disk."""
    return plan.output / PROGRESS_FOLDER / f"shard-{shard:05d}.done"


def _program() -> str:
    """Name and version of this program."""
    return f"cryoformer-dist {installed_version('cryoformer-dist') or '(not installed)'}"
