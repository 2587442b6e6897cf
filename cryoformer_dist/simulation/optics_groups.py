"""Sessions at the microscope: optics groups, one after the other in the file, each with its own dose and pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.config.nuisances import NoiseConfig, OpticsGroupConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.io.particles import OpticsColumns, OpticsGroup, group_optics
from cryoformer_dist.physics.ctf import CTFParams


@dataclass(frozen=True, slots=True)
class Session:
    """Particles of one optics group.

    Attributes
    ----------
    rows
        Of the set; a session's are consecutive.
    box_length_angstrom
        Side of its images.
    snr
        As `SimulationConfig.snr`.
    noise
        Colour of its noise.
    """

    rows: slice
    box_length_angstrom: float
    snr: float | None
    noise: NoiseConfig


def plan_sessions(config: SimulationConfig) -> tuple[Session, ...]:
    """Share the particles out by weight, in order; a single session when no optics groups are named."""
    groups = config.nuisances.optics_groups or (OpticsGroupConfig(),)
    ends = np.cumsum([group.weight for group in groups])
    cuts = [0, *np.rint(ends / ends[-1] * config.particles).astype(int).tolist()]
    return tuple(
        Session(
            rows=slice(first, last),
            box_length_angstrom=(
                config.box_length_angstrom
                if group.pixel_size_angstrom is None
                else group.pixel_size_angstrom * config.box_size
            ),
            snr=group.snr or config.snr,
            noise=group.noise or config.nuisances.noise,
        )
        for group, first, last in zip(groups, cuts[:-1], cuts[1:], strict=True)
        if last > first
    )


def group_particles(
    config: SimulationConfig, sessions: tuple[Session, ...], ctf: CTFParams
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """Group particles by session and microscope setting: the groups, and that of every particle, `(particles,)`."""
    count = [session.rows.stop - session.rows.start for session in sessions]
    pixel = [session.box_length_angstrom / config.box_size for session in sessions]
    return group_optics(
        OpticsColumns(
            pixel_size_angstrom=np.repeat(pixel, count),
            box_size=np.full(config.particles, config.box_size),
            voltage_kv=ctf.voltage_kv.numpy(),
            spherical_aberration_mm=ctf.spherical_aberration_mm.numpy(),
            amplitude_contrast=ctf.amplitude_contrast.numpy(),
            group=np.repeat(np.arange(len(sessions)), count),
            names={},
            terms=np.zeros(config.particles, np.int64),
            term_names=(),
        )
    )
