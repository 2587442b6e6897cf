"""How surely a state that is predicted from latents is known, where each latent comes with a width.

Widths are known along each dimension of a latent, not along which line they belong together. Latents of other particles
say that: a conformation that an image does not tell from the particle's own is among theirs.
"""

import numpy as np
from jaxtyping import Float

from cryoformer_dist.inference.ridge import Ridge, with_products

# Of the cloud's width, or a particle would be known better than any number is.
_LEAST_SHARE = 1e-3
# So many others are looked at, however narrow a particle's width is.
_FEWEST_NEIGHBOURS = 20
# Until weights fit; and by how much they change at a time.
_ROUNDS, _STEP = 12, (0.4, 2.5)


def predict_state(
    coordinates: Float[np.ndarray, "particles axes"], state: Float[np.ndarray, " particles"], period: float
) -> Float[np.ndarray, " particles"]:
    """State of each particle as a quadratic function of latents says that was fitted to the other ones.

    Parameters
    ----------
    coordinates
        Of the latents along principal axes, each of unit variance.
    state, period
        True state, and its period; 0 for a line.
    """
    ridge = Ridge(with_products(coordinates))
    if not period:
        return ridge.predict(state[:, None].astype(np.float64))[:, 0]
    angle = state * (2 * np.pi / period)
    cosine, sine = ridge.predict(np.stack([np.cos(angle), np.sin(angle)], axis=1)).T
    around: np.ndarray = np.mod(np.arctan2(sine, cosine) * (period / (2 * np.pi)), period)
    return around


def find_width(
    latents: Float[np.ndarray, "particles dimensions"],
    deviation: Float[np.ndarray, "particles dimensions"],
    predicted: Float[np.ndarray, " particles"],
    period: float,
) -> Float[np.ndarray, " particles"]:
    """Width of predicted states: how they vary among particles whose latents a particle's own width reaches.

    Parameters
    ----------
    latents, deviation
        Of each particle, and the width of its posterior along each dimension.
    predicted, period
        State that each latent stands for; its period, 0 for a line.
    """
    reach = deviation.clip(min=_LEAST_SHARE * latents.std(axis=0).clip(min=1e-12))
    turn = 2 * np.pi / period if period else 1.0
    width = np.empty(len(latents))
    for place, (latent, own) in enumerate(zip(latents, reach, strict=True)):
        near, seen = _weigh_others((latents - latent) / own)
        beside = (predicted - predicted[place]) * turn
        if period:
            beside = np.angle(np.exp(1j * beside))
        # Where latents do not vary as far as they are uncertain, or no others are so near: in proportion.
        missed = np.square(own).sum() / max(float(np.square(own) @ seen), 1e-30)
        width[place] = np.sqrt(near @ np.square(beside - near @ beside) * missed) / turn
    # Who knows nothing still knows how states are spread.
    limited: np.ndarray = width.clip(max=period / np.sqrt(12) if period else float(predicted.std()))
    return limited


def _weigh_others(
    apart: Float[np.ndarray, "others dimensions"],
) -> tuple[Float[np.ndarray, " others"], Float[np.ndarray, " dimensions"]]:
    """Weights under which others vary along each dimension as a particle's width says, and how they do vary.

    Of all such weights, those that single nobody out: the exponential of a sum of squares, one factor per dimension.

    Parameters
    ----------
    apart
        Latents of the others as seen from the particle, in units of its widths.
    """
    squared = np.square(apart)
    neighbours = min(_FEWEST_NEIGHBOURS, len(apart) - 1)
    wanted = max(1.0, float(np.partition(squared.mean(axis=1), neighbours)[neighbours]))
    factor = np.full(apart.shape[1], 1 / (2 * wanted * apart.shape[1]))
    for _ in range(_ROUNDS):
        near = np.exp(-squared @ factor)
        near /= near.sum()
        seen = near @ squared - np.square(near @ apart)
        factor *= (seen / wanted).clip(*_STEP)
    return near, seen
