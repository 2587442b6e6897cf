"""First poses from projection matching: each particle looks around its given pose for a better one.

Gradients alone stop at the next hill: errors of 15 degrees are many hills at full resolution. A local search against a
rigid map, from coarse to fine, brings all but a few particles within reach of them in seconds. Both halves of the
particles are searched apart, each against its own map, so their agreement tells whether the search did any good.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import (
    crop_images,
    fourier_shell_correlation,
    image_to_fourier,
    volume_to_fourier,
)
from cryoformer_dist.physics.grids import centred_axis, frequency_grid
from cryoformer_dist.physics.pose import Pose, nearest_rotation, rotation_from_axis_angle

_BLOCK = 64
_WIENER = 0.3
_PADDING = 2


@dataclass(frozen=True, slots=True)
class Round:
    """One sweep over the particles.

    Attributes
    ----------
    shell
        Highest frequency that is compared, in Fourier shells of the box.
    cone_deg
        Largest rotation tried away from the pose so far.
    candidates
        Rotations tried.
    shift_radius, shift_step
        Shifts tried about the one so far, in pixels of the box cropped for ``shell``.
    """

    shell: int
    cone_deg: float
    candidates: int
    shift_radius: float
    shift_step: float

    @property
    def box(self) -> int:
        """Smallest box that holds the shell with room to interpolate."""
        return 2 * (self.shell + 2)


ROUNDS = (
    Round(8, 30.0, 100, 3.0, 0.5),
    Round(8, 25.0, 100, 2.0, 0.5),
    Round(10, 20.0, 100, 1.5, 0.5),
    Round(12, 14.0, 100, 1.0, 0.33),
    Round(14, 9.0, 60, 1.0, 0.25),
    Round(18, 6.0, 60, 0.5, 0.25),
    Round(22, 4.0, 40, 0.5, 0.25),
)
"""Coarse to fine; a step of the cone is about one radian of phase at the rim of the particle. Finer than the last round
is left to the gradients of training."""


@dataclass(frozen=True, slots=True)
class FoundPoses:
    """Outcome of a search.

    Attributes
    ----------
    pose
        Of every row asked for: the found poses, or the given ones if those agree better.
    agreement_given, agreement_found
        Mean FSC between the maps of the two halves, at the given poses and at the found ones.
    """

    pose: Pose
    agreement_given: float
    agreement_found: float

    @property
    def kept(self) -> bool:
        """Whether the given poses were kept."""
        return self.agreement_found <= self.agreement_given


def search_poses(
    store: ParticleStore, rows: Rows, seed: int, progress: Callable[[int, int], None] | None = None
) -> FoundPoses:
    """Search around the given poses of some particles.

    Parameters
    ----------
    store
        Particle store, with poses.
    rows
        Particles.
    seed
        Of the rotations that are tried.
    progress
        Called with particles done and in all, over all rounds.
    """
    coarsest = replace(ROUNDS[0], shell=store.box_size // 2 - 2)
    rounds = [each for each in ROUNDS if each.box <= store.box_size] or [coarsest]
    halves = [_Half(store, rows[first::2]) for first in (0, 1)]
    done = 0
    for number, sweep in enumerate(rounds):
        for half in halves:
            for block in half.sweep(sweep, torch.Generator().manual_seed(seed + number)):
                done += block
                if progress is not None:
                    progress(done, len(rows) * len(rounds))
    given, found = [half.given for half in halves], [half.pose for half in halves]
    before, after = _agreement(halves, given, rounds[-1]), _agreement(halves, found, rounds[-1])
    chosen = found if after > before else given
    rotation, shift = torch.empty(len(rows), 3, 3), torch.empty(len(rows), 2)
    for first, pose in enumerate(chosen):
        rotation[first::2], shift[first::2] = pose.rotation, pose.shift_angstrom
    return FoundPoses(Pose(rotation, shift), before, after)


class _Half:
    """Particles that share a reference map, and their poses so far."""

    def __init__(self, store: ParticleStore, rows: Rows) -> None:
        self._store, self._rows, self._particles = store, rows, store.particles()
        self.given = self.pose = self._particles.pose(rows)

    def sweep(self, sweep: Round, generator: torch.Generator) -> Iterator[int]:
        """Move every particle to the best candidate around its pose; yields block sizes."""
        reference = _Reference(self.map(self.pose, sweep), sweep.shell)
        shifts = _disc(sweep.shift_radius, sweep.shift_step)
        cone = _ball(sweep.candidates, sweep.cone_deg, generator)
        rotation, shift_angstrom = self.pose.rotation.clone(), self.pose.shift_angstrom.clone()
        for start in range(0, len(self._rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            images, transfer, pixel = self._block(part, sweep, reference)
            turns = torch.einsum("pi,bi->bp", reference.frequency, shift_angstrom[part] / pixel)
            weighted = images * transfer * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
            candidates = torch.einsum("cij,bjk->bcik", cone, rotation[part])
            # Images of another pixel size see the map's frequencies elsewhere.
            scale = (self._store.pixel_size_angstrom * self._store.box_size / sweep.box) / pixel
            turn, move = reference.best(weighted, transfer, candidates * scale[:, None, None], shifts)
            rotation[part] = candidates[torch.arange(len(turn)), turn]
            shift_angstrom[part] += shifts[move] * pixel
            yield len(turn)
        self.pose = _in_frame_of(self.given, Pose(rotation, shift_angstrom))

    def map(self, pose: Pose, sweep: Round) -> Tensor:
        """Back-projection at the given poses, at the round's box."""
        accumulator = FourierAccumulator(sweep.box, self._store.pixel_size_angstrom * self._store.box_size / sweep.box)
        for start in range(0, len(self._rows), 4 * _BLOCK):
            part = slice(start, start + 4 * _BLOCK)
            rows = self._rows[part]
            pixel = torch.from_numpy(self._particles.pixel_size_angstrom[rows]) * (self._store.box_size / sweep.box)
            here = Pose(pose.rotation[part], pose.shift_angstrom[part])
            accumulator.add(self._cropped(part, sweep), here, self._particles.ctf(rows), pixel)
        return accumulator.solve(_WIENER)

    def _cropped(self, part: slice, sweep: Round) -> Tensor:
        images = torch.from_numpy(self._store.read_images(self._rows[part]).astype(np.float32))
        # Cropping averages noise away; the factor brings its standard deviation back to one.
        return crop_images(images, sweep.box) * (self._store.box_size / sweep.box)

    def _block(self, part: slice, sweep: Round, reference: "_Reference") -> tuple[Tensor, Tensor, Tensor]:
        """Transforms, transfer functions and cropped pixel sizes at the frequencies that are compared."""
        rows = self._rows[part]
        pixel = torch.from_numpy(self._particles.pixel_size_angstrom[rows])[:, None] * (
            self._store.box_size / sweep.box
        )
        frequency = reference.frequency[None, :, None] / pixel[:, None, None]
        transfer = contrast_transfer_function(self._particles.ctf(rows), frequency)[..., 0]
        images = image_to_fourier(self._cropped(part, sweep)).flatten(1)[:, reference.place]
        return images, transfer, pixel


class _Reference:
    """A map's transform, to be cut into slices at the frequencies within a shell."""

    def __init__(self, voxels: Float[Tensor, "box box box"], shell: int) -> None:
        box = voxels.shape[-1]
        grid = frequency_grid(box)
        radius = grid.norm(dim=-1) * box
        # On the column kx = 0 half says it all.
        inside = (radius > 0) & (radius <= shell) & ~((grid[..., 0] == 0) & (grid[..., 1] < 0))
        self.place = torch.nonzero(inside.ravel())[:, 0]
        self.frequency = grid.reshape(-1, 2)[self.place]
        self._size = box * _PADDING
        # Trilinear interpolation between coefficients multiplies the map by sinc^2: divide it out first.
        falloff = torch.sinc(centred_axis(box) / self._size) ** 2
        voxels = voxels / (falloff[:, None, None] * falloff[None, :, None] * falloff[None, None, :])
        margin = (self._size - box) // 2
        padded = torch.nn.functional.pad(voxels, (margin,) * 6)
        transform = torch.fft.fftshift(volume_to_fourier(padded))
        self._transform = torch.stack([transform.real, transform.imag])[None]

    def slices(self, rotation: Float[Tensor, "particles candidates 3 3"]) -> Complex[Tensor, "particles candidates k"]:
        """Central slices: the projection along z of a map turned by A is its transform at ``A^T (kx, ky, 0)``."""
        index = torch.einsum("pi,bcij->bcpj", self.frequency * self._size, rotation[..., :2, :])
        # The sampler counts from -1 to 1 between the outer faces of the grid; zero frequency sits at size / 2.
        position = (2 * index + 1) / self._size
        flat = position.reshape(1, 1, 1, -1, 3)
        found = torch.nn.functional.grid_sample(self._transform, flat, align_corners=False)[0]
        return torch.complex(found[0], found[1]).reshape(index.shape[:-1])

    def best(
        self,
        weighted: Complex[Tensor, "particles k"],
        transfer: Float[Tensor, "particles k"],
        rotation: Float[Tensor, "particles candidates 3 3"],
        shifts: Float[Tensor, "shifts 2"],
    ) -> tuple[Tensor, Tensor]:
        """Most likely candidate rotation and shift of each particle.

        Parameters
        ----------
        weighted
            Images centred by their shift so far, times the CTF.
        transfer
            CTF.
        rotation
            Candidates.
        shifts
            Candidates, pixels; as stored shifts, what centres the image.
        """
        slices = self.slices(rotation)
        power = (slices.abs().square() * transfer[:, None].square()).sum(-1)
        cross = slices.conj() * weighted[:, None]
        phase = -2 * torch.pi * self.frequency @ shifts.T
        # Real part of the sum over frequencies, for all shifts at once, as two products of real matrices.
        match = cross.real @ torch.cos(phase) - cross.imag @ torch.sin(phase)
        likelihood = (match - 0.5 * power[..., None]).flatten(1)
        winner = likelihood.argmax(1)
        return winner // len(shifts), winner % len(shifts)


def _in_frame_of(given: Pose, found: Pose) -> Pose:
    """Found poses after one rotation and one offset of the molecule that undo their common drift from the given ones.

    A map and all its poses may turn together unpunished: left alone, the halves drift apart by several degrees.
    """
    # Where the molecule's origin has gone: its image is the drift of the shifts that all views share.
    seen = found.rotation[:, :2].reshape(-1, 3)
    moved = (found.shift_angstrom - given.shift_angstrom).reshape(-1, 1)
    offset = torch.linalg.lstsq(seen, moved, driver="gelsd").solution
    turn = nearest_rotation((given.rotation.mT @ found.rotation).mean(0))
    return Pose(found.rotation @ turn.T, found.shift_angstrom - (seen @ offset).reshape(-1, 2))


def _agreement(halves: list[_Half], poses: list[Pose], sweep: Round) -> float:
    """Mean FSC of the halves' maps up to the round's shell."""
    first, second = (half.map(pose, sweep) for half, pose in zip(halves, poses, strict=True))
    curve = fourier_shell_correlation(first, second, 1.0)
    return float(curve.correlation[1 : sweep.shell + 1].mean())


def _ball(count: int, cone_deg: float, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Rotations evenly spread up to an angle; the first is none."""
    axis = torch.randn(count, 3, generator=generator)
    angle = np.deg2rad(cone_deg) * torch.rand(count, 1, generator=generator) ** (1 / 3)
    vector = axis / axis.norm(dim=1, keepdim=True) * angle
    vector[0] = 0
    return rotation_from_axis_angle(vector)


def _disc(radius: float, step: float) -> Float[Tensor, "shifts 2"]:
    """Shifts on a grid within a radius, none among them."""
    reach = int(radius / step)
    axis = torch.arange(-reach, reach + 1) * step
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return grid[grid.norm(dim=1) <= radius + 1e-6]
