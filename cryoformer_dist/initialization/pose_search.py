"""First poses from projection matching: each particle looks around its given pose for a better one.

Gradients alone stop at the next hill: errors of 15 degrees are many hills at full resolution. A local search against a
rigid map, from coarse to fine, brings all but a few particles within reach of them in seconds. Both halves of the
particles are searched apart, each against its own map, so their agreement tells whether the search did any good. Of a
molecule that moves, particles are then compared with maps of their own conformation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.initialization.occupancy import find_occupied
from cryoformer_dist.initialization.projection_matching import ReferenceMap
from cryoformer_dist.initialization.searched_images import SearchedImages, compared_disc
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import (
    crop_volume,
    fourier_shell_correlation,
    phase_ramp,
    upsample_volume,
    weighted_shells,
)
from cryoformer_dist.physics.neighbours import smooth
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, rotation_from_axis_angle
from cryoformer_dist.progress import Progress

_BLOCK = 64
_WIENER = 0.1
_CONFORMATIONS = 12
# Powers of one over the plastic number: the most even sequence in a square.
_PLASTIC_STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, slots=True)
class SearchRound:
    """What one round of a search tries at every particle.

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
    SearchRound(8, 30.0, 64, 3.0, 0.5),
    SearchRound(8, 25.0, 64, 2.0, 0.5),
    SearchRound(10, 20.0, 64, 1.5, 0.5),
    SearchRound(12, 14.0, 64, 1.0, 0.33),
    SearchRound(14, 9.0, 40, 1.0, 0.25),
    SearchRound(18, 5.0, 40, 0.5, 0.25),
    SearchRound(22, 3.0, 28, 0.5, 0.25),
)
"""Coarse to fine; a step of the cone is about one radian of phase at the rim of the particle. Finer than the last round
is left to the gradients of training."""

ROUNDS_BY_CONFORMATION = (
    (SearchRound(14, 8.0, 40, 0.5, 0.25), SearchRound(18, 6.0, 40, 0.5, 0.25)),
    (SearchRound(18, 6.0, 40, 0.5, 0.25), SearchRound(22, 4.0, 40, 0.5, 0.25)),
)
"""Once more from medium to fine with maps of the conformations, which are learned anew at better poses in between."""


@dataclass(frozen=True, slots=True)
class PoseSearchResult:
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


@dataclass(frozen=True, slots=True)
class LinearConformations:
    """What a linear model knows of the motion.

    Attributes
    ----------
    latents
        ``(particles, dimensions)`` coordinates, mean 0.
    maps
        ``(1 + dimensions, coarse, coarse, coarse)``: the mean map, and the change per unit of each coordinate.
    """

    latents: Tensor
    maps: Tensor

    def differences(self, latents: Float[Tensor, "conformations dimensions"], box: int) -> list[Tensor]:
        """Difference from the mean map at some conformations, on the lattice of a round's box."""
        coarse = self.maps.shape[-1]
        # Images keep the noise's standard deviation at every box, so a map's values go with the inverse square of it.
        grown = [upsample_volume(crop_volume(one, min(coarse, box)), box) for one in self.maps[1:]]
        weighted = torch.einsum("cd,dzyx->czyx", latents, torch.stack(grown))
        return list(weighted * (coarse / box) ** 2)


def search_poses(store: ParticleStore, rows: Rows, seed: int, progress: Progress | None = None) -> PoseSearchResult:
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
    rounds = _select_rounds(ROUNDS, store.box_size)
    halves = _read_halves(store, rows, rounds)
    done = 0
    for number, search_round in enumerate(rounds):
        for half, voxels in zip(halves, _make_references(halves, search_round.box), strict=True):
            everyone = np.zeros(len(half.given.rotation), dtype=np.int64)
            for block in half.search(search_round, [voxels], everyone, torch.Generator().manual_seed(seed + number)):
                done += block
                if progress is not None:
                    progress(done, len(rows) * len(rounds))
            half.pose = align_frame(half.given, half.pose)
    given, found = [half.given for half in halves], [half.pose for half in halves]
    before, after = _measure_agreement(halves, given, rounds[-1]), _measure_agreement(halves, found, rounds[-1])
    return PoseSearchResult(_interleave(found if after > before else given), before, after)


def search_poses_by_conformation(
    store: ParticleStore,
    rows: Rows,
    start: Pose,
    conformations: LinearConformations,
    rounds: Sequence[SearchRound],
    seed: int,
    progress: Progress | None = None,
) -> Pose:
    """Search around poses with a map for each of a dozen groups of particles of like conformation.

    The frame of each conformation is that of the given poses of its particles (see `molecule_frame`).

    Parameters
    ----------
    store
        Particle store, with the given poses.
    rows
        Particles.
    start
        Where to search around.
    conformations
        What is known of the motion.
    rounds
        One or more, those of them that the box holds.
    seed
        Of the rotations that are tried.
    progress
        Called with particles done and in all, over all rounds.
    """
    latents = conformations.latents
    group, centres = _group_by_conformation(latents, seed)
    rounds = _select_rounds(rounds, store.box_size)
    halves = _read_halves(store, rows, rounds)
    for first, half in enumerate(halves):
        half.pose = align_frame(half.given, start[torch.arange(first, len(rows), 2)], latents[first::2])
    done = 0
    for number, search_round in enumerate(rounds):
        differences = conformations.differences(centres, search_round.box)
        for first, voxels in enumerate(_make_references(halves, search_round.box)):
            half, own = halves[first], group[first::2]
            generator = torch.Generator().manual_seed(seed + number)
            for block in half.search(search_round, [voxels + difference for difference in differences], own, generator):
                done += block
                if progress is not None:
                    progress(done, len(rows) * len(rounds))
            half.pose = align_frame(half.given, half.pose, latents[first::2])
    return _interleave([half.pose for half in halves])


def _select_rounds(rounds: Sequence[SearchRound], box: int) -> Sequence[SearchRound]:
    """Take the rounds whose shells a box holds; for a very small box one at what it holds."""
    return [each for each in rounds if each.box <= box] or [replace(rounds[0], shell=box // 2 - 2)]


def _read_halves(store: ParticleStore, rows: Rows, rounds: Sequence[SearchRound]) -> list["_Half"]:
    """Every other particle, and the others: of neighbours in the store, so that each chunk is read once."""
    images = SearchedImages.read(store, rows, max(each.box for each in rounds), torch.device("cpu"))
    return [_Half(store, images[first::2]) for first in (0, 1)]


def _interleave(halves: Sequence[Pose]) -> Pose:
    count = sum(len(half.rotation) for half in halves)
    rotation, shift = torch.empty(count, 3, 3), torch.empty(count, 2)
    for first, pose in enumerate(halves):
        rotation[first::2], shift[first::2] = pose.rotation, pose.shift_angstrom
    return Pose(rotation, shift)


def _group_by_conformation(latents: Tensor, seed: int) -> tuple[NDArray[np.int64], Tensor]:
    """Group of each particle by its conformation, and the mean coordinates of each group."""
    count = min(_CONFORMATIONS, len(latents))
    _, label = kmeans2(latents.double().numpy(), count, minit="++", rng=seed)
    names, label = np.unique(label, return_inverse=True)
    return label, torch.stack([latents[torch.from_numpy(label == name)].mean(0) for name in range(len(names))])


class _Half:
    """Particles that share a reference map, and their poses so far."""

    def __init__(self, store: ParticleStore, images: SearchedImages) -> None:
        self._store, self._images, self._device = store, images, images.transfer.device
        self.given = self.pose = images.given

    def search(
        self, search_round: SearchRound, maps: Sequence[Tensor], group: NDArray[np.int64], generator: torch.Generator
    ) -> Iterator[int]:
        """Move every particle to the most probable candidate around its pose, by its group's map; yields sizes."""
        spread_deg = self._spread_deg(search_round)
        shifts = list_shifts(search_round.shift_radius, search_round.shift_step).to(self._device)
        cone = draw_cone(search_round.candidates, search_round.cone_deg, generator).to(self._device)
        rotation, shift_angstrom = self.pose.rotation.clone(), self.pose.shift_angstrom.clone()
        for name, voxels in enumerate(maps):
            reference = ReferenceMap(voxels.to(self._device), search_round.shell)
            members = torch.from_numpy(np.flatnonzero(group == name)).to(self._device)
            for start in range(0, len(members), _BLOCK):
                part = members[start : start + _BLOCK]
                block = self._images[part]
                pixel, scale = block.pixel_size_at(search_round.box), block.magnification
                images, transfer = block.at(search_round.box, reference.slices.flat_index)
                weighted = images * transfer * phase_ramp(reference.slices.frequency, shift_angstrom[part] / pixel)
                candidates = torch.einsum("cij,bjk->bcik", cone, rotation[part])
                away = rotation_angle_deg(candidates, block.given.rotation[:, None].expand_as(candidates))
                turn, move = reference.find_most_probable(
                    weighted,
                    images.abs().square().sum(1),
                    transfer,
                    # Images of another pixel size see the map's frequencies elsewhere.
                    candidates * scale[:, None, None, None],
                    -0.5 * (away / spread_deg) ** 2,
                    shifts,
                )
                rotation[part] = candidates[torch.arange(len(turn)), turn]
                shift_angstrom[part] += shifts[move] * pixel
                yield len(turn)
        self.pose = Pose(rotation, shift_angstrom)

    def _spread_deg(self, search_round: SearchRound) -> float:
        """How far the given rotations are taken to be off, about each axis: what the search has found of it so far.

        Without that prior, noise draws one particle in ten of a smooth molecule to the far side of its cone, and no
        later round brings it back. It is never narrower than a third of the cone: no round is kept from looking.
        """
        moved = rotation_angle_deg(self.pose.rotation, self.given.rotation).double()
        return max(float((moved.square().sum() / len(moved) / 3).sqrt()), search_round.cone_deg / 3)

    def pixel_size_at(self, box: int) -> float:
        """Voxel size in angstrom of maps cropped to a box."""
        return self._store.pixel_size_angstrom * self._store.box_size / box

    def back_project(self, pose: Pose, box: int) -> Tensor:
        """Make the map of the particles at some poses, cropped to a box."""
        accumulator = FourierAccumulator(box, self.pixel_size_at(box), self._device)
        flat_index, frequency = (each.to(self._device) for each in compared_disc(box))
        for start in range(0, len(self._images), 4 * _BLOCK):
            part = slice(start, start + 4 * _BLOCK)
            block = self._images[part]
            images, transfer = block.at(box, flat_index)
            centred = images * phase_ramp(frequency, pose.shift_angstrom[part] / block.pixel_size_at(box))
            rotation = pose.rotation[part] * block.magnification[:, None, None]
            accumulator.insert(frequency, centred, transfer, rotation)
        return accumulator.solve(_WIENER)


def _make_references(halves: Sequence[_Half], box: int) -> list[Tensor]:
    """Make both halves' maps at their poses so far: in a common mask, each shell weighted by how well the halves agree.

    Noise in a map draws images of the same noise: without mask and weights a search over images whose signal is weak
    stays at twice the error.
    """
    maps = [half.back_project(half.pose, box) for half in halves]
    inside = find_occupied(sum(maps, torch.zeros_like(maps[0])), halves[0].pixel_size_at(box))
    soft = smooth(inside.float())
    masked = [voxels * soft for voxels in maps]
    agreement = fourier_shell_correlation(masked[0], masked[1], 1.0).correlation.clamp(min=0)
    return [weighted_shells(voxels, agreement) for voxels in masked]


def _measure_agreement(halves: list[_Half], poses: list[Pose], search_round: SearchRound) -> float:
    """Mean FSC of the halves' maps up to the round's shell."""
    first, second = (half.back_project(pose, search_round.box) for half, pose in zip(halves, poses, strict=True))
    curve = fourier_shell_correlation(first, second, 1.0)
    return float(curve.correlation[1 : search_round.shell + 1].mean())


def draw_cone(count: int, cone_deg: float, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Draw rotations evenly spread up to an angle; the first is none.

    Points of Hammersley in the ball of rotation vectors, all moved by one random offset: two thirds as many reach as
    near to every rotation as points that know nothing of one another.
    """
    place, offset = torch.arange(count)[:, None], torch.rand(3, generator=generator)
    radius = ((place[:, 0] + offset[0]) / count) ** (1 / 3)
    sphere = (place * torch.tensor(_PLASTIC_STEPS) + offset[1:]) % 1
    height, turn = 2 * sphere[:, 0] - 1, 2 * torch.pi * sphere[:, 1]
    across = (1 - height.square()).sqrt()
    axis = torch.stack([across * turn.cos(), across * turn.sin(), height], dim=1)
    vector = axis * (np.deg2rad(cone_deg) * radius[:, None])
    # The innermost point.
    vector[0] = 0
    return rotation_from_axis_angle(vector)


def list_shifts(radius: float, step: float) -> Float[Tensor, "shifts 2"]:
    """List the shifts on a grid within a radius, none among them."""
    reach = int(radius / step)
    axis = torch.arange(-reach, reach + 1) * step
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return grid[grid.norm(dim=1) <= radius + 1e-6]
