"""Where a particle lies among the conformations: it is compared with maps all along the latent cloud.

A gradient moves a latent by what one image says at one visit, from where it happens to be. Here every image is compared
with representatives of the whole cloud (EM over a mixture of conformations). What all particles know together is the
prior: a conformation counts as often as it occurs, and none that never occurs is offered, so that the noise of a single
image leads nowhere.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import UndecidedLatentsWarning
from cryoformer_dist.initialization.clustering import find_clusters
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import (
    crop_half_plane,
    crop_volume,
    image_to_fourier,
    phase_ramp,
    to_real_vectors,
)
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.projection import magnification
from cryoformer_dist.physics.slices import TrilinearSlices
from cryoformer_dist.ranks import (
    broadcast_from_leader,
    gather_objects,
    gather_rows,
    rank_and_world,
    sum_over_ranks,
)
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.objectives import Objectives
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Interval
from cryoformer_dist.training.stages import Moment, Stage

# After a search that was of use: 2.0 on igg_arc_32 and adk_64, 1.1 on spike_64; after one of none: .014 on spike_32,
# 1e-4 on a rigid molecule.
_UNDECIDED_NATS = 0.1
REPRESENTATIVES = 256
LARGEST_BOX = 64
"""Larger images are Fourier-cropped: the shells beyond tell conformations apart by little and cost most."""
MOST_PRINCIPAL_MAPS = 24
# Of the conformations' variance, what may be left out.
_LEFT_OUT = 0.005
# A particle that is its own representative would find the noise that it brought there itself.
_PARTICLES_PER_REPRESENTATIVE, _FEWEST_REPRESENTATIVES = 16, 16
_CLUSTERED_PARTICLES = 20_000
_CLUSTERING_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class ConformationMixture:
    """Representatives of a latent cloud, their maps as mixtures of a few.

    Attributes
    ----------
    latent
        ``(conformations, dimensions)``.
    log_share
        ``(conformations,)``: of the particles, up to a constant.
    mixture
        ``(conformations, principal)``: how much of each principal map is in each, on top of the mean map.
    slices
        Of the mean map, then of the principal ones; in units of the whole box's transform.
    map_pixel_angstrom
        Of the whole box.
    box, compared_box
        Side of the images, and of what is compared of them.
    """

    latent: Float[Tensor, "conformations dimensions"]
    log_share: Float[Tensor, " conformations"]
    mixture: Float[Tensor, "conformations principal"]
    slices: TrilinearSlices
    map_pixel_angstrom: float
    box: int
    compared_box: int

    def posterior(self, batch: ParticleBatch, pose: Pose) -> Float[Tensor, "particles conformations"]:
        """How probable each conformation is for each image."""
        return (self.log_likelihood(batch, pose) + self.log_share).softmax(dim=1)

    def log_likelihood(self, batch: ParticleBatch, pose: Pose) -> Float[Tensor, "particles conformations"]:
        """Of each image in each conformation, up to a constant per image; noise as in the loss, white of unit variance.

        Projection is linear: only the few principal maps are projected, however many conformations there are.
        """
        images = crop_half_plane(image_to_fourier(batch.images), self.compared_box).flatten(1)[
            :, self.slices.flat_index
        ]
        predicted = self._predicted(batch, pose)
        # A coefficient's variance is the number of pixels. Half of the plane is listed, which makes up for the half
        # before the squared error.
        residual = to_real_vectors(images - predicted[0]) / self.box
        modes = to_real_vectors(predicted[1:]).transpose(0, 1) / self.box
        match = torch.einsum("bmk,bk->bm", modes, residual)
        energy = torch.einsum("cm,bmn,cn->bc", self.mixture, modes @ modes.mT, self.mixture)
        return 2 * match @ self.mixture.T - energy

    def _predicted(self, batch: ParticleBatch, pose: Pose) -> Complex[Tensor, "maps particles k"]:
        """Images of the mean and the principal maps."""
        pixel = batch.pixel_size_angstrom[:, None]
        scale = magnification(self.map_pixel_angstrom, pixel)
        frequency = self.slices.frequency * (self.compared_box / self.box)
        phase = phase_ramp(frequency, -pose.shift_angstrom / pixel)
        transfer = transfer_at(batch.ctf, frequency, batch.pixel_size_angstrom)
        slices = self.slices.at(pose.rotation * scale[..., None])
        return slices * (phase * transfer * scale)


@dataclass(frozen=True, slots=True)
class LatentSearchResult:
    """What a search of all particles has found.

    Attributes
    ----------
    row
        ``(found,)``: store rows, of all ranks.
    latent
        ``(found, dimensions)``.
    information_nats
        What an image says about its conformation, beyond what all particles know; mean over them.
    """

    row: Tensor
    latent: Float[Tensor, "found dimensions"]
    information_nats: float


class LatentSearch:
    """At the end of every epoch, and of the stage: look for every particle's latent, each rank for those of its share.

    Parameters
    ----------
    learner
        Network and tables.
    particles
        All of them are searched.
    """

    def __init__(self, learner: Learner, particles: RankParticles) -> None:
        self._learner, self._particles = learner, particles

    def due(self, moment: Moment) -> bool:
        """See `EpochTask`."""
        searched = moment.stage.kind == "reconstruction" and self._learner.config.model.latent.searched
        return searched and (moment.ends_stage or moment.ends_epoch)

    def run(self, moment: Moment, interval: Interval) -> None:
        """See `EpochTask`.

        Warns
        -----
        UndecidedLatentsWarning
            If images still say next to nothing about their conformations at the end.
        """
        learner, stage = self._learner, moment.stage
        everyone = self._particles.read_own_amid_training((learner.config.seed, moment.position.stage))
        # The last epoch is trained at the means: one more search in which maps reach less far costs nothing by then.
        draws = None if moment.passes >= stage.epochs - 1 else self._draw_numbers(moment.position.step)
        found = search_latents(learner, stage, moment.epoch, self._particles.rows, everyone, draws)
        interval.latent_information_nats = found.information_nats
        undecided = found.information_nats < _UNDECIDED_NATS
        # Maps that do not move yet would deal the first latents anew, and what those know would be lost.
        if not undecided or moment.passes >= learner.config.training.freeze_latent_epochs:
            learner.set_latents(found.row, found.latent)
        if undecided and moment.epoch > stage.epochs - 1 and self._particles.rank == 0:
            _warn_of_undecided_latents(found.information_nats, stage.epochs)

    def _draw_numbers(self, step: int) -> Float[Tensor, " rows"]:
        """A number in [0, 1) per row, of the step alone: the same on any number of ranks, and for a resume."""
        rows = len(self._learner.latents)
        numbers = np.random.default_rng([self._learner.config.seed, step]).random(rows, dtype=np.float32)
        return torch.from_numpy(numbers).to(self._learner.device)


def _warn_of_undecided_latents(nats: float, epochs: int) -> None:
    warnings.warn(
        f"after {epochs} epochs an image carries only {nats:.2g} nats about its conformation, so the maps hardly move. "
        "Either the molecule is rigid at this resolution, or its motion is too small for a search: "
        "model.latent.refinement: gradient may recover it, and some noise with it",
        UndecidedLatentsWarning,
        stacklevel=2,
    )


@torch.no_grad()
def search_latents(
    learner: Learner,
    stage: Stage,
    epoch: float,
    trained: Rows,
    batches: Iterator[ParticleBatch],
    draws: Float[Tensor, " rows"] | None,
) -> LatentSearchResult:
    """Look for every trained particle's latent by its probabilities of all conformations; every rank finds all of them.

    Parameters
    ----------
    learner
        Network and tables as they are.
    stage, epoch
        Decide what takes part, as in a training step.
    trained
        Store rows of the particles that are trained on: theirs is the cloud.
    batches
        This rank's share of them, none twice.
    draws
        One number in [0, 1) per row of the store: a conformation is drawn by its probability. While there is much to
        learn it must be so: mean latents lie closer together than the conformations do, and maps learned at them would
        reach less far at every search. ``None``: the mean, which errs least.
    """
    latents = learner.latents
    cloud = latents[torch.from_numpy(trained).to(latents.device)]
    found = build_conformations(learner.objectives, cloud, learner.is_coarse(stage, epoch), learner.config.seed)
    information = torch.zeros(2, device=learner.device)
    rows, dealt = [], []
    for batch in batches:
        pose, _ = learner.settle(stage, batch, epoch)
        posterior = found.posterior(batch, pose)
        chosen = (
            posterior @ found.latent if draws is None else found.latent[draw_conformations(posterior, draws[batch.row])]
        )
        rows.append(batch.row)
        dealt.append(chosen)
        # Conformations that are offered to nobody, and products that underflow, add nothing.
        gain = torch.xlogy(posterior, posterior / found.log_share.exp().clamp_min(1e-30)).sum()
        information += torch.stack([gain, gain.new_full((), len(batch))])
    nats, particles = sum_over_ranks(information)
    return LatentSearchResult(*_gather_shares(torch.cat(rows), torch.cat(dealt)), float(nats / particles))


def _gather_shares(rows: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Those of all ranks; one that has fewer says its first again, and what comes twice says the same."""
    longest = max(gather_objects(len(rows)))
    place = torch.arange(longest, device=rows.device) % len(rows)
    return gather_rows(rows[place], latents[place])


def draw_conformations(
    posterior: Float[Tensor, "particles conformations"], draws: Float[Tensor, " particles"]
) -> Tensor:
    """One conformation per particle: where its number falls among the cumulated probabilities."""
    passed = (posterior.cumsum(dim=1) <= draws[:, None]).sum(dim=1)
    # Rounding may leave the last sum below one.
    return passed.clamp_max(posterior.shape[1] - 1)


@torch.no_grad()
def build_conformations(
    objectives: Objectives, latents: Float[Tensor, "rows dimensions"], coarse: bool, seed: int
) -> ConformationMixture:
    """Representatives of a latent cloud as the network sees them.

    Parameters
    ----------
    objectives
        The network and its lattice.
    latents
        Of the particles that make the cloud.
    coarse
        Whether the network has learned low frequencies only.
    seed
        Of the clustering.
    """
    latent, share = _representatives(latents, seed)
    box = objectives.box
    learned = objectives.coarse.box if coarse and objectives.coarse is not None else box
    compared = min(learned, LARGEST_BOX)
    mixture, voxels = _principal_maps(objectives, latent, share, compared)
    return ConformationMixture(
        latent=latent,
        log_share=share.log(),
        mixture=mixture,
        slices=TrilinearSlices(voxels, compared // 2 - 1),
        map_pixel_angstrom=objectives.pixel_size_angstrom,
        box=box,
        compared_box=compared,
    )


def _representatives(latents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Centres of k-means clusters, and what share of the particles each has: found by the leader alone.

    An empty cluster has no share: it is offered to nobody.
    """
    sample = latents[:: stride_for(len(latents), _CLUSTERED_PARTICLES)]
    wanted = min(REPRESENTATIVES, max(_FEWEST_REPRESENTATIVES, len(latents) // _PARTICLES_PER_REPRESENTATIVE))
    count = min(wanted, len(sample.unique(dim=0)))  # type: ignore[no-untyped-call]
    centre, share = sample.new_empty(count, sample.shape[1]), sample.new_empty(count)
    if rank_and_world()[0] == 0:
        found = find_clusters(sample, count, seed, _CLUSTERING_ROUNDS)
        centre, share = found.centre, found.share
    return broadcast_from_leader(centre), broadcast_from_leader(share)


def _principal_maps(
    objectives: Objectives, latent: Tensor, share: Tensor, compared: int
) -> tuple[Float[Tensor, "conformations principal"], Float[Tensor, "maps compared compared compared"]]:
    """Maps of all conformations as mixtures of a few: how much of each is in them; the mean map, then those few."""
    lattice, maps = objectives.lattice, latent.new_empty(len(latent), compared**3)
    each = objectives.model.each_volume(latent, lattice.points_pixels, lattice.flat_index)
    for row, voxels in zip(maps, each, strict=True):
        row.copy_(crop_volume(voxels, compared).ravel())
    # Cropping keeps values, but a coarse voxel stands for many fine ones.
    maps *= (objectives.box / compared) ** 3
    mean = share @ maps
    maps -= mean
    mixture = _principal_mixture(maps)
    return mixture, torch.cat([mean[None], mixture.T @ maps]).reshape(-1, compared, compared, compared)


def _principal_mixture(
    changes: Float[Tensor, "conformations voxels"],
) -> Float[Tensor, "conformations principal"]:
    """Orthonormal mixtures of maps that hold nearly all of their variance: ``mixture @ mixture.T @ changes``."""
    variance, vectors = torch.linalg.eigh((changes @ changes.T).double())
    left = 1 - variance.flip(0).cumsum(0) / variance.sum().clamp_min(1e-30)
    kept = min(int((left > _LEFT_OUT).sum()) + 1, MOST_PRINCIPAL_MAPS)
    mixture: Tensor = vectors.flip(1)[:, :kept].float()
    return mixture
