"""The latents unrolled onto a plane by UMAP: fitted to a sample, all others put where their neighbours in it are."""

import warnings

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from cryoformer_dist.errors import BackendUnavailableError

FITTED = 50_000
"""At most so many latents, drawn at random, are embedded; the others are placed among them."""
_PLACED_BY = 5
_BLOCK = 65_536


def embed(latents: Float[np.ndarray, "particles latent"], seed: int = 0) -> Float[np.ndarray, "particles 2"]:
    """Coordinates on a plane on which neighbours stay neighbours; distances between groups mean nothing.

    Raises
    ------
    BackendUnavailableError
        If umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():
            # It tells of its own optional parts.
            warnings.simplefilter("ignore")
            import umap
    except ImportError as error:
        raise BackendUnavailableError(
            f"UMAP needs umap-learn: pip install 'cryoformer-dist[umap]' ({error})"
        ) from error
    drawn = np.sort(np.random.default_rng(seed).permutation(len(latents))[:FITTED])
    with warnings.catch_warnings():
        # That a fixed seed takes one thread.
        warnings.simplefilter("ignore")
        fitted = umap.UMAP(random_state=seed).fit_transform(latents[drawn].astype(np.float32))
    return place_among(latents, drawn, np.asarray(fitted, dtype=np.float32))


def place_among(
    latents: Float[np.ndarray, "particles latent"],
    drawn: np.ndarray,
    fitted: Float[np.ndarray, "drawn 2"],
) -> Float[np.ndarray, "particles 2"]:
    """Coordinates of all: of those drawn as fitted, of others the mean of their neighbours', nearer ones more.

    Parameters
    ----------
    latents
        Of all.
    drawn
        Rows of those that were fitted.
    fitted
        Their coordinates.
    """
    tree, near = cKDTree(latents[drawn]), min(_PLACED_BY, len(drawn))
    placed = np.empty((len(latents), 2), dtype=np.float32)
    for start in range(0, len(latents), _BLOCK):
        part = slice(start, start + _BLOCK)
        distance, index = (np.asarray(each) for each in tree.query(latents[part], k=[*range(1, near + 1)]))
        weight = 1 / (distance + 1e-12 + 1e-6 * distance[:, -1:])
        placed[part] = (fitted[index] * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
    placed[drawn] = fitted
    return placed
