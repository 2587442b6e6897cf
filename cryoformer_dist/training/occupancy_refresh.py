"""Where the data ask for density that the mask cuts off: the residual of a sample of particles, back-projected."""

import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.data.order import Rows
from cryoformer_dist.errors import DensityMaskedAwayWarning
from cryoformer_dist.initialization.occupancy import find_missed, mask_box
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.fourier import comparable_frequencies, crop_half_plane, fourier_to_image
from cryoformer_dist.ranks import broadcast_from_leader, rank_and_world, sum_over_ranks
from cryoformer_dist.training.learner import Learner
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
    """

    def __init__(self, learner: Learner, particles: RankParticles) -> None:
        self._learner, self._particles = learner, particles
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
        refresh_occupancy(self._learner, moment.stage, moment.epoch, sample)


def refresh_occupancy(learner: Learner, stage: Stage, epoch: float, batches: Iterator[ParticleBatch]) -> None:
    """Add to the mask what it cuts off.

    Arguments as in `residual_map`.

    Warns
    -----
    DensityMaskedAwayWarning
        If much of the residual still lies outside after an earlier refresh.
    """
    found = find_missed(residual_map(learner, stage, epoch, batches), learner.mask)
    # All ranks hold the same sums, but the last bit of a transform may depend on the processor.
    voxels = broadcast_from_leader(found.voxels.to(learner.device)).cpu()
    share = float(broadcast_from_leader(torch.tensor(found.share, device=learner.device)))
    learner.allow(learner.mask | voxels)
    earlier, learner.residual_outside = learner.residual_outside or 0.0, share
    if min(earlier, share) > _MUCH and rank_and_world()[0] == 0:
        warnings.warn(
            f"after {epoch:.0f} epochs {share:.0%} of the residual lies where the occupancy mask allowed no density, "
            f"{earlier:.0%} at the refresh before; the mask was enlarged accordingly. If this warning repeats, look at "
            "occupancy.mrc and set training.occupancy to sphere",
            DensityMaskedAwayWarning,
            stacklevel=2,
        )


def refresh_sample(rows: Rows) -> Rows:
    """The particles whose residual is looked at: the first, since store rows are in random order.

    The same ones every time: their noise is then the same too, and what it activates in empty space does not add up
    over the refreshes of a run.
    """
    return rows[: min(_MOST, max(_FEWEST, round(_SHARE * len(rows))))]


@torch.no_grad()
def residual_map(
    learner: Learner, stage: Stage, epoch: float, batches: Iterator[ParticleBatch]
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
