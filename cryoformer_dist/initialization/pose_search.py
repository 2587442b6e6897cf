"""First poses from projection matching: each particle looks around its given pose for a better one.

Gradients alone stop at the next hill: errors of 15 degrees are many hills at full resolution. A local search against a
rigid map, from coarse to fine, brings all but a few particles within reach of them in seconds. Both halves of the
particles are searched apart, each against its own map, so their agreement tells whether the search did any good. Of a
molecule that moves, particles are then compared with maps of their own conformation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.clustering import find_clusters
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.initialization.occupancy import find_occupied
from cryoformer_dist.initialization.projection_matching import ReferenceMap
from cryoformer_dist.initialization.search_rounds import ROUNDS, SearchRound, draw_cone, list_shifts, select_rounds
from cryoformer_dist.initialization.searched_images import SearchedImages
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import (
    crop_volume,
    fourier_shell_correlation,
    phase_ramp,
    upsample_volume,
    weighted_shells,
)
from cryoformer_dist.physics.neighbours import smooth
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg
from cryoformer_dist.progress import Progress
from cryoformer_dist.ranks import (
    add_over_ranks,
    broadcast_from_leader,
    gather_shares,
    rank_and_world,
    sum_over_ranks,
    take_share,
)

# Images compared at once: a GPU has many to do at a time.
_BLOCK, _BLOCK_ON_GPU = 64, 512
_WIENER = 0.1
_CONFORMATIONS, _GROUPING_ROUNDS = 12, 10


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


def search_poses(
    store: ParticleStore,
    rows: Rows,
    seed: int,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> PoseSearchResult:
    """Search around the given poses of some particles, by all ranks together.

    Each rank looks at its share; sums add up, the leader solves the maps, and every rank returns all poses.

    Parameters
    ----------
    store
        Particle store, with poses.
    rows
        Particles, the same on every rank.
    seed
        Of the rotations that are tried.
    progress
        Called, on every rank, with particles done and in all, over all rounds: of all ranks, by how far this one is.
    device
        Where images are held and compared; the CPU when ``None``.
    """
    rounds = select_rounds(ROUNDS, store.box_size)
    halves = _read_halves(store, rows, rounds, device or torch.device("cpu"))
    done = _Done(progress, halves, len(rows), len(rounds))
    for number, search_round in enumerate(rounds):
        for half, voxels in zip(halves, _make_references(halves, search_round.box), strict=True):
            everyone = np.zeros(len(half.given.rotation), dtype=np.int64)
            generator = torch.Generator().manual_seed(seed + number)
            done.count(half.search(search_round, [voxels], everyone, generator))
            half.pose = align_frame(half.given, half.pose, total=sum_over_ranks)
    given, found = [half.given for half in halves], [half.pose for half in halves]
    before, after = _measure_agreement(halves, given, rounds[-1]), _measure_agreement(halves, found, rounds[-1])
    return PoseSearchResult(_gather(found if after > before else given, len(rows)), before, after)


def search_poses_by_conformation(
    store: ParticleStore,
    rows: Rows,
    start: Pose,
    conformations: LinearConformations,
    rounds: Sequence[SearchRound],
    seed: int,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> Pose:
    """Search around poses with a map for each of a dozen groups of particles of like conformation.

    By all ranks together, as `search_poses`. The frame of each conformation is that of the given poses of its
    particles (see `frame_alignment`).

    Parameters
    ----------
    store
        Particle store, with the given poses.
    rows
        Particles, the same on every rank.
    start
        Where to search around, one per row.
    conformations
        What is known of the motion.
    rounds
        One or more, those of them that the box holds.
    seed
        Of the rotations that are tried.
    progress, device
        As of `search_poses`.
    """
    device = device or torch.device("cpu")
    conformations = LinearConformations(conformations.latents.to(device), conformations.maps.to(device))
    group, centres = _group_by_conformation(conformations.latents, seed)
    rounds = select_rounds(rounds, store.box_size)
    halves = _read_halves(store, rows, rounds, device)
    latents = [conformations.latents[half.places.to(device)] for half in halves]
    for half, own in zip(halves, latents, strict=True):
        half.pose = align_frame(half.given, start[half.places].to(device), own, sum_over_ranks)
    done = _Done(progress, halves, len(rows), len(rounds))
    for number, search_round in enumerate(rounds):
        differences = conformations.differences(centres, search_round.box)
        references = _make_references(halves, search_round.box)
        for half, own, voxels in zip(halves, latents, references, strict=True):
            maps = [voxels + difference for difference in differences]
            generator = torch.Generator().manual_seed(seed + number)
            done.count(half.search(search_round, maps, group[half.places.numpy()], generator))
            half.pose = align_frame(half.given, half.pose, own, sum_over_ranks)
    return _gather([half.pose for half in halves], len(rows))


def _places_of_half(first: int, count: int) -> Tensor:
    """Every other one of so many particles: which those are does not depend on who searches them."""
    return torch.arange(first, count, 2)


def _read_halves(
    store: ParticleStore, rows: Rows, rounds: Sequence[SearchRound], device: torch.device
) -> list["_Half"]:
    """Read this rank's share of both halves, together: neighbours in the store lie in one chunk."""
    places = [_places_of_half(first, len(rows)) for first in (0, 1)]
    places = [each[take_share(len(each))].contiguous() for each in places]
    both = torch.cat(places).sort().values
    images = SearchedImages.read(store, rows[both.numpy()], max(each.box for each in rounds), device)
    return [_Half(store, images[torch.searchsorted(both, each).to(device)], each) for each in places]


def _gather(halves: Sequence[Pose], count: int) -> Pose:
    """Poses of both halves' shares on all ranks, in the order of the rows."""
    rotation, shift = torch.empty(count, 3, 3), torch.empty(count, 2)
    for first, pose in enumerate(halves):
        places = _places_of_half(first, count)
        rotation[places] = gather_shares(pose.rotation, len(places)).cpu()
        shift[places] = gather_shares(pose.shift_angstrom, len(places)).cpu()
    return Pose(rotation, shift)


def _group_by_conformation(latents: Tensor, seed: int) -> tuple[NDArray[np.int64], Tensor]:
    """Group of each particle by its conformation, as the leader finds it, and the mean coordinates of each group."""
    group = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    if rank_and_world()[0] == 0:
        found = find_clusters(latents, min(_CONFORMATIONS, len(latents)), seed, _GROUPING_ROUNDS)
        group = found.label.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    group = broadcast_from_leader(group)
    centres = torch.stack([latents[group == name].mean(0) for name in range(int(group.max()) + 1)])
    return group.cpu().numpy(), centres


class _Done:
    """Tells how far all ranks are by how far this one is: shares differ by a particle or two."""

    def __init__(self, progress: Progress | None, halves: Sequence["_Half"], particles: int, rounds: int) -> None:
        self._progress = progress
        self._done, self._own = 0, sum(len(half.places) for half in halves) * rounds
        self._all = particles * rounds

    def count(self, blocks: Iterator[int]) -> None:
        """Do the work of some blocks and tell after each."""
        for block in blocks:
            self._done += block
            if self._progress is not None:
                self._progress(self._all * self._done // self._own, self._all)


class _Half:
    """Particles of this rank that have one reference map: their places among the rows, and their poses so far."""

    def __init__(self, store: ParticleStore, images: SearchedImages, places: Tensor) -> None:
        self._store, self._images, self.device = store, images, images.transfer.device
        self.places, self.given, self.pose = places, images.given, images.given

    def search(
        self, search_round: SearchRound, maps: Sequence[Tensor], group: NDArray[np.int64], generator: torch.Generator
    ) -> Iterator[int]:
        """Move every particle to the most probable candidate around its pose, by its group's map; yields sizes."""
        spread_deg = self._spread_deg(search_round)
        shifts = list_shifts(search_round.shift_radius, search_round.shift_step).to(self.device)
        cone = draw_cone(search_round.candidates, search_round.cone_deg, generator).to(self.device)
        rotation, shift_angstrom = self.pose.rotation.clone(), self.pose.shift_angstrom.clone()
        size = _BLOCK_ON_GPU if rotation.is_cuda else _BLOCK
        for name, voxels in enumerate(maps):
            reference = ReferenceMap(voxels, search_round.shell)
            members = torch.from_numpy(np.flatnonzero(group == name)).to(self.device)
            for start in range(0, len(members), size):
                part = members[start : start + size]
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
                rotation[part] = candidates[torch.arange(len(turn), device=self.device), turn]
                shift_angstrom[part] += shifts[move] * pixel
                yield len(turn)
        self.pose = Pose(rotation, shift_angstrom)

    def _spread_deg(self, search_round: SearchRound) -> float:
        """How far the given rotations are taken to be off, about each axis: what the search has found of it so far.

        Without that prior, noise draws one particle in ten of a smooth molecule to the far side of its cone, and no
        later round brings it back. It is never narrower than a third of the cone: no round is kept from looking.
        """
        moved = rotation_angle_deg(self.pose.rotation, self.given.rotation).double()
        squares, count = sum_over_ranks(torch.stack([moved.square().sum(), moved.new_full((), len(moved))]))
        return max(float((squares / count / 3).sqrt()), search_round.cone_deg / 3)

    def pixel_size_at(self, box: int) -> float:
        """Voxel size in angstrom of maps cropped to a box."""
        return self._store.pixel_size_angstrom * self._store.box_size / box

    def back_project(self, pose: Pose, box: int) -> FourierAccumulator:
        """Add up the particles of all ranks at some poses, cropped to a box."""
        accumulator = FourierAccumulator(box, self.pixel_size_at(box), self.device)
        for start in range(0, len(self._images), 4 * _BLOCK):
            part = slice(start, start + 4 * _BLOCK)
            block = self._images[part]
            images, transfer = block.at(box, accumulator.flat_index)
            centred = images * phase_ramp(accumulator.frequency, pose.shift_angstrom[part] / block.pixel_size_at(box))
            accumulator.insert(centred, transfer, pose.rotation[part] * block.magnification[:, None, None])
        add_over_ranks(accumulator.sums)
        return accumulator


def _make_references(halves: Sequence[_Half], box: int) -> Tensor:
    """Make both halves' maps at their poses so far: in a common mask, each shell weighted by how well the halves agree.

    Noise in a map draws images of the same noise: without mask and weights a search over images whose signal is weak
    stays at twice the error. The leader makes them for all: the others would only wait, and transforms by different
    processors differ in their last bits.
    """
    sums = [half.back_project(half.pose, box) for half in halves]
    references = torch.zeros(len(halves), box, box, box, device=halves[0].device)
    if rank_and_world()[0] == 0:
        maps = [accumulator.solve(_WIENER) for accumulator in sums]
        inside = find_occupied(maps[0] + maps[1], halves[0].pixel_size_at(box))
        soft = smooth(inside.float())
        masked = [voxels * soft for voxels in maps]
        agreement = fourier_shell_correlation(masked[0], masked[1], 1.0).correlation.clamp(min=0)
        references = torch.stack([weighted_shells(voxels, agreement) for voxels in masked])
    return broadcast_from_leader(references)


def _measure_agreement(halves: Sequence[_Half], poses: Sequence[Pose], search_round: SearchRound) -> float:
    """Mean FSC of the halves' maps up to the round's shell; the leader's, so that all decide alike."""
    sums = [half.back_project(pose, search_round.box) for half, pose in zip(halves, poses, strict=True)]
    agreement = torch.zeros(())
    if rank_and_world()[0] == 0:
        first, second = (accumulator.solve(_WIENER) for accumulator in sums)
        agreement = fourier_shell_correlation(first, second, 1.0).correlation[1 : search_round.shell + 1].mean()
    return float(broadcast_from_leader(agreement.to(halves[0].device)))
