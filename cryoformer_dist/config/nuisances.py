"""What real images have and ideal ones have not; each is off until asked for."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cryoformer_dist.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
NoiseShape = Literal["power_law", "empiar_10076"]


class NoiseConfig(Section):
    """Noise that is not white: its power falls with the frequency, alike in all directions.

    The signal-to-noise ratio, over all pixels, stays the one asked for.
    """

    ratio: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="power of the coarsest shell over that of the finest, at Nyquist; 1 is white, EMPIAR-10076 has 3.9",
    )
    shape: NoiseShape = Field(
        "empiar_10076",
        description="empiar_10076: high coarser than 26 A, flat finer than 13 A, as measured there; power_law: a power "
        "of the frequency from the first shell to Nyquist, at any pixel size",
    )
    ice_share: float = Field(
        0.0, ge=0, le=1, description="part of the noise's variance that lies in the ice: white, seen through the CTF"
    )


class BrightnessConfig(Section):
    """Contrast and background of each image."""

    contrast_sd: float = Field(
        0.0,
        ge=0,
        le=2,
        description="standard deviation of the factor on each particle's signal (log-normal, mean 1)",
    )
    offset_sd: float = Field(
        0.0, ge=0, description="standard deviation of a constant added to each image, in noise standard deviations"
    )
    gradient_sd: float = Field(
        0.0,
        ge=0,
        description="standard deviation of a linear gradient at an edge's middle, along x and along y, in noise "
        "standard deviations",
    )


class JunkConfig(Section):
    """Images that are no single particle, each kind as a share of all; the truth names them."""

    empty: Share = Field(0.0, description="nothing but noise")
    neighbours: Share = Field(0.0, description="a particle with another that overlaps it")
    blobs: Share = Field(0.0, description="up to three featureless lumps instead of a particle")

    @model_validator(mode="after")
    def _particles_remain(self) -> "JunkConfig":
        if self.empty + self.neighbours + self.blobs >= 1:
            raise ValueError("the shares of junk leave no particle: let them add up to less than 1")
        return self


class CtfErrorsConfig(Section):
    """What the particle file does not know of the microscope; the truth has the right defocus."""

    defocus_sd_angstrom: float = Field(
        0.0, ge=0, description="standard deviation of the error of the given defocus, alike for U and V"
    )
    true_amplitude_contrast: float | None = Field(
        None, ge=0, lt=1, description="that of the images, where the file gives ctf.amplitude_contrast or the table's"
    )
    b_factor: float = Field(0.0, ge=0, description="square angstrom; images are damped by exp(-B k^2 / 4)")


class ViewsConfig(Section):
    """Preferred orientation: views from a cap about the molecule's z axis; the others stay uniform."""

    share: Share = Field(0.0, description="part of the particles seen from the cap")
    cap_deg: float = Field(25.0, gt=0, le=180, description="half the opening angle of the cap")


class CrowdConfig(Section):
    """States crowded into a part of a continuous motion; the others stay uniform."""

    share: Share = Field(0.0, description="part of the particles in the crowd")
    width: float = Field(0.2, gt=0, le=1, description="length of the crowded part, as a share of the motion")
    centre: float = Field(0.3, ge=0, le=1, description="its middle, as a share of the motion")

    @model_validator(mode="after")
    def _inside(self) -> "CrowdConfig":
        if not self.width / 2 <= self.centre <= 1 - self.width / 2:
            raise ValueError("the crowded part leaves the motion: keep centre - width / 2 and centre + width / 2 in it")
        return self


class OpticsGroupConfig(Section):
    """Particles of one session; what is left out is as in the rest of the file."""

    weight: float = Field(1.0, gt=0, description="how many particles, relative to the other groups")
    snr: float | None = Field(None, gt=0, description="dose: the signal-to-noise ratio of this group's images")
    pixel_size_angstrom: float | None = Field(None, gt=0, description="of the written images, as many pixels wide")
    noise: NoiseConfig | None = Field(None, description="noise of this group's images")


class NuisancesConfig(Section):
    """What is unkind about a set.

    Errors of the given poses are in `perturbation`, uneven classes in `states.weights`.
    """

    noise: NoiseConfig = NoiseConfig()
    brightness: BrightnessConfig = BrightnessConfig()
    junk: JunkConfig = JunkConfig()
    ctf_errors: CtfErrorsConfig = CtfErrorsConfig()
    views: ViewsConfig = ViewsConfig()
    crowd: CrowdConfig = CrowdConfig()
    optics_groups: tuple[OpticsGroupConfig, ...] = Field(
        (), description="sessions, one after the other in the file; one group with everything as above when left out"
    )
