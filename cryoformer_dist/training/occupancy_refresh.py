"""Where the data ask for density that the mask cuts off: the residual of a sample of particles, back-projected."""

import warnings
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.residual_noise import NoiseDeparture, ResidualNoise
from cryoformer_dist.errors import DensityMaskedAwayWarning, MaskNotEnlargedWarning, NoiseDepartureWarning
from cryoformer_dist.initialization.occupancy import find_missed, mask_box
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import comparable_frequencies, crop_half_plane, fourier_to_image
from cryoformer_dist.ranks import broadcast_from_leader, gather_objects, rank_and_world, sum_over_ranks
from cryoformer_dist.runs.training_log import MUCH_DEPARTURE
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.memory import Workload, explain_misfit, warn_of_slow_encoding
from cryoformer_dist.training.objectives import keeps_operators
from cryoformer_dist.training.particles import RankParticles
from cryoformer_dist.training.reporting import Interval
from cryoformer_dist.training.stages import Moment, Stage

# A quarter of the particles costs about a tenth of an epoch. Of igg_arc_32's lost domain (SNR 0.1, 32 pixels), 1,000
# images show 92 %, 2,000 95 %, 4,000 96 %.
_SHARE, _FEWEST, _MOST = 0.25, 2_000, 10_000
# Of the residual's energy: beyond it, and twice in a row, the user is told.
_MUCH = 0.05


class OccupancyRefresh:
    """At the end of every few epochs: add to the mask what it cuts off; it never shrinks.

    Parameters
    ----------
    learner
        Network and tables.
    particles
        Of a sample of them the residual is looked at.
    memory
        Of a worker.
    """

    def __init__(self, learner: Learner, particles: RankParticles, memory: WorkerMemory) -> None:
        self._learner, self._particles, self._memory = learner, particles, memory
        training, by_data = learner.config.training, learner.config.training.occupancy == "data"
        self._every = training.occupancy_refresh_epochs if by_data and learner.config.model.domain == "real" else 0

    def due(self, moment: Moment) -> bool:
        """See `EpochTask`."""
        if moment.stage.kind != "reconstruction" or not self._every or not moment.ends_epoch:
            return False
        # After the last epoch nothing would be learned at new points.
        return moment.passes % self._every == 0 and moment.passes < moment.stage.epochs

    def run(self, moment: Moment, interval: Interval) -> None:
        """See `EpochTask`."""
        seed = (self._learner.config.seed, moment.position.stage)
        sample = self._particles.read_sample_amid_training(refresh_sample(self._particles.rows), seed)
        before = self._learner.active_points
        noise = ResidualNoise(self._learner.objectives.box)
        refresh_occupancy(self._learner, moment.stage, moment.epoch, sample, self._explain_misfit, noise)
        self._tell_of_other_noise(moment, noise.departure(), interval)
        self._tell_of_other_encoding(before)

    def _tell_of_other_noise(self, moment: Moment, departure: NoiseDeparture, interval: Interval) -> None:
        """Say how far residuals are from the noise; early on, that is what maps do not explain yet."""
        interval.noise_departure = departure.size
        late = 2 * moment.passes >= moment.stage.epochs
        if not late or not departure.exceeds(MUCH_DEPARTURE) or self._particles.rank != 0:
            return
        objectives = self._learner.objectives
        resolution = objectives.box * objectives.pixel_size_angstrom / departure.cycles
        warnings.warn(
            f"after {moment.passes} epochs the power of what maps leave unexplained is {departure.power:.2f} times "
            f"that of the noise, at {resolution:.3g} A in images of optics group {departure.group + 1}: the noise of "
            "the background is not that of the particles, or images hold more than maps can show (neighbours, errors "
            "of poses or CTF); look at the spectrum in check.png, and convert again with --particle-diameter if there "
            "is something else than noise in the background",
            NoiseDepartureWarning,
            stacklevel=2,
        )

    def _explain_misfit(self, points: int) -> str | None:
        """Why a worker has no memory for so many points; the batch was settled for those of the first mask."""
        learner, particles = self._learner, self._particles
        box, trained = learner.objectives.box, len(particles.rows)
        work = Workload(box, points, learner.tabulated_rows or trained, trained, particles.shard_rows)
        return explain_misfit(learner.config, work, self._memory)

    def _tell_of_other_encoding(self, before: int) -> None:
        """Beyond a number of points no operators are kept, which takes a GPU long."""
        config, now, on_gpu = self._learner.config, self._learner.active_points, self._memory.on_gpu
        crossed = keeps_operators(config, before, on_gpu) and not keeps_operators(config, now, on_gpu)
        if crossed and self._particles.rank == 0:
            warn_of_slow_encoding(config, now, self._memory)


def refresh_occupancy(
    learner: Learner,
    stage: Stage,
    epoch: float,
    batches: Iterator[ParticleBatch],
    explain_misfit: Callable[[int], str | None],
    noise: ResidualNoise | None = None,
) -> None:
    """Add to the mask what it cuts off, as far as there is memory for it; a mask that the user gave stays as it is.

    Parameters
    ----------
    learner, stage, epoch, batches, noise
        As in `residual_map`.
    explain_misfit
        Why a worker has no memory for so many points; ``None`` if it has.

    Warns
    -----
    DensityMaskedAwayWarning
        If much of the residual still lies outside after an earlier refresh, or outside the user's own mask.
    MaskNotEnlargedWarning
        If there is no memory for the larger mask: the earlier one stays.
    """
    found = find_missed(residual_map(learner, stage, epoch, batches, noise), learner.mask)
    # All ranks hold the same sums, but the last bit of a transform may depend on the processor.
    voxels = broadcast_from_leader(found.voxels.to(learner.device)).cpu()
    share = float(broadcast_from_leader(torch.tensor(found.share, device=learner.device)))
    earlier, learner.residual_outside = learner.residual_outside or 0.0, share
    if learner.config.training.mask is not None:
        if min(earlier, share) > _MUCH and rank_and_world()[0] == 0:
            _warn_of_given_mask(epoch, share)
        return
    wanted = learner.mask | voxels
    refusal = gather_objects(explain_misfit(int(wanted.sum())))[0]
    if refusal is None:
        learner.allow(wanted)
    if rank_and_world()[0] != 0:
        return
    if refusal is not None:
        warnings.warn(
            f"after {epoch:.0f} epochs {share:.0%} of the residual lies where the occupancy mask allows no density, "
            f"and the mask stays as it is: with the larger one {refusal}",
            MaskNotEnlargedWarning,
            stacklevel=2,
        )
    elif min(earlier, share) > _MUCH:
        warnings.warn(
            f"after {epoch:.0f} epochs {share:.0%} of the residual lies where the occupancy mask allowed no density, "
            f"{earlier:.0%} at the refresh before; the mask was enlarged accordingly. If this warning repeats, look at "
            "occupancy.mrc and set training.occupancy to sphere",
            DensityMaskedAwayWarning,
            stacklevel=2,
        )


def _warn_of_given_mask(epoch: float, share: float) -> None:
    warnings.warn(
        f"after {epoch:.0f} epochs {share:.0%} of the residual lies outside training.mask, which stays as it is: "
        "density there is missing from the maps; look at them beside consensus.mrc, and start again with a wider mask",
        DensityMaskedAwayWarning,
        stacklevel=3,
    )


def refresh_sample(rows: Rows) -> Rows:
    """The particles whose residual is looked at: the first, since store rows are in random order.

    The same ones every time: their noise is then the same too, and what it activates in empty space does not add up
    over the refreshes of a run.
    """
    return rows[: min(_MOST, max(_FEWEST, round(_SHARE * len(rows))))]


@torch.no_grad()
def residual_map(
    learner: Learner, stage: Stage, epoch: float, batches: Iterator[ParticleBatch], noise: ResidualNoise | None = None
) -> Float[Tensor, "coarse coarse coarse"]:
    """Back-projection of data minus model, each particle in its own conformation and pose, over all ranks.

    Parameters
    ----------
    learner
        Network and tables as they are.
    stage, epoch
        Decide what takes part, as in a training step.
    batches
        This rank's share of the sample.
    noise
        Where to count the residuals' power by frequency.

    Returns
    -------
    On the grid on which masks are decided (or a coarser one while training compares low frequencies only), on the CPU.
    """
    objectives = learner.objectives
    wanted = mask_box(objectives.box, objectives.pixel_size_angstrom)
    accumulator: FourierAccumulator | None = None
    # To look at particles is not to train on them: an encoder's running statistics stay as they are.
    objectives.eval()
    for batch in batches:
        pose, latent = learner.settle(stage, batch, epoch)
        # Which of the shifted lattices does not matter at this scale.
        residual = objectives.residual(batch, latent, pose, 0, learner.is_coarse(stage, epoch))
        if noise is not None:
            noise.add(batch, residual)
        box = min(wanted, residual.shape[-2])
        pixels = objectives.box / box
        if accumulator is None:
            accumulator = FourierAccumulator(box, objectives.pixel_size_angstrom * pixels, learner.device)
            comparable = comparable_frequencies(box).to(learner.device)
        images = fourier_to_image(-crop_half_plane(residual, box) * comparable, box)
        accumulator.add(images, pose, batch.ctf, batch.pixel_size_angstrom * pixels)
    objectives.train()
    assert accumulator is not None
    accumulator.sums = sum_over_ranks(accumulator.sums)
    return accumulator.solve().cpu()
