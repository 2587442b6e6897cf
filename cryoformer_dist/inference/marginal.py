"""What images say of their conformations when maps are known and poses are not quite: a search without a network."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.inference.comparison import Spread, explain
from cryoformer_dist.inference.conformations import (
    MOVING_MAPS,
    ConformationMixture,
    find_principal_mixture,
    move,
)
from cryoformer_dist.physics.slices import TrilinearSlices

# Poses move to their posterior means so often: the sum over them is right to first order only.
_MOVES = 3


def mix_maps(
    maps: Float[Tensor, "maps box box box"],
    mixing: Float[Tensor, "conformations maps"],
    share: Float[Tensor, " conformations"],
    pixel_size_angstrom: float,
    box: int,
) -> ConformationMixture:
    """Conformations that are mixtures of a few maps.

    Parameters
    ----------
    maps
        At the box that is compared, in values of a map of that box.
    mixing
        How much of each map is in each conformation; of all together, 1.
    share
        Of the particles in each.
    pixel_size_angstrom, box
        Of the images.
    """
    compared = maps.shape[-1]
    mean = maps.mean(dim=0)
    changes = (maps - mean).flatten(1)
    principal = find_principal_mixture(changes)
    voxels = torch.cat([mean[None], (principal.T @ changes).reshape(-1, *mean.shape)])
    slices = TrilinearSlices(voxels, compared // 2 - 1)
    return ConformationMixture(
        latent=torch.arange(len(mixing), dtype=torch.float32)[:, None],
        log_share=share.log(),
        mixture=torch.cat([torch.ones(len(mixing), 1), mixing @ principal], dim=1),
        # What is true of them is no matter of contrast.
        strength=torch.ones(len(mixing)),
        slices=slices,
        leading_slices=slices.leading(MOVING_MAPS),
        map_pixel_angstrom=pixel_size_angstrom,
        box=box,
        compared_box=compared,
    )


def fit_scale(conformations: ConformationMixture, batches: Iterable[ParticleBatch], shown: Iterable[Tensor]) -> float:
    """How strongly images show the maps, from images at their right poses and the numbers of their conformations."""
    match = energy = 0.0
    for batch, number in zip(batches, shown, strict=True):
        compared = conformations.compare(conformations.look(batch, batch.pose, with_slopes=False))
        match += float(compared.match.gather(1, number[:, None]).sum())
        energy += float(compared.energy.gather(1, number[:, None]).sum())
    return match / max(energy, 1e-30)


@torch.no_grad()
def find_posterior(
    conformations: ConformationMixture, batches: Iterable[ParticleBatch], spread: Spread
) -> Float[Tensor, "particles conformations"]:
    """How probable each conformation is for each image, summed over amplitudes and poses about the given ones.

    Parameters
    ----------
    conformations
        With their shares.
    batches
        Images at their given poses.
    spread
        Of the given poses' errors, and of amplitudes.
    """
    return torch.cat([_ask(conformations, batch, spread) for batch in batches])


def _ask(
    conformations: ConformationMixture, batch: ParticleBatch, spread: Spread
) -> Float[Tensor, "particles conformations"]:
    pose = batch.pose
    for moves in range(_MOVES + 1):
        compared = conformations.compare(conformations.look(batch, pose, spread.moves_poses))
        explained = explain(compared, spread)
        probability: Tensor = (explained.log_likelihood + conformations.log_share).softmax(dim=1)
        if explained.offset is None or moves == _MOVES:
            break
        pose = move(pose, torch.einsum("bc,bcj->bj", probability, explained.offset))
    return probability
