"""What a particle leaves of its box, and what noise shows there.

A window on the background mixes frequencies, and the offset and the gradient that are removed take the lowest with
them. Both are known exactly, so what noise of a given spectrum would show is known too.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.physics.fourier import crop_images
from cryoformer_dist.physics.grids import centred_axis, radius_grid

FIELD = 2
"""Boxes, of whose width a field of noise is thought to be: pixels of a box are never farther apart."""
# Of the box: how far the background's edge reaches, at least two pixels.
_EDGE, _LEAST_EDGE_PIXELS = 0.06, 2.0


@dataclass(frozen=True, eq=False)
class Background:
    """What lies outside the particle, and the offset and gradient that are fitted there.

    Attributes
    ----------
    weight
        ``(box, box)``: 1 outside the particle, with a soft edge.
    basis
        ``(3, box, box)``: 1, and the ramps along x and y, of mean zero where the weight is.
    dual
        ``(3, box, box)``: products with these are the coefficients of the least-squares fit, pixels weighted.
    """

    weight: Float[NDArray[np.float64], "box box"]
    basis: Float[NDArray[np.float64], "3 box box"]
    dual: Float[NDArray[np.float64], "3 box box"]

    @staticmethod
    def outside(box: int, radius_pixels: float) -> "Background":
        """Background of images of a box around a particle of a radius."""
        edge = max(_LEAST_EDGE_PIXELS, _EDGE * box)
        # The edge is narrower where little background is left.
        edge = min(edge, (box / 2**0.5 - radius_pixels) / 2)
        rise = ((radius_grid(box, 2).double().numpy() - radius_pixels) / edge).clip(0, 1)
        weight = np.sin(np.pi / 2 * rise) ** 2
        axis = centred_axis(box).double().numpy() / box
        ramps = [np.broadcast_to(axis, (box, box)), np.broadcast_to(axis[:, None], (box, box))]
        ramps = [ramp - (ramp * weight).sum() / weight.sum() for ramp in ramps]
        basis = np.stack([np.ones((box, box)), *ramps])
        gram = np.einsum("jyx,lyx,yx->jl", basis, basis, weight)
        return Background(weight, basis, np.einsum("jl,lyx->jyx", np.linalg.inv(gram), basis * weight))

    def cropped(self, box: int) -> "Background":
        """The fit as images that are cropped afterwards show it, on their own background."""
        old = self.weight.shape[-1]
        if box == old:
            return self
        basis, dual, weight = (
            crop_images(torch.from_numpy(np.array(each)), box).numpy() for each in (self.basis, self.dual, self.weight)
        )
        # A product sums over fewer pixels.
        return Background(weight.clip(0, 1), basis, dual * (old / box) ** 2)

    def keeping(self, share: Float[NDArray[np.float64], " 3"]) -> "Background":
        """The same where only a share of each coefficient is taken off."""
        return Background(self.weight, self.basis, self.dual * share[:, None, None])

    def boxed_power(
        self, field: Float[NDArray[np.float64], "field field"], gradient_share: float
    ) -> Float[NDArray[np.float64], "box box"]:
        """Power of whole images of a field's noise, after the offset and a share of the gradient are off."""
        kept = self.keeping(np.array([1.0, gradient_share, gradient_share]))
        return kept.seen(field, np.ones_like(self.weight))[::FIELD, ::FIELD]

    def flatten(
        self, images: Float[Tensor, "images box box"], gradient_share: float = 1.0
    ) -> tuple[Float[Tensor, "images box box"], Float[Tensor, "images 3"]]:
        """Images without their offset and a share of their gradient, and what was fitted."""
        basis, dual = (torch.from_numpy(each).float().flatten(1) for each in (self.basis, self.dual))
        # Sources may have a large offset, which single precision would carry into the slopes.
        centred = images - images.mean(dim=(1, 2), keepdim=True)
        fitted = centred.flatten(1) @ dual.T
        taken = fitted * fitted.new_tensor([1.0, gradient_share, gradient_share])
        return centred - (taken @ basis).view_as(images), fitted

    def fitted_variance(self, power: Float[NDArray[np.float64], "field field"]) -> Float[NDArray[np.float64], " 3"]:
        """Variance of offset and gradient that noise of a spectrum shows by chance; ``power`` as in `seen`."""
        response = np.abs(_transform(self.dual, len(power))) ** 2
        variance: NDArray[np.float64] = (power * response).sum((1, 2)) / power.size
        return variance

    def seen(
        self, power: Float[NDArray[np.float64], "field field"], window: Float[NDArray[np.float64], "box box"]
    ) -> Float[NDArray[np.float64], "field field"]:
        """Power that noise of a spectrum shows in a window, after the offset and gradient of the background are off.

        With ``W`` the window's transform, ``B`` those of window times basis and ``H`` of the dual, a wave ``k'`` is
        seen at ``k`` as ``W(k - k') - sum_j B_j(k) H_j(k')``; the square of that is summed over ``k'``.

        Parameters
        ----------
        power
            On the plane of a field that images are cut from, or as wide as they.
        window
            What of the images is looked at.
        """
        field = len(power)
        shape = _transform(window, field)
        basis, dual = _transform(window * self.basis, field), _transform(self.dual, field).conj()
        leaked = _convolve(power, np.abs(shape) ** 2).real
        crossed = sum(
            (each.conj() * _convolve(power * functional.conj(), shape)).real
            for each, functional in zip(basis, dual, strict=True)
        )
        moments = np.einsum("yx,jyx,lyx->jl", power, dual, dual.conj(), optimize=True)
        removed = np.einsum("jyx,lyx,jl->yx", basis, basis.conj(), moments, optimize=True).real
        total: NDArray[np.float64] = (leaked - 2 * crossed + removed) / (power.size * window.size)
        return total


def _transform(images: NDArray[np.float64], field: int) -> NDArray[np.complex128]:
    """Of images in an empty field."""
    transform: NDArray[np.complex128] = np.fft.fft2(images, s=(field, field))
    return transform


def _convolve(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.complex128]:
    """Circular convolution of two planes."""
    product: NDArray[np.complex128] = np.fft.ifft2(np.fft.fft2(first) * np.fft.fft2(second))
    return product


@lru_cache(4)
def background_of(source_box: int, radius_pixels: float, box: int) -> Background:
    """Background of images of a source box, seen after cropping to another."""
    return Background.outside(source_box, radius_pixels).cropped(box)
