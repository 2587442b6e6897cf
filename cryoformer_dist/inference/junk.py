"""Which images show something else than a particle.

Four hypotheses, each with its share of the images: a particle in one of its conformations; nothing but noise;
something without structure, which the microscope passes like everything else; a particle, and such a something beside
it (a neighbour that overlaps). Something without structure is Gaussian, with the radial power that the images of all
particles have beyond their noise: all that is not the particle, without knowing what it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoformer_dist.inference.conformations import Views
from cryoformer_dist.ranks import sum_over_ranks


class Kind(IntEnum):
    """What an image may show."""

    PARTICLE = 0
    NOTHING = 1
    SOMETHING_ELSE = 2
    PARTICLE_AND_MORE = 3


# Before the images are asked; and the least share that a kind is given.
_FIRST_SHARES, _LEAST_SHARE = (0.91, 0.03, 0.03, 0.03), 1e-3
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class JunkModel:
    """What is known of all images together.

    Attributes
    ----------
    power
        ``(k,)``: of something without structure at each number that is compared, before the microscope, in units of the
        noise.
    share
        ``(4,)``: of each `Kind`.
    """

    power: Float[Tensor, " k"]
    share: Float[Tensor, " 4"]

    def compare(
        self, views: Views, log_evidence: Float[Tensor, " particles"], predicted: Float[Tensor, "particles k"]
    ) -> Float[Tensor, "particles 4"]:
        """Log-likelihood of each kind, but for what noise alone has.

        Parameters
        ----------
        views
            Images.
        log_evidence
            Of a particle, over all conformations.
        predicted
            What the particle would look like, in units of the noise.
        """
        shown = self.power * views.passed
        something = _explain_without_structure(views.images, shown)
        more = _explain_without_structure(views.images - predicted, shown)
        return torch.stack([log_evidence, torch.zeros_like(something), something, log_evidence + more], dim=1)

    def posterior(self, log_likelihood: Float[Tensor, "particles 4"]) -> Float[Tensor, "particles 4"]:
        """How probable each kind is."""
        return (log_likelihood + self.share.log()).softmax(dim=1)

    def with_shares_of(self, log_likelihoods: Sequence[Float[Tensor, "_ 4"]]) -> "JunkModel":
        """The same with the shares under which the images of all ranks are most probable."""
        model = self
        for _ in range(_ROUNDS):
            count = self.share.new_zeros(len(Kind))
            for each in log_likelihoods:
                count += model.posterior(each).sum(0)
            share = sum_over_ranks(count).clamp_min(1e-30)
            model = JunkModel(self.power, (share / share.sum()).clamp_min(_LEAST_SHARE))
        return model


class PowerSum:
    """Collects the power of images beyond their noise, Fourier shell by shell.

    Parameters
    ----------
    shell
        ``(k,)``: of each number that is compared.
    """

    def __init__(self, shell: Int[Tensor, " k"]) -> None:
        self._shell = shell
        self._sums = torch.zeros(2, int(shell.max()) + 1, device=shell.device)

    def add(self, views: Views) -> None:
        """Look at some images."""
        seen = torch.stack([(views.images.square() - 1).sum(0), views.passed.sum(0)])
        self._sums.index_add_(1, self._shell, seen)

    def finish(self) -> JunkModel:
        """Of the images of all ranks."""
        excess, passed = sum_over_ranks(self._sums)
        power = (excess / passed.clamp_min(1e-30)).clamp_min(0)
        return JunkModel(power[self._shell], power.new_tensor(_FIRST_SHARES))


def _explain_without_structure(numbers: Tensor, power: Tensor) -> Float[Tensor, " particles"]:
    """Log-likelihood ratio of noise with so much more power to noise alone."""
    return (numbers.square() * (power / (1 + power)) - torch.log1p(power)).sum(1) / 2
