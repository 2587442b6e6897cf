"""What the parts of a run cost one thread here: CPU seconds per image, row, stack or map, on small random sets."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from particle_files import FIELD_ANGSTROM, write_source, write_store
from torch import Tensor

from cryoformer_dist.analysis.latent import kmeans
from cryoformer_dist.analysis.report_sections import _read_voxels
from cryoformer_dist.analysis.trained import _for_decoding
from cryoformer_dist.config.loading import parse_overrides
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.batch import ImageBlock, make_batch, resident_batches
from cryoformer_dist.data.contrast import contrast_z_score
from cryoformer_dist.data.convert import ConversionOptions, begin_conversion, convert_shard, plan_conversion
from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.data.order import ParticleOrder
from cryoformer_dist.data.provenance import _describe_stack
from cryoformer_dist.data.store import ParticleStore, complete_store
from cryoformer_dist.data.stored_particles import COLUMNS
from cryoformer_dist.figures.pictures import draw_surfaces
from cryoformer_dist.figures.surfaces import BODY_COLOUR, find_best_view, find_common_level
from cryoformer_dist.initialization.consensus import Consensus
from cryoformer_dist.initialization.linear_model import LinearModel
from cryoformer_dist.initialization.occupancy import find_missed, find_occupied, mask_box
from cryoformer_dist.initialization.pose_search import (
    LinearConformations,
    search_poses,
    search_poses_by_conformation,
)
from cryoformer_dist.initialization.search_rounds import ROUNDS, ROUNDS_BY_CONFORMATION
from cryoformer_dist.initialization.searched_images import SearchedImages
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.io.reading import check_stacks, read_particles
from cryoformer_dist.machine import usable_cores
from cryoformer_dist.model.decoder import DeformationDecoder, FoldedQueries
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball, random_particles
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import weighted_shells
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.directory import write_maps
from cryoformer_dist.training.latent_search import _representatives

CPU = torch.device("cpu")
OCCUPANCY = 0.05
LINEAR_BOX = 2 * round(FIELD_ANGSTROM / 14 / 2)
DIMENSIONS = 8
_IMAGES, _SEARCHED = 512, (128, 512)
_WHOLE_BATCHES = 64
_DRAWN = 12


@dataclass(frozen=True, slots=True)
class GeneralCosts:
    """CPU seconds that do not depend on the box of the stored images.

    Attributes
    ----------
    star_row, stack, described
        To read a row of a star file; to check that a stack holds what its header says; to note what it is.
    contrast
        To tell bright from dark by 2,000 images of 48 pixels.
    row_written, row_opened
        The one file of columns, per particle.
    searched, search_leader
        Rigid search, all rounds: an image, from memory; maps and the rest.
    conformed, conformation_leader
        The two searches by conformation, the same.
    linear_maps, linear_latents
        An image in a fit of the linear model's maps; in one of its coordinates.
    representatives
        K-means before a search of latents.
    clustered
        K-means of the results, per particle.
    byte_saved
        Of a checkpoint.
    """

    star_row: float
    stack: float
    described: float
    contrast: float
    row_written: float
    row_opened: float
    searched: float
    search_leader: float
    conformed: float
    conformation_leader: float
    linear_maps: float
    linear_latents: float
    representatives: float
    clustered: float
    byte_saved: float


@dataclass(frozen=True, slots=True)
class BoxCosts:
    """CPU seconds at one box, for a molecule in a twentieth of it.

    Attributes
    ----------
    converted
        An image from its stack to the store.
    read
        An image of a whole shard.
    search_read, linear_read
        What `SearchedImages` and `CroppedImages` make of an image, beyond reading it.
    inserted
        An image in a back-projection, beyond reading it.
    solved
        A map from a back-projection.
    occupancy, maps_written
        `find_occupied`; `write_maps`, with the FSC of the half maps.
    batched
        An image in a batch that stays in memory, of the thread that asks.
    refreshed
        `find_missed`, and the lattice made anew.
    network, encoded
        Network, as `load_trained` makes it; all points encoded, for any number of maps.
    decoded, attended
        A map; a map and its attention.
    volume_written
        A map as a file.
    volume_read, drawn
        A map read for a picture, and drawn: wall clock, on all cores here.
    """

    converted: float
    read: float
    search_read: float
    linear_read: float
    inserted: float
    solved: float
    occupancy: float
    maps_written: float
    batched: float
    refreshed: float
    network: float
    encoded: float
    decoded: float
    attended: float
    volume_written: float
    volume_read: float
    drawn: float


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _wall_seconds(work: Callable[[], object]) -> float:
    """Of what uses all cores."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def _all_cores() -> Iterator[None]:
    """For torch, which a driver leaves them to."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rate_and_rest(small: float, large: float) -> tuple[float, float]:
    """Per image, and what does not depend on their number, from the seconds of both searched sets."""
    few, many = _SEARCHED
    rate = max(0.0, (large - small) / (many - few))
    return rate, max(0.0, small - few * rate)


def measure_general(progress: Callable[[str], None]) -> GeneralCosts:
    """Measure what is the same at every box."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress("source files")
        source = _measure_source(folder)
        progress("columns of the store")
        columns = _measure_columns(folder)
        progress("pose search")
        searches = _measure_searches(write_store(folder / "searched", _IMAGES, 64))
        progress("linear model, k-means")
        return GeneralCosts(*source, *columns, *searches, *_measure_linear(), *_measure_rest(folder))


def _measure_source(folder: Path) -> tuple[float, float, float, float]:
    rows, stacks = 50_000, 500
    star = write_source(folder / "source", rows, 16, stacks)
    table = read_particles(star)
    particles = random_particles(2_000)
    images, pixel = torch.randn(len(particles), 48, 48), torch.full((len(particles),), FIELD_ANGSTROM / 48)
    return (
        seconds(lambda: read_particles(star)) / rows,
        seconds(lambda: check_stacks(table)) / stacks,
        seconds(lambda: [_describe_stack(path, 1) for path in table.stack_paths]) / stacks,
        seconds(lambda: contrast_z_score(images, particles.pose(), particles.ctf(), pixel)),
    )


def _measure_columns(folder: Path) -> tuple[float, float]:
    count, path = 100_000, folder / "columns"
    opened = ParticleStore.open(write_store(path, count, 2, shard_rows=count // 64 * 64 + 64))
    columns = {name: getattr(opened.particles(), name) for name in COLUMNS}
    written = seconds(lambda: complete_store(path, opened.attributes, columns))
    return written / count, seconds(lambda: ParticleStore.open(path).particles()) / count


def _measure_searches(path: Path) -> tuple[float, float, float, float]:
    """Without reading, which depends on the box."""
    store = ParticleStore.open(path)
    store.particles()
    largest = max(each.box for each in ROUNDS)
    rows = {count: np.arange(count) for count in _SEARCHED}
    read = {count: seconds(lambda n=count: SearchedImages.read(store, rows[n], largest, CPU)) for count in _SEARCHED}
    rigid = [seconds(lambda n=count: search_poses(store, rows[n], 0)) - read[count] for count in _SEARCHED]
    rounds = [one for each in ROUNDS_BY_CONFORMATION for one in each]
    maps = torch.randn(1 + DIMENSIONS, LINEAR_BOX, LINEAR_BOX, LINEAR_BOX)

    def search_by_conformation(count: int) -> None:
        known = LinearConformations(torch.randn(count, DIMENSIONS), maps)
        start = store.particles().pose(rows[count])
        search_poses_by_conformation(store, rows[count], start, known, rounds, 0)

    moving = [seconds(lambda n=count: search_by_conformation(n)) - read[count] for count in _SEARCHED]
    return *_rate_and_rest(*rigid), *_rate_and_rest(*moving)


def _measure_linear() -> tuple[float, float]:
    count, box = 128, LINEAR_BOX
    points = Lattice.of(ball(64, OCCUPANCY), 1, 0).coarsened(64, box).points_pixels * (box / 64)
    model, latent = LinearModel(points, box), torch.randn(count, DIMENSIONS)
    half = (count, box, box // 2 + 1)
    rotation = torch.from_numpy(random_particles(count).rotation)
    coefficients, still = torch.randn(half, dtype=torch.complex64), torch.zeros(count, 2)
    images = CroppedImages(coefficients, torch.ones(half), rotation, still, torch.ones(count))
    maps = torch.randn(1 + DIMENSIONS, len(points))
    fitted = seconds(lambda: model.fit_maps(images, latent, model.no_maps(DIMENSIONS)))
    return fitted / count, seconds(lambda: model.compare(images, maps, with_slopes=True)) / count


def _measure_rest(folder: Path) -> tuple[float, float, float]:
    cloud, values = torch.randn(20_000, DIMENSIONS), torch.randn(5_000_000)
    return (
        seconds(lambda: _representatives(cloud, 0)),
        seconds(lambda: kmeans(cloud.numpy(), 10)) / len(cloud),
        seconds(lambda: torch.save(values, folder / "saved.pt")) / values.nbytes,
    )


def measure_box(box: int, progress: Callable[[str], None]) -> BoxCosts:
    """Measure what depends on the box of the stored images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress(f"{box} px: conversion and reading")
        converted = _measure_conversion(folder, box)
        store = ParticleStore.open(write_store(folder / "store", _IMAGES, box))
        store.particles()
        read = _measure_reading(store)
        made = _measure_images(store, read)
        progress(f"{box} px: maps")
        maps = _measure_maps(folder, store)
        batched = _measure_batches(store)
        progress(f"{box} px: refresh, results")
        return BoxCosts(converted, read, *made, *maps, batched, _measure_refresh(box), *_measure_results(folder, box))


def _measure_conversion(folder: Path, box: int) -> float:
    count = 128
    table = read_particles(write_source(folder / "source", count, box, 2))
    plan = plan_conversion(table, folder / "converted", ConversionOptions(contrast="light"))
    begin_conversion(plan)
    return seconds(lambda: convert_shard(plan, 0)) / count


def _measure_reading(store: ParticleStore) -> float:
    rows = np.arange(len(store))
    return seconds(lambda: store.read_images(rows)) / len(rows)


def _measure_images(store: ParticleStore, read: float) -> tuple[float, float]:
    """Searched and cropped images, beyond reading."""
    rows, largest = np.arange(256), max(each.box for each in ROUNDS)
    searched = seconds(lambda: SearchedImages.read(store, rows, largest, CPU)) / len(rows)
    return searched - read, seconds(lambda: CroppedImages.of(store, rows, LINEAR_BOX)) / len(rows) - read


def _measure_maps(folder: Path, store: ParticleStore) -> tuple[float, float, float, float]:
    box, pixel = store.box_size, store.pixel_size_angstrom
    accumulator, rows = FourierAccumulator(box, pixel), np.arange(max(16, 8192 // box))
    images = store.read_images(rows)

    def insert() -> None:
        batch = make_batch(ImageBlock(images, rows, np.zeros_like(rows)), store.particles())
        accumulator.add(batch.images, batch.pose, batch.ctf, batch.pixel_size_angstrom)

    inserted = seconds(insert) / len(rows)
    found: list[Tensor] = []
    solved = seconds(lambda: found.append(accumulator.solve()))
    occupancy = seconds(lambda: find_occupied(found[0], pixel))
    mask, consensus = ball(box, OCCUPANCY), Consensus(found[0], (found[0], found[0]))
    return inserted, solved, occupancy, seconds(lambda: write_maps(folder, consensus, mask, pixel))


def _measure_batches(store: ParticleStore) -> float:
    order = ParticleOrder(np.arange(len(store)), store.shard_size, (0,), 2)
    batches = resident_batches(store, order.rows)(order, 0, 1, _WHOLE_BATCHES)
    # The first fills the memory.
    next(batches)
    start = time.thread_time()
    asked = sum(len(batch) for batch in batches)
    return (time.thread_time() - start) / asked


def _measure_refresh(box: int) -> float:
    mask, coarse = ball(box, OCCUPANCY), mask_box(box, FIELD_ANGSTROM / box)
    residual = torch.randn(coarse, coarse, coarse)
    return seconds(lambda: find_missed(residual, mask)) + seconds(lambda: Lattice.of(mask, 4, 0))


def _measure_results(folder: Path, box: int) -> tuple[float, float, float, float, float, float, float]:
    config = _for_decoding(parse_overrides(["dataset.store=none"], RunConfig, "whole run"))
    mask, made = ball(box, OCCUPANCY), list[StepBenchmark]()
    network = seconds(lambda: made.append(StepBenchmark.of(config, mask, 1, CPU)))
    encoded, decoded, attended, volume = _measure_decoding(made[0])
    blobs = mask.float().numpy()[None]
    view = find_best_view(blobs, find_common_level(blobs))
    written = seconds(lambda: write_volume(folder / "decoded.mrc", Volume(volume, FIELD_ANGSTROM / box)))
    write_volume(folder / "map.mrc", Volume(mask.float(), FIELD_ANGSTROM / box))
    shown: list[np.ndarray] = []
    with _all_cores():
        read = _wall_seconds(lambda: shown.append(_read_voxels(folder / "map.mrc")))
        many = np.repeat(shown[0][None], _DRAWN, axis=0)
        drawn = _wall_seconds(lambda: draw_surfaces(many, view, [BODY_COLOUR] * _DRAWN, 272)) / _DRAWN
    return network, encoded, decoded, attended, written, read, drawn


@torch.no_grad()
def _measure_decoding(made: StepBenchmark) -> tuple[float, float, float, Tensor]:
    """Points encoded, for any number of maps; then a map, and a map with attention; and a map."""
    model, lattice = made.learner.objectives.model, made.learner.objectives.lattice
    assert isinstance(model.decoder, DeformationDecoder)
    found: list[Tensor] = []
    encoded = seconds(lambda: found.append(model.feature_volume.in_tiles(lattice.points_pixels)))
    folded = model.condition(torch.randn(1, DIMENSIONS))
    assert isinstance(folded, FoldedQueries)
    voxels = torch.zeros(model.box**3)

    def decode() -> None:
        voxels[lattice.flat_index] = model.density(found[0], folded)[0]
        voxels.copy_(weighted_shells(voxels.reshape((model.box,) * 3), torch.ones(model.box // 2)).ravel())

    decoded = seconds(decode)
    attended = decoded + seconds(lambda: model.decoder.attention_map(found[0], folded))
    return encoded, decoded, attended, voxels.reshape((model.box,) * 3)
