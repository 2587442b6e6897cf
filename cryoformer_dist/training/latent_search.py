"""Where a particle lies among the conformations: it is compared with maps all along the latent cloud.

A gradient moves a latent by what one image says at one visit, from where it happens to be. Here every image is compared
with representatives of the whole cloud (EM over a mixture of conformations). What all particles know together is the
prior: a conformation counts as often as it occurs, and none that never occurs is offered, so that the noise of a single
image leads nowhere.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.thinning import stride_for
from cryoformer_dist.errors import MostlyJunkWarning, UndecidedLatentsWarning
from cryoformer_dist.inference.answer import Answer
from cryoformer_dist.inference.comparison import LIKELY, Explanation, Spread, explain, fit_spread
from cryoformer_dist.inference.conformations import (
    MOVING_MAPS,
    ConformationMixture,
    Views,
    choose_one,
    find_principal_mixture,
    move,
)
from cryoformer_dist.inference.junk import JunkModel, Kind, PowerSum
from cryoformer_dist.initialization.clustering import find_clusters
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.fourier import crop_volume
from cryoformer_dist.physics.pose import Pose, join_poses
from cryoformer_dist.physics.slices import TrilinearSlices
from cryoformer_dist.ranks import (
    broadcast_from_leader,
    gather_own_rows,
    gather_shares,
    rank_and_world,
    sum_over_ranks,
    take_share,
)
from cryoformer_dist.runs.training_log import SearchFindings
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.objectives import Objectives
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Interval
from cryoformer_dist.training.stages import Moment

# After a search that was of use: 2.0 on igg_arc_32 and adk_64, 1.1 on spike_64; after one of none: .014 on spike_32,
# 1e-4 on a rigid molecule.
_UNDECIDED_NATS = 0.1
_MOST_JUNK = 0.5
_EPOCHS_PER_ONE_AT_MEANS = 8
REPRESENTATIVES = 256
LARGEST_BOX = 64
"""Larger images are Fourier-cropped: the shells beyond tell conformations apart by little and cost most."""
# A particle that is its own representative would find the noise that it brought there itself.
_PARTICLES_PER_REPRESENTATIVE, _FEWEST_REPRESENTATIVES = 16, 16
_CLUSTERED_PARTICLES = 20_000
_CLUSTERING_ROUNDS = 20
# Particles that say how far all depart from what is given, and how many are none.
_SAMPLE = 500


@dataclass(frozen=True, slots=True)
class ParticleSearchResult:
    """What a search of all particles has found.

    Attributes
    ----------
    row
        ``(found,)``: store rows, of all ranks.
    answer
        Of each.
    nats, junk_share
        What an image says about its conformation, mean over the particles, and how many probably show none.
    findings
        What is to be told of all together.
    """

    row: Tensor
    answer: Answer
    nats: float
    junk_share: float
    findings: SearchFindings


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
        MostlyJunkWarning
            If most of them seem to show no particle.
        """
        learner, stage = self._learner, moment.stage
        # The last epochs are trained at the means: a few searches in which maps reach less far cost nothing by then.
        at_means = max(1, stage.epochs // _EPOCHS_PER_ONE_AT_MEANS)
        draws = None if moment.passes >= stage.epochs - at_means else self._draw_numbers(moment.position.step)
        found = search_particles(learner, moment, self._particles, draws)
        answer, interval.found = found.answer, found.findings
        undecided, mostly_junk = found.nats < _UNDECIDED_NATS, found.junk_share > _MOST_JUNK
        # Maps that do not move yet would deal the first latents anew, and what those know would be lost.
        if not undecided or moment.passes >= learner.config.training.freeze_latent_epochs:
            learner.set_latents(found.row, answer.latent, answer.deviation)
        if learner.config.model.searches_poses:
            learner.set_poses(found.row, answer.pose)
        # A search that sees no particle in most images is not believed: training would come to a stop.
        weight = torch.ones_like(answer.weight) if mostly_junk else answer.weight
        # Of mean 1, or maps and amplitudes could grow against one another.
        mean = (answer.amplitude * weight).sum() / weight.sum()
        learner.set_judgements(found.row, amplitude=answer.amplitude / mean, weight=weight, alone=answer.alone)
        if moment.epoch > stage.epochs - 1 and self._particles.rank == 0:
            if undecided:
                _warn_of_undecided_latents(found.nats, stage.epochs)
            if mostly_junk:
                _warn_of_junk(found.junk_share, stage.epochs)

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


def _warn_of_junk(share: float, epochs: int) -> None:
    warnings.warn(
        f"after {epochs} epochs {share:.0%} of the images seem to show no particle, so all were kept. Look at the set "
        "(`cryoformer-dist check`: contrast, poses, CTF), or train longer; model.junk: kept does not ask",
        MostlyJunkWarning,
        stacklevel=2,
    )


@torch.no_grad()
def search_particles(
    learner: Learner, moment: Moment, particles: RankParticles, draws: Float[Tensor, " rows"] | None
) -> ParticleSearchResult:
    """Look for every trained particle's latent, pose and amplitude; every rank finds all of them.

    Parameters
    ----------
    learner
        Network and tables as they are.
    moment
        Decides what takes part, as in a training step.
    particles
        That are trained on: theirs is the cloud of latents.
    draws
        One number in [0, 1) per row of the store: a conformation is drawn by its probability. While there is much to
        learn it must be so: mean latents lie closer together than the conformations do, and maps learned at them would
        reach less far at every search. ``None``: the mean, which errs least.
    """
    search = _Search(learner, moment, particles)
    sums = torch.zeros(3, device=learner.device)
    rows, answers, given = [], [], []
    for batch in particles.read_own_amid_training(search.seed):
        answer, nats = search.ask(batch, None if draws is None else draws[batch.row])
        rows.append(batch.row)
        answers.append(answer.pack())
        given.append(batch.pose)
        sums += torch.stack([nats, (1 - answer.weight).sum(), nats.new_full((), len(batch))])
    nats, junk, count = sum_over_ranks(sums).tolist()
    mine = search.hold_frame(join_poses(given), Answer.unpack(torch.cat(answers)))
    row, found = gather_own_rows(torch.cat(rows), mine.pack())
    told = search.tell(nats / count, junk / count)
    return ParticleSearchResult(row, Answer.unpack(found), nats / count, junk / count, told)


class _Search:
    """One search: conformations as the network has them now, and what all particles know together.

    Parameters
    ----------
    learner, moment, particles
        As of `search_particles`.

    Attributes
    ----------
    seed
        Of the order of particles.
    """

    def __init__(self, learner: Learner, moment: Moment, particles: RankParticles) -> None:
        self._learner, self._moment, self._model = learner, moment, learner.config.model
        self.seed = (learner.config.seed, moment.position.stage)
        self._particles = particles
        coarse = learner.is_coarse(moment.stage, moment.epoch)
        cloud = learner.latents[learner.trusted(torch.from_numpy(particles.rows).to(learner.device))]
        self._conformations = build_conformations(learner.objectives, cloud, coarse, learner.config.seed)
        pixel = learner.objectives.pixel_size_angstrom
        self._spread = Spread.to_begin(pixel, self._model.searches_poses, self._model.searches_amplitudes)
        self._junk: JunkModel | None = None
        if self._spread != Spread() or self._model.weighs_junk:
            self._look_at_sample()

    def ask(self, batch: ParticleBatch, draws: Float[Tensor, " particles"] | None) -> tuple[Answer, Tensor]:
        """What images say about their particles, and how many nats about their conformations in all."""
        pose = self._pose_at_hand(batch)
        views = self._look(batch, pose)
        explained = self._explain(views)
        posterior = (explained.log_likelihood + self._conformations.log_share).softmax(dim=1)
        chosen = posterior if draws is None else choose_one(posterior, draws)
        if explained.offset is not None:
            pose = move(pose, torch.einsum("bc,bcj->bj", chosen, explained.offset))
        kind = self._kinds(views, explained)
        latent = self._conformations.latent
        deviation = (posterior @ latent.square() - (posterior @ latent).square()).clamp_min(0).sqrt()
        amplitude = (chosen * explained.amplitude).sum(1)
        # Conformations that are offered to nobody, and products that underflow, add nothing.
        nats = torch.xlogy(posterior, posterior / self._conformations.log_share.exp().clamp_min(1e-30)).sum()
        alone = kind[:, Kind.PARTICLE]
        weight = alone + kind[:, Kind.PARTICLE_AND_MORE]
        return Answer(chosen @ latent, deviation, pose, amplitude, weight, alone), nats

    def hold_frame(self, given: Pose, answer: Answer) -> Answer:
        """The same answers, poses of every conformation on average as given; all ranks together.

        Given poses err one by one. If all particles of a conformation have moved alike, it is their map that has moved:
        nothing in images says that it did not, and while maps are blurred it is how they explain them best.
        """
        if not self._spread.moves_poses:
            return answer
        return replace(answer, pose=align_frame(given, answer.pose, answer.latent, sum_over_ranks))

    def tell(self, nats: float, junk: float) -> SearchFindings:
        """What was found of all particles together."""
        spread, model = self._spread, self._model
        moving = model.searches_poses
        return SearchFindings(
            latent_information_nats=nats,
            pose_error_deg=math.degrees(spread.rotation_rad) if moving else None,
            pose_error_angstrom=spread.shift_angstrom if moving else None,
            amplitude_spread=spread.amplitude if model.searches_amplitudes else None,
            junk_share=junk if model.weighs_junk else None,
        )

    def _pose_at_hand(self, batch: ParticleBatch) -> Pose:
        if self._model.searches_poses and not self._spread.moves_poses:
            # Given ones that turn out to be exact.
            return batch.pose
        return self._learner.settle(self._moment.stage, batch, self._moment.epoch)[0]

    def _sample(self) -> Iterator[ParticleBatch]:
        rows = self._particles.rows
        return self._particles.read_sample_amid_training(rows[:: stride_for(len(rows), _SAMPLE)], self.seed)

    def _look_at_sample(self) -> None:
        """How far all particles depart from what is given, and how many images show none."""
        pixel, device = self._learner.objectives.pixel_size_angstrom, self._learner.device
        compared, power = [], PowerSum(self._conformations.shell)
        for batch in self._sample():
            views = self._look(batch, self._pose_at_hand(batch))
            compared.append(self._conformations.compare(views).keep_likely(self._spread, LIKELY))
            power.add(views)
        self._spread = fit_spread(compared, pixel, self._spread, device)
        if self._spread.amplitude:
            self._conformations = self._conformations.equally_strong()
        if self._model.weighs_junk:
            self._junk = power.finish()
            everyone = (self._look(batch, self._pose_at_hand(batch)) for batch in self._sample())
            seen = [self._likelihood_of_kinds(views, self._explain(views)) for views in everyone]
            self._junk = self._junk.with_shares_of(seen)

    def _look(self, batch: ParticleBatch, pose: Pose) -> Views:
        return self._conformations.look(batch, pose, self._spread.moves_poses)

    def _explain(self, views: Views) -> Explanation:
        return explain(self._conformations.compare(views), self._spread)

    def _kinds(self, views: Views, explained: Explanation) -> Float[Tensor, "particles 4"]:
        """How probable it is that each image shows each kind."""
        if self._junk is None:
            return torch.eye(len(Kind), device=views.images.device)[Kind.PARTICLE].expand(len(views.images), -1)
        return self._junk.posterior(self._likelihood_of_kinds(views, explained))

    def _likelihood_of_kinds(self, views: Views, explained: Explanation) -> Float[Tensor, "particles 4"]:
        assert self._junk is not None
        probability = explained.log_likelihood + self._conformations.log_share
        scaled = probability.softmax(dim=1) * explained.amplitude
        predicted = torch.einsum("bc,cm,bmk->bk", scaled, self._conformations.mixture, views.maps)
        return self._junk.compare(views, probability.logsumexp(dim=1), predicted)


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
    slices = TrilinearSlices(voxels, compared // 2 - 1)
    return ConformationMixture(
        latent=latent,
        log_share=share.log(),
        mixture=torch.cat([torch.ones_like(share)[:, None], mixture], dim=1),
        strength=1 + mixture @ _along_first(voxels),
        slices=slices,
        leading_slices=slices.leading(MOVING_MAPS),
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
    lattice, mine = objectives.lattice, latent[take_share(len(latent))]
    decoded = latent.new_empty(len(mine), compared**3)
    each = objectives.model.each_volume(mine, lattice.points_pixels, lattice.flat_index)
    for row, voxels in zip(decoded, each, strict=True):
        row.copy_(crop_volume(voxels, compared).ravel())
    # Cropping keeps values, but a coarse voxel stands for many fine ones.
    maps = gather_shares(decoded, len(latent)) * (objectives.box / compared) ** 3
    mean = share @ maps
    maps -= mean
    mixture = find_principal_mixture(maps)
    return mixture, torch.cat([mean[None], mixture.T @ maps]).reshape(-1, compared, compared, compared)


def _along_first(voxels: Float[Tensor, "maps box box box"]) -> Float[Tensor, " others"]:
    """How much of the first map is in each of the others."""
    flat = voxels.flatten(1)
    return (flat[1:] @ flat[0]) / flat[0].square().sum().clamp_min(1e-30)
