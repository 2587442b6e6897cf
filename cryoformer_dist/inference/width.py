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
    neighbours = min(_FEWEST_NEIGHBOURS, len(latents) - 1)
    for place, (latent, own) in enumerate(zip(latents, reach, strict=True)):
        apart = latents - latent
        squared = np.square(apart / own).mean(axis=1)
        near = np.exp(-squared / (2 * max(1.0, np.partition(squared, neighbours)[neighbours])))
        near /= near.sum()
        beside = (predicted - predicted[place]) * turn
        if period:
            beside = np.angle(np.exp(1j * beside))
        # How far it was looked does not matter: states vary in proportion to latents.
        seen = near @ np.square(apart - near @ apart).sum(axis=1)
        varied = near @ np.square(beside - near @ beside) * np.square(own).sum() / max(seen, 1e-30)
        width[place] = np.sqrt(varied) / turn
    # Who knows nothing still knows how states are spread.
    limited: np.ndarray = width.clip(max=period / np.sqrt(12) if period else float(predicted.std()))
    return limited
