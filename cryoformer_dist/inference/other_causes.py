"""What else than conformation explains latents.

A conformation belongs to the molecule. Where latents can be told from how an image was taken, or from how strong it is,
they hold that beside conformations, or in place of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float, Int

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.inference.ridge import Ridge, with_products
from cryoformer_dist.physics.pose import Pose, axis_angle_from_rotation


class Cause(StrEnum):
    """What latents should not depend on."""

    AMPLITUDE = "amplitude"
    IMAGE_POWER = "image power"
    DEFOCUS = "defocus"
    VIEW = "viewing direction"
    POSE_CHANGE = "pose change"
    OPTICS_GROUP = "optics group"
    PLACE_IN_FILE = "place in the file"


_DEALS = 20
_MOST_GROUPS = 64
# Neighbours in a file are of one micrograph, or of a few.
_PARTICLES_OF_A_PLACE = 100
# Images of so many particles are read, the first ones: rows of a store are in random order.
_IMAGES_READ = 4096
_IMAGES_AT_A_TIME = 256
# In radians or angstrom.
_ROUNDING = 1e-3
# Axes of less say nothing of the latents.
_LEAST_OF_AN_AXIS = 0.01


@dataclass(frozen=True, slots=True)
class Explained:
    """How far one cause goes with the latents.

    Attributes
    ----------
    name
        Which.
    explained, floor
        Share of the latents' variance that it predicts, and the most that as many random deals of it did; 0 at least.
    axis, axis_explained
        Principal axis that it predicts best, from 1, and the share of its variance.
    told
        Share of the cause's own variance that latents predict; ``None`` for groups.
    """

    name: Cause
    explained: float
    floor: float
    axis: int
    axis_explained: float
    told: float | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something known of each particle.

    Attributes
    ----------
    cause
        What.
    values
        ``(particles, numbers)``; ``None`` for groups, and for particles beyond its rows.
    group
        ``(particles,)`` names of groups, from 0.
    """

    cause: Cause
    values: Float[np.ndarray, "particles numbers"] | None = None
    group: Int[np.ndarray, " particles"] | None = None

    def features(self) -> Float[np.ndarray, "particles features"]:
        """What a quadratic function of it, or one number per group, is linear in."""
        if self.group is not None:
            one_hot: np.ndarray = np.eye(int(self.group.max()) + 1)[self.group]
            return one_hot
        assert self.values is not None
        return with_products(self.values)

    @property
    def varies(self) -> bool:
        """Whether it tells particles apart at all."""
        content = self.values if self.group is None else self.group
        return content is not None and len(content) > 0 and bool(np.ptp(content, axis=0).max() > 0)


def list_candidates(
    store: ParticleStore,
    rows: Int[np.ndarray, " particles"],
    pose: Pose,
    amplitude: Float[np.ndarray, " particles"] | None,
) -> Iterator[Candidate]:
    """What is known of the images of some particles, as far as it varies.

    Parameters
    ----------
    store, rows
        Which; in the order of the store.
    pose
        Of each, as trained.
    amplitude
        Of each, where it was looked for.
    """
    particles = store.particles()
    found = [
        Candidate(Cause.IMAGE_POWER, _measure_power(store, rows[:_IMAGES_READ])),
        Candidate(Cause.DEFOCUS, _mean_defocus(particles, rows)),
        Candidate(Cause.VIEW, pose.rotation[:, 2].numpy().astype(np.float64)),
        Candidate(Cause.POSE_CHANGE, _measure_change(particles, rows, pose)),
        Candidate(Cause.OPTICS_GROUP, group=_number_groups(particles.optics_group[rows])),
        Candidate(Cause.PLACE_IN_FILE, group=_cut_file(particles.source_row[rows])),
    ]
    if amplitude is not None:
        found.insert(0, Candidate(Cause.AMPLITUDE, np.log(amplitude.clip(min=1e-3))[:, None].astype(np.float64)))
    yield from (candidate for candidate in found if candidate.varies)


def _measure_power(store: ParticleStore, rows: np.ndarray) -> np.ndarray:
    """Log mean square of images, whose background is in units of its noise."""
    power = []
    for start in range(0, len(rows), _IMAGES_AT_A_TIME):
        images = store.read_images(rows[start : start + _IMAGES_AT_A_TIME]).astype(np.float32)
        power.append(np.square(images).mean(axis=(1, 2)))
    logarithm: np.ndarray = np.log(np.concatenate(power).clip(min=1e-6))[:, None].astype(np.float64)
    return logarithm


def _mean_defocus(particles: StoredParticles, rows: np.ndarray) -> np.ndarray:
    both = particles.defocus_u_angstrom[rows].astype(np.float64) + particles.defocus_v_angstrom[rows]
    mean: np.ndarray = both[:, None] / 2
    return mean


def _measure_change(particles: StoredParticles, rows: np.ndarray, pose: Pose) -> np.ndarray:
    """By how much poses were turned about, and moved along, each axis of the image since they were given."""
    if not particles.has_poses:
        return np.zeros((len(rows), 5))
    given = particles.pose(rows)
    turn = axis_angle_from_rotation(pose.rotation @ given.rotation.mT)
    change: np.ndarray = torch.cat([turn, pose.shift_angstrom - given.shift_angstrom], dim=1).double().numpy()
    # Of poses that were kept, rounding is left.
    return change if np.abs(change).max() > _ROUNDING else np.zeros_like(change)


def _number_groups(names: np.ndarray) -> np.ndarray:
    """Groups from 0, the largest first; those beyond the most that are told apart in one."""
    _, index, count = np.unique(names, return_inverse=True, return_counts=True)
    place = np.empty(len(count), dtype=np.int64)
    place[np.argsort(-count, kind="stable")] = np.arange(len(count))
    number: np.ndarray = np.minimum(place[index], _MOST_GROUPS - 1)
    return number


def _cut_file(source_row: np.ndarray) -> np.ndarray:
    """Pieces of the file, one after the other."""
    pieces = int(np.clip(len(source_row) // _PARTICLES_OF_A_PLACE, 1, _MOST_GROUPS))
    place: np.ndarray = np.argsort(np.argsort(source_row, kind="stable"), kind="stable")
    return place * pieces // len(source_row)


def explain_by(candidate: Candidate, coordinates: Float[np.ndarray, "particles axes"], seed: int = 0) -> Explained:
    """How far one cause goes with latents.

    Parameters
    ----------
    candidate
        Of the same particles, or of the first of them.
    coordinates
        Latents along their principal axes, in their own units.
    seed
        Of the deals that say what chance explains.
    """
    features = candidate.features()
    coordinates = coordinates[: len(features)]
    variance = coordinates.var(axis=0)
    share = variance / variance.sum().clip(min=1e-30)
    ridge, generator = Ridge(features), np.random.default_rng(seed)
    of_axes = ridge.explain(coordinates)
    by_chance = [ridge.explain(generator.permutation(coordinates)) @ share for _ in range(_DEALS)]
    best = int(np.where(share >= _LEAST_OF_AN_AXIS, of_axes, -np.inf).argmax())
    return Explained(
        name=candidate.cause,
        explained=max(float(of_axes @ share), 0.0),
        floor=max(float(max(by_chance)), 0.0),
        axis=best + 1,
        axis_explained=max(float(of_axes[best]), 0.0),
        told=None if candidate.values is None else predict_from(coordinates, candidate.values),
    )


def predict_from(
    coordinates: Float[np.ndarray, "particles axes"], values: Float[np.ndarray, "particles numbers"]
) -> float:
    """Share of the variance of something that latents predict, 0 at least: mean over its numbers that vary."""
    spread = coordinates.std(axis=0)
    scaled = coordinates / np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, np.inf)
    varying = values.std(axis=0) > 1e-9
    return float(Ridge(with_products(scaled)).explain(values[:, varying]).clip(min=0).mean()) if varying.any() else 0.0
