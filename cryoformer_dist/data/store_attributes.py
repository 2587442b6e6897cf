"""What a particle store says about itself; the only place where that is written and read."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cryoformer_dist.data.contrast import Contrast
from cryoformer_dist.data.noise_measurement import GroupNoise
from cryoformer_dist.errors import StoreError
from cryoformer_dist.io.particles import Imaging, OpticsGroup
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues
from cryoformer_dist.physics.aberrations import EvenAberration
from cryoformer_dist.physics.ctf import NoiseFilter
from cryoformer_dist.storage.places import Place

SCHEMA_VERSION = 6
_REMEDY = "convert the particles again"


@dataclass(frozen=True, slots=True)
class SourceStack:
    """A stack that a store was converted from.

    Attributes
    ----------
    path
        Where it lay.
    particles
        How many of its images were taken.
    bytes, header_sha256
        Size, and checksum of the header.
    """

    path: str
    particles: int
    bytes: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The particle file that a store was converted from.

    Attributes
    ----------
    path
        Where it lay.
    sha256, table_sha256
        Of the file, and of the numbers read from it.
    stacks
        Its image stacks.
    """

    path: str
    sha256: str
    table_sha256: str
    stacks: tuple[SourceStack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOptics(OpticsGroup):
    """An optics group: box and pixel size of the stored images, and what they were in the source."""

    source_pixel_size_angstrom: float
    source_box_size: int


@dataclass(frozen=True, slots=True)
class Conversion:
    """How the source images became the stored ones.

    Attributes
    ----------
    seed
        Of the row permutation and of the sample.
    particle_diameter_angstrom
        What lies outside is background; the circle that fills the box when ``None``.
    stated
        What the user said of the particles because their file does not.
    allow_duplicates
        Whether the source may list an image more than once.
    """

    seed: int
    particle_diameter_angstrom: float | None
    stated: StatedValues = NOTHING_STATED
    allow_duplicates: bool = False


@dataclass(frozen=True, slots=True)
class StoreAttributes:
    """What a particle store says about itself.

    Attributes
    ----------
    program
        Name and version of what wrote it.
    box_size, pixel_size_angstrom
        Of the stored images; pixels are those of the first optics group.
    optics
        The optics groups, in the order that the stored particles name them by.
    has_poses
        Whether the source file carried poses.
    source
        What it was converted from.
    contrast
        Sign of the source images.
    conversion
        What was done to them.
    noise
        Of each optics group; what its images were whitened by.
    """

    program: str
    box_size: int
    pixel_size_angstrom: float
    optics: tuple[StoredOptics, ...]
    has_poses: bool
    source: Source
    contrast: Contrast
    conversion: Conversion
    noise: tuple[GroupNoise, ...]

    def noise_filter(self, group: NDArray[np.int32]) -> NoiseFilter | None:
        """What whitened particles of these optics groups; ``None`` if that was nothing."""
        if all(noise.white for noise in self.noise):
            return None
        length = torch.tensor([optics.box_size * optics.pixel_size_angstrom for optics in self.optics])
        return NoiseFilter(torch.tensor(group), torch.stack([noise.gain for noise in self.noise]), length)

    def even_aberration(self, group: NDArray[np.int32]) -> EvenAberration | None:
        """Even aberrations of particles of these optics groups; ``None`` if there are none."""
        return EvenAberration.of(torch.tensor(group), [optics.imaging.even_zernike for optics in self.optics])

    def fingerprint(self, particles: int) -> str:
        """sha256 of the attributes and the number of particles; the places of the sources do not count."""
        content = _content(self)
        source = content.pop("source")
        for located in (source, *source["stacks"]):
            del located["path"]
        text = json.dumps([content, source, particles], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def attributes_to_write(attributes: StoreAttributes, particles: int) -> dict[str, Any]:
    """Content of a finished store's attributes, with schema version, fingerprint and the mark that it is complete."""
    content = _content(attributes) | {"fingerprint": attributes.fingerprint(particles)}
    return {**dict(sorted(content.items())), "complete": True}


def read_attributes(content: dict[str, Any], store: Place) -> StoreAttributes:
    """Read what `attributes_to_write` gave.

    Parameters
    ----------
    content
        As written, and possibly changed or by another version since.
    store
        Where it was found, for errors.

    Raises
    ------
    StoreError
        If it is of another schema, or something is missing, too much or no attribute at all.
    """
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(f"{store}: store schema {version}, this program reads {SCHEMA_VERSION}: {_REMEDY}")
    try:
        source = content["source"]
        stacks = tuple(SourceStack(**stack) for stack in source["stacks"])
        optics = tuple(_read_optics(group) for group in content["optics"])
        return StoreAttributes(
            program=content["program"],
            box_size=content["box_size"],
            pixel_size_angstrom=content["pixel_size_angstrom"],
            optics=optics,
            has_poses=content["has_poses"],
            source=Source(**source | {"stacks": stacks}),
            contrast=Contrast(**content["contrast"]),
            conversion=_read_conversion(content["conversion"]),
            noise=tuple(read_noise(group) for group in content["noise"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{store}: its attributes are damaged ({error!r}): {_REMEDY}") from error


def _read_conversion(content: dict[str, Any]) -> Conversion:
    return Conversion(**content | {"stated": StatedValues(**content["stated"])})


def _read_optics(content: dict[str, Any]) -> StoredOptics:
    said = content["imaging"]
    zernike = {name: tuple(said[name]) for name in ("odd_zernike", "even_zernike")}
    lists = {"unapplied_aberrations": tuple(content["unapplied_aberrations"]), "imaging": Imaging(**said | zernike)}
    return StoredOptics(**content | lists)


def read_noise(content: dict[str, Any]) -> GroupNoise:
    """Read the noise of an optics group as JSON has it."""
    curves = {name: tuple(content[name]) for name in ("power", "error")}
    return GroupNoise(**content | curves)


def _content(attributes: StoreAttributes) -> dict[str, Any]:
    return asdict(attributes) | {"schema_version": SCHEMA_VERSION}
