"""What chance, or a table, gives each simulated particle: state, pose, CTF and half-set.

Every purpose draws from a random stream of its own, so changing one (a shift range, a defocus range, the
noise) leaves the others as they were.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cryoformer_dist.config.simulation import MicroscopeConfig, PosesConfig, SimulationConfig, StatesConfig
from cryoformer_dist.errors import ConfigError, CryoFormerError, ParticleFormatError
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.physics.ctf import CTFParams
from cryoformer_dist.physics.pose import (
    nearest_rotation,
    random_rotations,
    rotation_from_axis_angle,
    rotation_from_relion_euler,
)
from cryoformer_dist.storage.array_files import read_arrays

_IDEAL_PHASE_PLATE_DEG = 90.0


class Stream(IntEnum):
    """Purposes that draw random numbers; their values never change, or old seeds would give other sets."""

    STATES = 0
    ROTATIONS = 1
    SHIFTS = 2
    CTF = 3
    NOISE = 4
    PERTURBATION = 5
    HALF_SETS = 6
    TABLE_ROWS = 7
    CROWD = 8
    VIEWS = 9
    CTF_ERRORS = 10
    BRIGHTNESS = 11
    JUNK = 12
    ICE = 13


def stream(seed: int, purpose: Stream) -> np.random.Generator:
    """Return the random numbers of one purpose."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(purpose),)))


@dataclass(frozen=True, slots=True)
class StateDraw:
    """Where each particle is on the motion.

    Attributes
    ----------
    state
        `(particles,)` what the truth records: the coordinate, or the class number of a discrete set.
    coordinate
        `(particles,)` what the imager takes: degrees, fraction of the path, or number of the map.
    volume_state, volume_coordinate
        `(volumes,)` the same for the reference maps.
    period
        State difference after which the states repeat; 0 when never.
    discrete
        Whether states are class numbers.
    """

    state: NDArray[np.float64]
    coordinate: NDArray[np.float64]
    volume_state: NDArray[np.float64]
    volume_coordinate: NDArray[np.float64]
    period: float
    discrete: bool


@dataclass(frozen=True, slots=True)
class PoseDraw:
    """Clean poses, and those the .star will give: `(particles, 3, 3)` and `(particles, 2)`."""

    rotation: NDArray[np.float32]
    shift_angstrom: NDArray[np.float32]
    given_rotation: NDArray[np.float32]
    given_shift_angstrom: NDArray[np.float32]


def draw_states(
    config: SimulationConfig, state_range: tuple[float, float], period: float, classes: int | None
) -> StateDraw:
    """Draw uniform states of a motion (references at bin centres), or classes by weight (one each).

    Parameters
    ----------
    config
        The simulation.
    state_range, period
        Of the molecule's coordinate.
    classes
        Models or maps of the source, None for a motion given by an angle.

    Raises
    ------
    ConfigError
        If ``states.weights`` does not have one number per class.
    """
    generator = stream(config.seed, Stream.STATES)
    first, last = state_range
    states = config.states
    if states.kind == "continuous":
        state = _crowd(generator.uniform(first, last, config.particles), config, state_range)
        centres = first + (np.arange(states.truth_volumes) + 0.5) / states.truth_volumes * (last - first)
        return StateDraw(state, state, centres, centres, period, discrete=False)
    count = states.count or classes or 1
    steps = np.linspace(first, last, count, endpoint=period == 0)
    chosen = generator.choice(count, config.particles, p=_populations(states, count))
    numbers = np.arange(count, dtype=np.float64)
    return StateDraw(
        chosen.astype(np.float64),
        steps[chosen],
        numbers,
        steps,
        float(count) if period else 0.0,
        discrete=True,
    )


def _crowd(
    state: NDArray[np.float64], config: SimulationConfig, state_range: tuple[float, float]
) -> NDArray[np.float64]:
    """Move a share of the particles into a part of the motion."""
    crowd, (first, last) = config.nuisances.crowd, state_range
    if not crowd.share:
        return state
    generator = stream(config.seed, Stream.CROWD)
    moved = generator.random(len(state)) < crowd.share
    place = crowd.centre + crowd.width * (generator.random(len(state)) - 0.5)
    return np.where(moved, first + place * (last - first), state)


def _populations(states: StatesConfig, count: int) -> NDArray[np.float64]:
    if not states.weights:
        return np.full(count, 1 / count)
    if len(states.weights) != count:
        raise ConfigError(f"states.weights: {len(states.weights)} numbers for {count} classes; give one per class")
    weights = np.asarray(states.weights)
    return np.asarray(weights / weights.sum())


def draw_poses(config: SimulationConfig) -> PoseDraw:
    """Draw poses uniform over SO(3) and the shift range, or of the table, and the same with the asked errors.

    Notes
    -----
    Errors as in the paper's section 5.4: a Gaussian of the given variance on every entry of the rotation
    matrix, projected back onto SO(3), and a uniform shift. Errors as a refinement leaves them: a Gaussian
    rotation about each axis of the image, and a Gaussian shift.
    """
    if config.poses.table is None:
        rotation, shift = _draw_uniform_poses(config)
    else:
        rotation, shift = _take_poses(config.poses, config.poses.table, config)
    errors = config.perturbation
    generator = stream(config.seed, Stream.PERTURBATION)
    noise = generator.standard_normal(rotation.shape) * np.sqrt(errors.rotation_variance)
    limit = errors.shift_pixels * config.box_length_angstrom / errors.reference_box
    given_shift = shift + generator.uniform(-1.0, 1.0, shift.shape) * limit
    turn = generator.standard_normal((len(rotation), 3)) * np.deg2rad(errors.rotation_sd_deg)
    given_shift += generator.standard_normal(shift.shape) * (errors.shift_sd_pixels * config.pixel_size_angstrom)
    given = rotation
    if errors.rotation_variance > 0:
        given = nearest_rotation(torch.from_numpy(rotation + noise)).numpy().astype(np.float32)
    if errors.rotation_sd_deg > 0:
        given = (rotation_from_axis_angle(torch.from_numpy(turn)).numpy() @ rotation).astype(np.float32)
    return PoseDraw(rotation, shift, given, given_shift.astype(np.float32))


def _draw_uniform_poses(config: SimulationConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    seed = int(stream(config.seed, Stream.ROTATIONS).integers(2**63))
    rotation = random_rotations(config.particles, torch.Generator().manual_seed(seed)).numpy()
    rotation = _prefer_views(rotation, config)
    limit = config.poses.max_shift_fraction * config.box_length_angstrom
    shift = stream(config.seed, Stream.SHIFTS).uniform(-limit, limit, (config.particles, 2))
    return rotation, shift.astype(np.float32)


def _prefer_views(rotation: NDArray[np.float32], config: SimulationConfig) -> NDArray[np.float32]:
    """Turn a share of the particles so that they are seen from a cap about the molecule's z axis."""
    views = config.nuisances.views
    if not views.share:
        return rotation
    generator, count = stream(config.seed, Stream.VIEWS), len(rotation)
    chosen = generator.random(count) < views.share
    # Equal areas of the cap are equal steps of the cosine.
    tilt = np.rad2deg(np.arccos(generator.uniform(np.cos(np.deg2rad(views.cap_deg)), 1.0, count)))
    rot, psi = generator.uniform(0.0, 360.0, (2, count))
    capped = rotation_from_relion_euler(torch.from_numpy(np.stack([rot, tilt, psi], axis=1)))
    return np.where(chosen[:, None, None], capped.numpy(), rotation).astype(np.float32)


def _take_poses(
    poses: PosesConfig, table: Path, config: SimulationConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if table.suffix == ".npz":
        arrays = _read_npz_columns("poses.table", table, ("rotation", "shift_angstrom"), ())
        rotation, shift = arrays["rotation"], arrays["shift_angstrom"]
    else:
        particles = _read_particle_table("poses.table", table, require_poses=True)
        pose = particles.pose()
        rotation, shift = pose.rotation.numpy(), pose.shift_angstrom.numpy()
    if rotation.shape[1:] != (3, 3) or shift.shape != (len(rotation), 2):
        raise ConfigError(
            f"poses.table: {table}: rotation {rotation.shape} and shift_angstrom {shift.shape} must be "
            "(rows, 3, 3) and (rows, 2)"
        )
    worst = float(np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(initial=0.0))
    if worst > 1e-3 or (np.linalg.det(rotation) < 0).any():
        raise ConfigError(
            f"poses.table: {table}: rotation holds matrices that are no rotations; give RELION matrices A"
        )
    rows = _choose_rows("poses", table, len(rotation), poses.rows, config)
    return rotation[rows].astype(np.float32), shift[rows].astype(np.float32)


@dataclass(frozen=True, slots=True)
class CtfDraw:
    """CTF of the images, and that of the .star."""

    true: CTFParams
    given: CTFParams


def draw_ctf(config: SimulationConfig) -> CtfDraw:
    """Draw the CTF of every particle, and the same with the asked errors."""
    ctf, errors = _draw_exact_ctf(config), config.nuisances.ctf_errors
    error = stream(config.seed, Stream.CTF_ERRORS).standard_normal(config.particles) * errors.defocus_sd_angstrom
    off = torch.from_numpy(error.astype(np.float32))
    given = replace(
        ctf, defocus_u_angstrom=ctf.defocus_u_angstrom + off, defocus_v_angstrom=ctf.defocus_v_angstrom + off
    )
    if errors.true_amplitude_contrast is not None:
        ctf = replace(ctf, amplitude_contrast=torch.full((config.particles,), errors.true_amplitude_contrast))
    return CtfDraw(ctf, given)


def _draw_exact_ctf(config: SimulationConfig) -> CTFParams:
    """From ranges or a table, or an ideal phase plate's (CTF 1)."""
    if config.ctf.table is not None:
        return _take_ctf(config.ctf, config.ctf.table, config)
    settings, count = config.ctf, config.particles
    if not settings.apply:
        zero = torch.zeros(count)
        return CTFParams(
            *(zero, zero, zero, zero + _IDEAL_PHASE_PLATE_DEG, zero + settings.voltage_kv),
            *(zero, zero),
        )
    generator = stream(config.seed, Stream.CTF)
    mean = generator.uniform(settings.min_defocus_angstrom, settings.max_defocus_angstrom, count)
    half_difference = generator.uniform(0, settings.max_astigmatism_angstrom / 2, count)
    angle = generator.uniform(0, 180, count)
    return _make_ctf(settings, mean + half_difference, mean - half_difference, angle)


def _make_ctf(
    settings: MicroscopeConfig,
    defocus_u_angstrom: NDArray[np.float64],
    defocus_v_angstrom: NDArray[np.float64],
    defocus_angle_deg: NDArray[np.float64],
    phase_shift_deg: NDArray[np.float64] | None = None,
) -> CTFParams:
    """One microscope for all particles."""
    count = len(defocus_u_angstrom)
    phase = np.full(count, settings.phase_shift_deg) if phase_shift_deg is None else phase_shift_deg
    columns = (defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg, phase)
    microscope = (settings.voltage_kv, settings.spherical_aberration_mm, settings.amplitude_contrast)
    return CTFParams(
        *(torch.from_numpy(np.asarray(column, np.float32)) for column in columns),
        *(torch.full((count,), value) for value in microscope),
    )


def _take_ctf(settings: MicroscopeConfig, table: Path, config: SimulationConfig) -> CTFParams:
    if table.suffix == ".npz":
        names = ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_deg")
        columns = _read_npz_columns("ctf.table", table, names, ("phase_shift_deg",))
        params = _make_ctf(
            settings,
            columns["defocus_u_angstrom"],
            columns["defocus_v_angstrom"],
            columns["defocus_angle_deg"],
            columns.get("phase_shift_deg"),
        )
    else:
        params = _read_particle_table("ctf.table", table, require_poses=False).ctf_params()
    rows = _choose_rows("ctf", table, len(params.voltage_kv), settings.rows, config)
    return params[torch.from_numpy(rows)]


def _read_particle_table(key: str, path: Path, *, require_poses: bool) -> ParticleTable:
    """Another program's particle file; its images are not needed."""
    try:
        return read_particles(path, require_poses=require_poses)
    except ParticleFormatError as error:
        raise ConfigError(f"{key}: {error}") from error


def _read_npz_columns(
    key: str, path: Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    try:
        arrays = read_arrays(path, "write it with numpy.savez")
        columns = {name: np.asarray(arrays[name], np.float64) for name in (*required, *optional) if name in arrays}
    except (CryoFormerError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise ConfigError(f"{key}: {path} lacks {', '.join(missing)}; store one row per particle")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise ConfigError(f"{key}: {path} has columns of different lengths {lengths}; store one row per particle")
    if not all(np.isfinite(column).all() for column in columns.values()):
        raise ConfigError(f"{key}: {path} holds numbers that are not finite; correct those rows")
    return columns


def _choose_rows(section: str, table: Path, available: int, order: str, config: SimulationConfig) -> NDArray[np.int64]:
    if order == "random" and available:
        generator = np.random.default_rng(
            np.random.SeedSequence(config.seed, spawn_key=(int(Stream.TABLE_ROWS), section == "ctf"))
        )
        return generator.integers(0, available, config.particles)
    if available < config.particles:
        raise ConfigError(
            f"{section}.table: {table} has {available} rows for {config.particles} particles; set "
            f"{section}.rows: random, or lower particles"
        )
    return np.arange(config.particles)


def draw_half_sets(config: SimulationConfig) -> NDArray[np.int8]:
    """Draw half-set 1 or 2 of every particle, `(particles,)`: equally many of each, in random order."""
    half = (np.arange(config.particles) % 2 + 1).astype(np.int8)
    return stream(config.seed, Stream.HALF_SETS).permutation(half)
