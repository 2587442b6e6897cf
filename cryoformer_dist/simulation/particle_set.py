"""Synthetic particle sets with known truth, written as RELION would find them.

One image is ``CTF * projection + noise`` (`simulation.noise`), light on dark, in units of the noise: its standard
deviation is 1 in the written images, and the reference maps carry the same units, so the sum of a map along the beam is
the noise-free image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoformer_dist.config.simulation import SimulationConfig, VolumesSource
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import new_stack, write_volume
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.physics.ctf import CTFParams, contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.progress import Progress
from cryoformer_dist.simulation.acquisition import (
    PoseDraw,
    StateDraw,
    Stream,
    draw_ctf,
    draw_half_sets,
    draw_poses,
    draw_states,
    group_particles,
    stream,
)
from cryoformer_dist.simulation.imaging import (
    DEFAULT_SIGMA_PIXELS,
    SIGMA_PER_RESOLUTION,
    AtomImager,
    Views,
    VolumeImager,
    load_volumes,
)
from cryoformer_dist.simulation.molecule import build_molecule, reach_angstrom
from cryoformer_dist.simulation.noise import NoiseScale, add_noise, measure_noise_scale
from cryoformer_dist.storage.places import replaced

STAR_NAME = "particles.star"
TRUTH_FOLDER = "truth"
TRUTH_TABLE = "truth.npz"
_LABEL = "simulated by cryoformer-dist"
_CALIBRATION_IMAGES = 1000
# Pixels of noise-free images kept while the noise level is being measured (256 MiB), and of one block of
# images.
_CALIBRATION_PIXELS = 2**26
_BLOCK_PIXELS = 2**22


@dataclass(frozen=True, slots=True)
class SimulatedSet:
    """What a simulation wrote."""

    star: Path
    stacks: tuple[Path, ...]
    truth: Path
    pixel_size_angstrom: float
    box_size: int


@dataclass(frozen=True, slots=True)
class _Scene:
    """Everything that decides the noise-free images."""

    imager: AtomImager | VolumeImager
    states: StateDraw
    poses: PoseDraw
    ctf: CTFParams
    box: int
    pixel_size_angstrom: float

    def signal(self, rows: slice) -> Tensor:
        """CTF-applied images at the simulated box, before any scaling."""
        rotation, shift = self.poses.rotation[rows], self.poses.shift_angstrom[rows]
        views = Views(self.states.coordinate[rows], torch.from_numpy(rotation), torch.from_numpy(shift))
        transform = self.imager.project(views)
        which = torch.arange(rows.start, rows.stop)
        frequency = frequency_grid(self.box)[None] / self.pixel_size_angstrom
        return fourier_to_image(transform * contrast_transfer_function(self.ctf[which], frequency), self.box)


def simulate(
    config: SimulationConfig, output: Path, progress: Progress | None = None, *, overwrite: bool = False
) -> SimulatedSet:
    """Make a particle set: ``particles.star``, stacks, and ``truth/`` (states, clean poses, reference maps).

    The same configuration gives the same bytes. The ``.star`` is written last: a folder that has one is
    complete.

    Parameters
    ----------
    config
        What to simulate.
    output
        Folder to write into; made when missing.
    progress
        Called with the number of images made so far and in all.
    overwrite
        Replace a set that is already there.

    Returns
    -------
    simulated
        Where everything is.

    Raises
    ------
    ConfigError
        If a file is missing or unfit, a selection is empty, the molecule leaves the box, or the folder holds
        a set already; with the dotted key and the remedy.
    """
    star = output / STAR_NAME
    if star.exists() and not overwrite:
        raise ConfigError(f"{star}: a particle set is already there; choose another folder, or overwrite it")
    scene = _make_scene(config)
    _clear(output)
    blocks = _cut_into_blocks(config)
    made = _tell_progress(_make_signals(scene, blocks), config.particles, progress)
    kept = max(1, min(_CALIBRATION_IMAGES, config.particles, _CALIBRATION_PIXELS // scene.box**2))
    head = _take_head(made, kept)
    scale = measure_noise_scale(config, torch.cat(head)[:kept])
    truth = _write_truth(config, scene, scale, output / TRUTH_FOLDER)
    stacks = _write_stacks(config, _chain(head, made), blocks, scale, output)
    _write_particles(config, scene, stacks, star)
    return SimulatedSet(star, stacks, truth, config.pixel_size_angstrom, config.box_size)


def _clear(output: Path) -> None:
    """Make the folder and take away what an earlier set left there, its .star first."""
    output.mkdir(parents=True, exist_ok=True)
    (output / STAR_NAME).unlink(missing_ok=True)
    truth = output / TRUTH_FOLDER
    for old in (*output.glob("particles*.mrcs"), *truth.glob("volume_*.mrc"), *truth.glob(TRUTH_TABLE)):
        old.unlink()


def _make_scene(config: SimulationConfig) -> _Scene:
    """Read or build the molecule and draw what chance decides."""
    box = config.simulated_box
    imager: AtomImager | VolumeImager
    poses = draw_poses(config)
    if isinstance(config.source, VolumesSource):
        imager = load_volumes(config.source.paths, box, config.box_length_angstrom)
        classes = len(config.source.paths)
        states = draw_states(config, (0.0, float(classes - 1)), 0.0, classes)
    else:
        molecule = build_molecule(config.source)
        _require_fit(config, reach_angstrom(molecule), float(np.abs(poses.shift_angstrom).max()))
        sigma = DEFAULT_SIGMA_PIXELS * config.box_length_angstrom / box
        if config.resolution_angstrom is not None:
            sigma = config.resolution_angstrom * SIGMA_PER_RESOLUTION
        imager = AtomImager(molecule, box, config.box_length_angstrom, sigma)
        states = draw_states(config, molecule.state_range, molecule.period, molecule.frames)
    return _Scene(imager, states, poses, draw_ctf(config), box, config.box_length_angstrom / box)


def _require_fit(config: SimulationConfig, radius_angstrom: float, largest_shift_angstrom: float) -> None:
    needed = 2 * (radius_angstrom + largest_shift_angstrom)
    if needed > config.box_length_angstrom:
        raise ConfigError(
            f"box_length_angstrom: {config.box_length_angstrom:.5g} A is too small for a molecule "
            f"{2 * radius_angstrom:.0f} A across in motion, shifted by up to {largest_shift_angstrom:.1f} A; "
            f"set at least {needed:.0f}"
        )


def _cut_into_blocks(config: SimulationConfig) -> list[list[slice]]:
    """Rows of each block of images, per stack."""
    size = max(1, min(256, _BLOCK_PIXELS // config.simulated_box**2))
    stacks = []
    for first in range(0, config.particles, config.images_per_stack):
        end = min(first + config.images_per_stack, config.particles)
        stacks.append([slice(start, min(start + size, end)) for start in range(first, end, size)])
    return stacks


def _make_signals(scene: _Scene, blocks: list[list[slice]]) -> Iterator[Tensor]:
    for stack in blocks:
        for rows in stack:
            yield scene.signal(rows)


def _tell_progress(made: Iterator[Tensor], total: int, progress: Progress | None) -> Iterator[Tensor]:
    done = 0
    for images in made:
        done += len(images)
        if progress is not None:
            progress(done, total)
        yield images


def _take_head(made: Iterator[Tensor], images: int) -> list[Tensor]:
    """Take the first blocks, as many as hold so many images."""
    head: list[Tensor] = []
    while sum(map(len, head)) < images:
        head.append(next(made))
    return head


def _chain(head: list[Tensor], rest: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the kept blocks, each let go once it is used, then the others."""
    while head:
        yield head.pop(0)
    yield from rest


def _write_truth(config: SimulationConfig, scene: _Scene, scale: NoiseScale, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    states = scene.states
    for number, (state, coordinate) in enumerate(zip(states.volume_state, states.volume_coordinate, strict=True)):
        voxels = scene.imager.volume(float(coordinate), config.box_size) * scale.signal
        labels = (_LABEL, f"state {state:.6g}")
        write_volume(folder / f"volume_{number:03d}.mrc", Volume(voxels, config.pixel_size_angstrom), labels)
    with replaced(folder / TRUTH_TABLE) as beside, beside.open("wb") as stream:
        np.savez(
            stream,
            state=states.state,
            rotation=scene.poses.rotation,
            shift_angstrom=scene.poses.shift_angstrom,
            volume_state=states.volume_state,
            period=np.float64(states.period),
            discrete=np.bool_(states.discrete),
        )
    return folder


def _write_stacks(
    config: SimulationConfig, images: Iterator[Tensor], blocks: list[list[slice]], scale: NoiseScale, output: Path
) -> tuple[Path, ...]:
    seed = config.seed if config.noise_seed is None else config.noise_seed
    generator = stream(seed, Stream.NOISE)
    paths = []
    for number, stack in enumerate(blocks):
        path = output / ("particles.mrcs" if len(blocks) == 1 else f"particles_{number:03d}.mrcs")
        with new_stack(path, config.pixel_size_angstrom, (_LABEL,)) as writer:
            for _ in stack:
                writer.append(add_noise(next(images), scale, config.box_size, generator))
        paths.append(path)
    return tuple(paths)


def _write_particles(config: SimulationConfig, scene: _Scene, stacks: tuple[Path, ...], star: Path) -> None:
    rows = np.arange(config.particles)
    stack, index = rows // config.images_per_stack, rows % config.images_per_stack
    optics, optics_group = group_particles(config, scene.ctf)
    table = ParticleTable(
        source=star,
        stack_paths=stacks,
        stack=stack.astype(np.int32),
        stack_index=index,
        rotation=scene.poses.given_rotation,
        shift_angstrom=scene.poses.given_shift_angstrom,
        defocus_u_angstrom=scene.ctf.defocus_u_angstrom.numpy(),
        defocus_v_angstrom=scene.ctf.defocus_v_angstrom.numpy(),
        defocus_angle_deg=scene.ctf.defocus_angle_deg.numpy(),
        phase_shift_deg=scene.ctf.phase_shift_deg.numpy(),
        optics=optics,
        optics_group=optics_group,
        half_set=draw_half_sets(config),
        uid=np.zeros(config.particles, np.uint64),
        source_row=rows,
    )
    names = [f"{i + 1:06d}@{stacks[s].name}" for s, i in zip(stack.tolist(), index.tolist(), strict=True)]
    write_star(star, table, names)
