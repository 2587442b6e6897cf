"""What is left of images when their prediction is taken off: how its power compares with the noise assumed."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.physics.fourier import comparable_frequencies
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight
from cryoformer_dist.ranks import sum_over_ranks

# Standard errors: of one shell of many, and of the one where most departs.
_SIGNIFICANT, _SURELY = 4.0, 2.0


@dataclass(frozen=True, slots=True)
class NoiseDeparture:
    """Where the power of residuals is farthest from that of the noise.

    Attributes
    ----------
    group
        Number of the optics group, from 0.
    cycles
        Frequency in cycles over the box.
    power
        There, in units of the noise that was assumed; 1 if nothing departs by more than chance.
    error
        Its standard error.
    """

    group: int
    cycles: int
    power: float
    error: float

    @property
    def size(self) -> float:
        """Relative difference."""
        return abs(self.power - 1)

    def exceeds(self, limit: float) -> bool:
        """Whether it is surely larger."""
        return self.size - _SURELY * self.error > limit


class ResidualNoise:
    """Radial power of residuals by optics group, in units of white noise of unit variance.

    Parameters
    ----------
    pixels
        Side of the whole images, whose transforms the residuals are.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._sums: Tensor | None = None

    def add(self, batch: ParticleBatch, residual: Complex[Tensor, "particles box half"]) -> None:
        """Count a batch; residuals may be cropped."""
        box, noise = residual.shape[-2], batch.ctf.noise_filter
        group = torch.zeros_like(batch.row) if noise is None else noise.group.long()
        shell = (frequency_grid(box) * box).square().sum(-1).sqrt().round().long().clamp_max(box // 2).flatten()
        counted = (comparable_frequencies(box) * half_plane_weight(box)).flatten()
        shell, counted = shell.to(residual.device), counted.to(residual.device)
        power = (residual.real.square() + residual.imag.square()).flatten(1) / self._pixels**2
        each = torch.stack([power * counted, counted.expand_as(power)])
        per_image = each.new_zeros(2, len(power), box // 2 + 1).index_add_(2, shell, each)
        if self._sums is None:
            groups = 1 if noise is None else len(noise.gain)
            self._sums = each.new_zeros(2, groups, box // 2 + 1)
        self._sums.index_add_(1, group, per_image)

    def power(self) -> Float[Tensor, "groups shells"]:
        """Of all ranks, at 1, 2, ... cycles over the box, below Nyquist; 1 is as assumed, also where nobody looked."""
        return self._compare()[0]

    def departure(self) -> "NoiseDeparture":
        """Where it is farthest from what was assumed, beyond chance."""
        power, error = self._compare()
        # Of noise alone, one in ten thousand shells would count.
        departed = torch.where((power - 1).abs() > _SIGNIFICANT * error, power, 1.0)
        group, shell = divmod(int((departed - 1).abs().argmax()), power.shape[1])
        return NoiseDeparture(group, shell + 1, float(departed[group, shell]), float(error[group, shell]))

    def _compare(self) -> tuple[Float[Tensor, "groups shells"], Float[Tensor, "groups shells"]]:
        """Power relative to what was assumed, and its standard error."""
        assert self._sums is not None
        power, counted = sum_over_ranks(self._sums)[..., 1:-1].cpu()
        # A coefficient's power scatters by as much as it is, and of each pair +-k one is independent.
        return torch.where(counted > 0, power / counted.clamp_min(1), 1.0), (2 / counted.clamp_min(1)).sqrt()
