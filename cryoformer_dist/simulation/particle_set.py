"""Synthetic particle sets with known truth, written as RELION would find them.

One image is ``CTF * projection + noise`` (`simulation.noise`), light on dark, in units of the noise: its standard
deviation is 1 in the written images, and the reference maps carry the same units, so the sum of a map along the beam is
the noise-free image.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import new_stack, write_volume
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.physics.fourier import crop_images
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.progress import Progress
from cryoformer_dist.simulation.acquisition import Stream, draw_half_sets, stream
from cryoformer_dist.simulation.noise import Colour, NoiseScale, measure_noise_scale, mix_colour
from cryoformer_dist.simulation.optics_groups import Session, group_particles
from cryoformer_dist.simulation.recipe import RECIPE, write_recipe
from cryoformer_dist.simulation.scene import Camera, Scene, make_scene
from cryoformer_dist.storage.lease import sole_writer
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


def simulate(
    config: SimulationConfig, output: Path, progress: Progress | None = None, *, overwrite: bool = False
) -> SimulatedSet:
    """Make a particle set: ``particles.star``, stacks, ``truth/`` (states, clean poses, reference maps), recipe.

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
    scene, star = make_scene(config), output / STAR_NAME
    with sole_writer(output):
        if star.exists() and not overwrite:
            raise ConfigError(f"{star}: a particle set is already there; choose another folder, or overwrite it")
        _clear(output)
        stacks = _plan_stacks(config, scene, output)
        try:
            scales = _write_stacks(config, scene, stacks, progress)
            truth = _write_truth(config, scene, scales, output / TRUTH_FOLDER)
            write_recipe(config, output)
            _write_particles(config, scene, stacks, star)
        except OSError:
            # Half of a set on a full disk is of no use, and in the way.
            with suppress(OSError):
                _clear(output)
            raise
    paths = tuple(stack.path for stack in stacks)
    return SimulatedSet(star, paths, truth, config.pixel_size_angstrom, config.box_size)


def _clear(output: Path) -> None:
    """Make the folder and take away what an earlier set left there, its .star first."""
    output.mkdir(parents=True, exist_ok=True)
    (output / STAR_NAME).unlink(missing_ok=True)
    truth = output / TRUTH_FOLDER
    others = output.glob(RECIPE), output.glob("particles*.mrcs"), truth.glob("volume_*.mrc"), truth.glob(TRUTH_TABLE)
    for old in chain(*others):
        old.unlink()


@dataclass(frozen=True, slots=True)
class _Stack:
    """A stack to be written: its session, and the rows of each block of its images."""

    path: Path
    session: int
    blocks: tuple[slice, ...]

    @property
    def rows(self) -> range:
        """All its rows."""
        return range(self.blocks[0].start, self.blocks[-1].stop)


def _plan_stacks(config: SimulationConfig, scene: Scene, output: Path) -> tuple[_Stack, ...]:
    """Cut every session into stacks, and these into blocks."""
    size = max(1, min(256, _BLOCK_PIXELS // scene.box**2))
    cuts = [
        (number, rows)
        for number, session in enumerate(scene.sessions)
        for rows in _cut(session.rows, config.images_per_stack)
    ]
    names = ["particles.mrcs"] if len(cuts) == 1 else [f"particles_{number:03d}.mrcs" for number in range(len(cuts))]
    return tuple(
        _Stack(output / name, session, tuple(_cut(rows, size)))
        for name, (session, rows) in zip(names, cuts, strict=True)
    )


def _cut(rows: slice, size: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _write_stacks(
    config: SimulationConfig, scene: Scene, stacks: tuple[_Stack, ...], progress: Progress | None
) -> list[NoiseScale]:
    """Write the images of every session; returns the session's scales."""
    seed = config.seed if config.noise_seed is None else config.noise_seed
    noise, ice, scales = stream(seed, Stream.NOISE), stream(seed, Stream.ICE), []
    for number, session in enumerate(scene.sessions):
        own = [stack for stack in stacks if stack.session == number]
        camera = Camera.of(scene, session)
        made = _tell_progress(_make_particles(camera, own), session.rows.start, config.particles, progress)
        kept = min(_CALIBRATION_IMAGES, session.rows.stop - session.rows.start, _CALIBRATION_PIXELS // scene.box**2)
        head = _take_head(made, max(1, kept))
        scale = measure_noise_scale(session.snr, scene.box / config.box_size, torch.cat(head)[: max(1, kept)])
        film = _Film(config, camera, session, scale, _mix_colour(config, scene, session))
        images = _chain(head, made)
        for stack in own:
            with new_stack(stack.path, film.pixel_size_angstrom, (_LABEL,)) as writer:
                for rows in stack.blocks:
                    writer.append(film.expose(next(images), rows, noise, ice))
        scales.append(scale)
    return scales


def _make_particles(camera: Camera, stacks: list[_Stack]) -> Iterator[Tensor]:
    for stack in stacks:
        for rows in stack.blocks:
            yield camera.particles(torch.arange(rows.start, rows.stop))


def _tell_progress(made: Iterator[Tensor], done: int, total: int, progress: Progress | None) -> Iterator[Tensor]:
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


@dataclass(frozen=True, slots=True)
class _Film:
    """Turns what a session's images show into images as they are written."""

    config: SimulationConfig
    camera: Camera
    session: Session
    scale: NoiseScale
    colour: Colour

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the written images."""
        return self.session.box_length_angstrom / self.config.box_size

    def expose(
        self, particles: Tensor, rows: slice, noise: np.random.Generator, ice: np.random.Generator
    ) -> NDArray[np.float32]:
        """Scaled, of some contrast, noisy, then cropped to the box, on a background."""
        scene, index = self.camera.scene, torch.arange(rows.start, rows.stop)
        amplitude = torch.from_numpy(scene.brightness.amplitude[rows, None, None])
        images = self.camera.shown(particles, index) * self.scale.signal * amplitude
        if self.scale.noise:
            images += self.colour.shot(len(images), scene.box, noise) * self.scale.noise
            if self.colour.ice_share:
                images += self.colour.ice(self.camera.transfer(index), ice) * self.scale.noise
        cropped = crop_images(images, self.config.box_size)
        return (cropped + scene.brightness.background(rows, self.config.box_size)).numpy()


def _mix_colour(config: SimulationConfig, scene: Scene, session: Session) -> Colour:
    nyquist = config.box_size / (2 * session.box_length_angstrom)
    return mix_colour(session.noise, scene.box, session.box_length_angstrom, nyquist)


def _write_truth(config: SimulationConfig, scene: Scene, scales: list[NoiseScale], folder: Path) -> Path:
    """Write reference maps, in the units of the first session, and one row per image of what is true of it."""
    folder.mkdir(exist_ok=True)
    states = scene.states
    for number, (state, coordinate) in enumerate(zip(states.volume_state, states.volume_coordinate, strict=True)):
        voxels = scene.imager.volume(float(coordinate), config.box_size) * scales[0].signal
        labels = (_LABEL, f"state {state:.6g}")
        write_volume(folder / f"volume_{number:03d}.mrc", Volume(voxels, config.pixel_size_angstrom), labels)
    with replaced(folder / TRUTH_TABLE) as beside, beside.open("wb") as stream:
        np.savez(
            stream,
            state=states.state,
            rotation=scene.poses.rotation,
            shift_angstrom=scene.poses.shift_angstrom,
            defocus_u_angstrom=scene.ctf.true.defocus_u_angstrom.numpy(),
            defocus_v_angstrom=scene.ctf.true.defocus_v_angstrom.numpy(),
            amplitude=scene.brightness.amplitude,
            offset=scene.brightness.offset,
            gradient=scene.brightness.gradient,
            junk=scene.junk.kind,
            volume_state=states.volume_state,
            period=np.float64(states.period),
            discrete=np.bool_(states.discrete),
        )
    return folder


def _write_particles(config: SimulationConfig, scene: Scene, stacks: tuple[_Stack, ...], star: Path) -> None:
    given = scene.ctf.given
    lengths = [len(stack.rows) for stack in stacks]
    stack = np.repeat(np.arange(len(stacks)), lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    optics, optics_group = group_particles(config, scene.sessions, given)
    table = ParticleTable(
        source=star,
        stack_paths=tuple(stack.path for stack in stacks),
        stack=stack.astype(np.int32),
        stack_index=index,
        rotation=scene.poses.given_rotation,
        shift_angstrom=scene.poses.given_shift_angstrom,
        defocus_u_angstrom=given.defocus_u_angstrom.numpy(),
        defocus_v_angstrom=given.defocus_v_angstrom.numpy(),
        defocus_angle_deg=given.defocus_angle_deg.numpy(),
        phase_shift_deg=given.phase_shift_deg.numpy(),
        optics=optics,
        optics_group=optics_group,
        half_set=draw_half_sets(config),
        uid=np.zeros(config.particles, np.uint64),
        source_row=np.arange(config.particles),
    )
    names = [f"{i + 1:06d}@{stacks[s].path.name}" for s, i in zip(stack.tolist(), index.tolist(), strict=True)]
    write_star(star, table, names)
