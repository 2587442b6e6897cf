"""Everything an image shows, before dose and noise: molecule, pose, CTF, and what is no particle."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.config.simulation import SimulationConfig, VolumesSource
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.simulation.acquisition import (
    CtfDraw,
    PoseDraw,
    StateDraw,
    draw_ctf,
    draw_poses,
    draw_states,
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
from cryoformer_dist.simulation.nuisances import (
    Brightness,
    Junk,
    JunkDraw,
    draw_blobs,
    draw_brightness,
    draw_junk,
    put_beside,
)
from cryoformer_dist.simulation.optics_groups import Session, plan_sessions


@dataclass(frozen=True, slots=True)
class Scene:
    """The molecule, and what chance decided for every image.

    Attributes
    ----------
    imager
        For images of the usual pixel size; it also makes the reference maps.
    sessions
        Their rows make up the set.
    box
        The simulated one.
    b_factor
        Square angstrom.
    """

    imager: AtomImager | VolumeImager
    sessions: tuple[Session, ...]
    states: StateDraw
    poses: PoseDraw
    ctf: CtfDraw
    brightness: Brightness
    junk: JunkDraw
    box: int
    b_factor: float


@dataclass(frozen=True, slots=True)
class Camera:
    """Images of one session, at the simulated box and before any scaling."""

    scene: Scene
    imager: AtomImager | VolumeImager
    pixel_size_angstrom: float

    @classmethod
    def of(cls, scene: Scene, session: Session) -> "Camera":
        """Look at the scene with the session's pixels."""
        imager, length = scene.imager, session.box_length_angstrom
        if isinstance(imager, AtomImager):
            imager = replace(imager, box_length_angstrom=length)
        return cls(scene, imager, length / scene.box)

    def transfer(self, rows: Tensor) -> Float[Tensor, "images box half"]:
        """CTF of the images, damped by the B-factor."""
        frequency = frequency_grid(self.scene.box)[None] / self.pixel_size_angstrom
        ctf = contrast_transfer_function(self.scene.ctf.true[rows], frequency)
        if not self.scene.b_factor:
            return ctf
        return ctf * torch.exp(-self.scene.b_factor / 4 * frequency.square().sum(-1))

    def particles(self, rows: Tensor) -> Float[Tensor, "images box box"]:
        """The molecule alone, under the CTF."""
        return fourier_to_image(self._project(rows, centred=False) * self.transfer(rows), self.scene.box)

    def shown(self, particles: Float[Tensor, "images box box"], rows: Tensor) -> Float[Tensor, "images box box"]:
        """What the images of these `particles` really show, junk and all."""
        kind = torch.from_numpy(self.scene.junk.kind)[rows]
        if not kind.any():
            return particles
        images = particles.clone()
        images[(kind == Junk.EMPTY) | (kind == Junk.BLOBS)] = 0
        for junk, transform in ((Junk.NEIGHBOURS, self._neighbours), (Junk.BLOBS, self._blobs)):
            spoilt = kind == junk
            if spoilt.any():
                added = transform(rows[spoilt]) * self.transfer(rows[spoilt])
                images[spoilt] += fourier_to_image(added, self.scene.box)
        return images

    def _project(self, rows: Tensor, *, centred: bool) -> Complex[Tensor, "images box half"]:
        """Before the CTF, at the true pose or in the middle of the image."""
        index, poses = rows.numpy(), self.scene.poses
        shift = torch.from_numpy(poses.shift_angstrom[index])
        rotation = torch.from_numpy(poses.rotation[index])
        coordinate = self.scene.states.coordinate[index]
        return self.imager.project(Views(coordinate, rotation, torch.zeros_like(shift) if centred else shift))

    def _neighbours(self, rows: Tensor) -> Complex[Tensor, "images box half"]:
        others = torch.from_numpy(self.scene.junk.neighbour)[rows]
        alone = fourier_to_image(self._project(others, centred=True), self.scene.box)
        return image_to_fourier(put_beside(alone, self.scene.junk.offset[rows.numpy()]))

    def _blobs(self, rows: Tensor) -> Complex[Tensor, "images box half"]:
        weight = self._project(rows, centred=True)[:, :1, :1].real
        return draw_blobs(self.scene.junk, rows.numpy(), self.scene.box) * weight


def make_scene(config: SimulationConfig) -> Scene:
    """Read or build the molecule and draw what chance decides.

    Raises
    ------
    ConfigError
        If a file is missing or unfit, or the molecule leaves the box.
    """
    poses, sessions = draw_poses(config), plan_sessions(config)
    imager, states = _load_source(config, poses, sessions)
    return Scene(
        imager=imager,
        sessions=sessions,
        states=states,
        poses=poses,
        ctf=draw_ctf(config),
        brightness=draw_brightness(config),
        junk=draw_junk(config),
        box=config.simulated_box,
        b_factor=config.nuisances.ctf_errors.b_factor,
    )


def _load_source(
    config: SimulationConfig, poses: PoseDraw, sessions: tuple[Session, ...]
) -> tuple[AtomImager | VolumeImager, StateDraw]:
    box, length = config.simulated_box, config.box_length_angstrom
    if isinstance(config.source, VolumesSource):
        classes = len(config.source.paths)
        volumes = load_volumes(config.source.paths, box, length)
        return volumes, draw_states(config, (0.0, float(classes - 1)), 0.0, classes)
    molecule = build_molecule(config.source)
    least = min(length, *(session.box_length_angstrom for session in sessions))
    _require_fit(least, reach_angstrom(molecule), float(np.abs(poses.shift_angstrom).max()))
    sigma = DEFAULT_SIGMA_PIXELS * length / box
    if config.resolution_angstrom is not None:
        sigma = config.resolution_angstrom * SIGMA_PER_RESOLUTION
    states = draw_states(config, molecule.state_range, molecule.period, molecule.frames)
    return AtomImager(molecule, box, length, sigma), states


def _require_fit(length_angstrom: float, radius_angstrom: float, largest_shift_angstrom: float) -> None:
    needed = 2 * (radius_angstrom + largest_shift_angstrom)
    if needed > length_angstrom:
        raise ConfigError(
            f"box_length_angstrom: {length_angstrom:.5g} A is too small for a molecule "
            f"{2 * radius_angstrom:.0f} A across in motion, shifted by up to {largest_shift_angstrom:.1f} A; "
            f"set at least {needed:.0f}"
        )
