"""CryoFormer: latent vector to density anywhere in space."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoformer_dist.config.schema import ModelConfig
from cryoformer_dist.model.concatenation import ConcatenationDecoder
from cryoformer_dist.model.decoder import DeformationDecoder, FoldedQueries
from cryoformer_dist.model.encoders import AlignedEncoder, DeformationEncoder, OrientationEncoder
from cryoformer_dist.model.feature_volume import FeatureVolume
from cryoformer_dist.physics.fourier import fourier_to_volume
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.volume import interpolate

_POINTS_AT_A_TIME = 2**16


@dataclass(frozen=True, slots=True)
class SharedDensity:
    """What all conformations have in common where a focus mask lets none differ.

    Attributes
    ----------
    density
        ``(1, points)``, or of every particle where each has points of its own: that of the latent 0.
    focus
        1 where conformations may differ, 0 where they may not: ``(points,)``, or as `density`.
    """

    density: Float[Tensor, "shared points"]
    focus: Tensor

    def confine(
        self, density: Float[Tensor, "particles points"], scale: Float[Tensor, " particles"] | None = None
    ) -> Float[Tensor, "particles points"]:
        """Densities of conformations, times their ``scale``, that differ inside the focus alone."""
        shared = self.density if scale is None else self.density * scale[:, None]
        return torch.lerp(shared, density, self.focus)


class CryoFormer(nn.Module):
    """The network without its per-particle tables: those are rows of data, kept beside it.

    Parameters
    ----------
    config
        Sizes and which encoders exist.
    box
        Side of the images in pixels.
    spectrum
        ``(shells,)`` root-mean-square amplitude per Fourier shell of the map to be expected; Fourier domain only.
    """

    def __init__(self, config: ModelConfig, box: int, spectrum: Tensor | None = None) -> None:
        super().__init__()
        self.box = box
        self.domain, self.kernels = config.domain, config.kernels
        spectrum = torch.ones(box // 2) if spectrum is None else spectrum
        self.register_buffer("spectrum", spectrum, persistent=False)
        self.spectrum: Tensor
        self.register_buffer("focus", None, persistent=False)
        self.focus: Tensor | None
        self.latent_dimensions = config.latent.dimensions
        decoder = config.decoder
        self.feature_volume = FeatureVolume(config.hash_grid, box, decoder.hidden_width, config.kernels)
        self.decoder = (
            DeformationDecoder(decoder, 1 if config.domain == "real" else 2, config.kernels)
            if decoder.form == "attention"
            else ConcatenationDecoder(decoder)
        )
        self.deformation_tokens = nn.Linear(config.latent.dimensions, decoder.queries * decoder.channels)
        # Unit-variance latents become unit-variance tokens.
        nn.init.normal_(self.deformation_tokens.weight, std=config.latent.dimensions**-0.5)
        nn.init.zeros_(self.deformation_tokens.bias)
        self.deformation_encoder = (
            DeformationEncoder(config.latent.encoder, box, config.latent.dimensions)
            if config.latent.form == "encoder"
            else None
        )
        self.latent_encoder = (
            AlignedEncoder(config.latent.encoder, box, config.latent.dimensions)
            if config.latent.form == "table_then_encoder"
            else None
        )
        self.orientation_encoder = (
            OrientationEncoder(config.pose.encoder, box) if config.pose.form.startswith("encoder") else None
        )

    def confine(self, focus: Float[Tensor, "box box box"]) -> None:
        """Have conformations differ where ``focus`` is 1, and all share the density of the latent 0 where it is 0."""
        self.focus = focus.to(self.spectrum.device)

    def condition(self, latent: Float[Tensor, "particles dimensions"]) -> FoldedQueries | Tensor:
        """A conformation per latent vector, ready for `density`."""
        decoder = self.decoder
        tokens = self.deformation_tokens(latent)
        deformation = tokens.reshape(len(latent), *decoder.structure_queries.shape)
        return decoder.fold(decoder.queries(deformation))

    def density(
        self,
        hidden: Float[Tensor, "*shared points hidden"],
        folded: FoldedQueries | Tensor,
        scale: Float[Tensor, " particles"] | None = None,
    ) -> Float[Tensor, "particles points"]:
        """Density of each particle at points whose spatial feature is ``hidden``, times its ``scale``."""
        # A decoder meets only what it has folded itself.
        return self.decoder.density(hidden, folded, scale)  # type: ignore[arg-type]

    def shared_density(
        self, hidden: Float[Tensor, "*shared points hidden"], points_pixels: Float[Tensor, "*shared points 3"]
    ) -> SharedDensity | None:
        """What conformations have in common at points whose feature is ``hidden``; ``None`` without a focus mask."""
        if self.focus is None:
            return None
        count = len(hidden) if hidden.dim() == 3 else 1
        none = self.condition(hidden.new_zeros(count, self.latent_dimensions))
        return SharedDensity(self.density(hidden, none), interpolate(self.focus, points_pixels))

    def coefficients(
        self, points_shells: Float[Tensor, "particles points 3"], folded: FoldedQueries | Tensor
    ) -> Complex[Tensor, "particles points"]:
        """Transform of each particle's density at its own frequencies, in shells of the box (Fourier domain)."""
        return self._coefficients(*self._frequency_features(points_shells), folded)

    def _frequency_features(
        self, points_shells: Float[Tensor, "particles points 3"]
    ) -> tuple[Float[Tensor, "particles points hidden"], Float[Tensor, "particles points"]]:
        """``h`` at frequencies, and the amplitude to be expected there."""
        hidden = self.feature_volume(points_shells.reshape(-1, 3)).reshape(*points_shells.shape[:2], -1)
        shell = points_shells.norm(dim=-1).clamp(max=len(self.spectrum) - 1.001)
        below = shell.long()
        share = shell - below
        return hidden, torch.lerp(self.spectrum[below], self.spectrum[below + 1], share)

    def _coefficients(self, hidden: Tensor, amplitude: Tensor, folded: FoldedQueries | Tensor) -> Tensor:
        assert isinstance(self.decoder, DeformationDecoder)
        assert isinstance(folded, FoldedQueries)
        return self.decoder.coefficients(hidden, folded) * amplitude

    @torch.no_grad()
    def volumes(
        self,
        latent: Float[Tensor, "states dimensions"],
        points_pixels: Float[Tensor, "points 3"],
        flat_index: Tensor,
    ) -> Float[Tensor, "states box box box"]:
        """Maps of given latent vectors.

        Parameters
        ----------
        latent
            One row per map.
        points_pixels
            Points that may hold density, in pixels about the centre.
        flat_index
            Place of each point in ``volume.ravel()``; all other voxels are zero.
        """
        return torch.stack(list(self.each_volume(latent, points_pixels, flat_index)))

    @torch.no_grad()
    def each_volume(
        self,
        latent: Float[Tensor, "states dimensions"],
        points_pixels: Float[Tensor, "points 3"],
        flat_index: Tensor,
    ) -> Iterator[Float[Tensor, "box box box"]]:
        """As `volumes`, one map at a time."""
        if self.domain == "fourier":
            yield from self._invert_transforms(latent)
            return
        hidden = self.feature_volume.in_tiles(points_pixels)
        shared = self.shared_density(hidden, points_pixels)
        for vector in latent:
            density = self.density(hidden, self.condition(vector[None]))
            voxels = latent.new_zeros(self.box**3)
            voxels[flat_index] = (density if shared is None else shared.confine(density))[0]
            yield voxels.reshape(self.box, self.box, self.box)

    def _invert_transforms(self, latent: Tensor) -> Iterator[Float[Tensor, "box box box"]]:
        """Maps, from their transforms on the half space z >= 0."""
        points = lattice_points(self.box).to(self.spectrum.device)
        inside = points.square().sum(-1) <= (self.box / 2 - 1) ** 2
        side = torch.where(points[inside, 2] < 0, -1.0, 1.0)
        wanted = (points[inside] * side[:, None])[None]
        # All maps share them.
        known = [self._frequency_features(part) for part in wanted.split(_POINTS_AT_A_TIME, dim=1)]
        for vector in latent:
            folded = self.condition(vector[None])
            found = torch.cat([self._coefficients(*features, folded)[0] for features in known])
            transform = found.new_zeros(self.box**3)
            transform[inside] = torch.complex(found.real, found.imag * side)
            yield fourier_to_volume(torch.fft.ifftshift(transform.reshape(self.box, self.box, self.box)))
