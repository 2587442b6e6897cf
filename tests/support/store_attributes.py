"""What a made-up store of two optics groups says about itself."""

from dataclasses import replace

from cryoformer_dist.data.contrast import Contrast
from cryoformer_dist.data.noise_measurement import GroupNoise
from cryoformer_dist.data.store_attributes import Conversion, Source, SourceStack, StoreAttributes, StoredOptics
from cryoformer_dist.io.particles import Imaging


def _noise(box: int, slope: float) -> GroupNoise:
    """Noise that is `1 + slope` times stronger at the lowest than at the highest frequencies."""
    shells = box + 1
    power = tuple(1 + slope * (1 - shell / box) for shell in range(shells))
    return GroupNoise(power, (0.01,) * shells, slope == 0, 2.5, 2.4, 0.0, 0.25, 1000)


def store_attributes(box: int) -> StoreAttributes:
    """Attributes of a store of 300 and 200 kV images, 1.5 and 1.6 angstrom a pixel."""
    group = StoredOptics(
        name="one",
        pixel_size_angstrom=1.5,
        box_size=box,
        voltage_kv=300.0,
        spherical_aberration_mm=2.7,
        amplitude_contrast=0.1,
        unapplied_aberrations=("anisotropic magnification",),
        imaging=Imaging("phases flipped", (0.0, 1.5), (0.25,)),
        source_pixel_size_angstrom=0.75,
        source_box_size=2 * box,
    )
    return StoreAttributes(
        program="cryoformer-dist 0.0",
        box_size=box,
        pixel_size_angstrom=1.5,
        optics=(group, replace(group, name="two", voltage_kv=200.0, pixel_size_angstrom=1.6)),
        has_poses=True,
        source=Source("/somewhere/a.star", "0" * 64, "1" * 64, (SourceStack("/x.mrcs", 21, 3, "2" * 64),)),
        contrast=Contrast(-1, -7.5, "measured"),
        conversion=Conversion(seed=3, particle_diameter_angstrom=None),
        noise=tuple(_noise(box, slope) for slope in (0.0, 1.0)),
    )
