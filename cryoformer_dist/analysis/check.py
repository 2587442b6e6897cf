"""Look before training: whether the store is whole, and signs, shifts and rotations mean what they should."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cryoformer_dist.analysis.map_fsc import write_curves
from cryoformer_dist.data.contrast import CERTAIN_Z_SCORE, contrast_z_score
from cryoformer_dist.data.noise_check import describe_noise, look_at_noise
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.figures.check import CheckPicture, draw_check
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.ctf import CTFParams, transfer_at
from cryoformer_dist.physics.fourier import (
    FSC_HALF_MAPS,
    FSCCurve,
    crop_images,
    fourier_shell_correlation,
    fourier_to_image,
    image_to_fourier,
)
from cryoformer_dist.physics.grids import frequency_grid, radius_grid
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.progress import StagedProgress, silent

# What is written into the folder of a check.
_MAPS = ("half1.mrc", "half2.mrc", "map.mrc")
_CURVE, _PICTURE = "fsc.csv", "check.png"
_MAP_BOX = 128
_VARIANT_BOX = 64
_VARIANT_SAMPLE = 600
_CONTRAST_BOX = 48
_PICTURES = 8
_NOISE_SAMPLE = 512
_BLOCK = 64
# Differences of the FSC area below this come from the sample, not from a convention.
_CLEAR_AREA_DIFFERENCE = 0.02

AS_STORED = "as stored"
SHIFTS_FLIPPED = "shifts with the opposite sign"
ROTATIONS_TRANSPOSED = "rotations transposed"
PHASES_FLIPPED = "images with flipped phases"
_ADVICE = {
    SHIFTS_FLIPPED: "the shifts look flipped: negate the origins in the particle file and convert again",
    ROTATIONS_TRANSPOSED: "the rotations look transposed: their program uses the inverse matrix",
    PHASES_FLIPPED: "the images look phase-flipped: extract them again without phase flipping",
}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_store` found.

    Attributes
    ----------
    sample
        Particles back-projected; 0 when the store has no poses.
    half_sets
        ``given`` by the source or ``random``, and then why.
    fsc
        Between the half maps, inside a soft sphere; its box and pixel size are those of the maps.
    resolution_angstrom
        At 0.143, of this sample and, for boxes beyond 128 pixels, no finer than the cropped maps allow.
    fsc_area
        Of the half maps under each reading of the conventions, ``as stored`` among them.
    contrast_z_score
        Positive when the protein is bright, in standard errors.
    findings
        Sentences for the user, the problems first.
    healthy
        Whether no finding is a problem.
    files
        What was written.
    """

    particles: int
    sample: int
    half_sets: str
    fsc: FSCCurve | None
    resolution_angstrom: float | None
    fsc_area: dict[str, float]
    contrast_z_score: float
    findings: tuple[str, ...]
    healthy: bool
    files: tuple[Path, ...]

    def __str__(self) -> str:
        lines = [f"{'all chunks whole' if self.healthy else 'LOOK BEFORE TRAINING'}: {self.particles} particles"]
        lines += [f"- {finding}" for finding in self.findings]
        return "\n".join([*lines, f"picture    {self.files[-1]}"])


@dataclass(frozen=True, slots=True)
class _Sample:
    """Images of some rows at the size used for testing the conventions, and their metadata."""

    images: Float[Tensor, "particles box box"]
    pose: Pose
    ctf: CTFParams
    pixel_size_angstrom: Float[Tensor, " particles"]
    half: Tensor

    def take(self, count: int) -> "_Sample":
        """Take the first particles of the sample, which is in random order."""
        rows = torch.arange(min(count, len(self.images)))
        return _Sample(
            self.images[rows],
            self.pose[rows],
            self.ctf[rows],
            self.pixel_size_angstrom[rows],
            self.half[rows],
        )


def check_store(
    store: ParticleStore,
    output: Path,
    sample: int = 2000,
    seed: int = 0,
    progress: StagedProgress = silent,
) -> CheckReport:
    """Verify every chunk, back-project a sample into half maps, test the conventions, and draw what came out.

    Parameters
    ----------
    output
        Folder for `half1.mrc`, `half2.mrc`, `map.mrc`, `fsc.csv` and `check.png`.
    sample
        Particles to back-project.
    progress
        Called with (stage, done, in all).

    Raises
    ------
    StoreError
        If a chunk is damaged or missing: array, chunk, rows and file are named.
    """
    store.verify(lambda done, total: progress("checksums", done, total))
    output.mkdir(parents=True, exist_ok=True)
    rows = _sample_rows(store, sample, seed)
    shown = store.read_images(rows[:_PICTURES]).astype(np.float32)
    noise = look_at_noise(store, rows[:_NOISE_SAMPLE])
    background = [_judge_background(store, rows[: store.chunk_size]), *describe_noise(store.attributes, noise)]
    if not store.has_poses:
        return _report_without_poses(store, output, shown, [*noise.problems(), *background])
    particles = store.particles()
    half, half_sets = _split_into_halves(particles, rows, seed)
    maps, small = _back_project_halves(store, particles, rows, half, progress)
    areas = _try_variants(small.take(_VARIANT_SAMPLE), progress)
    z_score = _measure_contrast(small)
    problems, notes = _judge(areas, z_score)
    problems += noise.problems()
    pixel_size = store.pixel_size_angstrom * store.box_size / maps.shape[-1]
    fsc = _correlate_in_sphere(maps, pixel_size)
    findings = (*problems, *notes, *background, _describe_resolution(len(rows), len(store), half_sets, fsc))
    picture = CheckPicture(
        shown, store.pixel_size_angstrom, findings, not problems, Volume(maps.mean(0), pixel_size), fsc
    )
    picture = replace(picture, noise=_noise_curves(store))
    return CheckReport(
        particles=len(store),
        sample=len(rows),
        half_sets=half_sets,
        fsc=fsc,
        resolution_angstrom=fsc.resolution_angstrom(FSC_HALF_MAPS),
        fsc_area=areas,
        contrast_z_score=z_score,
        findings=findings,
        healthy=not problems,
        files=(*_write_maps(output, maps, fsc), _draw(output, picture)),
    )


def _describe_resolution(sample: int, particles: int, half_sets: str, fsc: FSCCurve) -> str:
    resolution, size = fsc.resolution_angstrom(FSC_HALF_MAPS), fsc.pixel_size_angstrom
    return (
        f"{sample} of {particles} particles, {half_sets} half sets: {resolution:.1f} A at FSC {FSC_HALF_MAPS:g} "
        f"(maps of {fsc.box_size} px at {size:.3g} A, Nyquist {2 * size:.3g} A, soft sphere)"
    )


def _draw(output: Path, picture: CheckPicture) -> Path:
    path = output / _PICTURE
    draw_check(path, picture)
    return path


def _report_without_poses(
    store: ParticleStore, output: Path, shown: NDArray[np.float32], said: list[str]
) -> CheckReport:
    """What the images alone say."""
    findings = (*said, "the store has no poses: nothing was back-projected")
    picture = CheckPicture(shown, store.pixel_size_angstrom, findings, noise=_noise_curves(store))
    return CheckReport(
        particles=len(store),
        sample=0,
        half_sets="random",
        fsc=None,
        resolution_angstrom=None,
        fsc_area={},
        contrast_z_score=0.0,
        findings=findings,
        healthy=True,
        files=(_draw(output, picture),),
    )


def _noise_curves(store: ParticleStore) -> dict[str, NDArray[np.float64]]:
    """Frequency in 1/angstrom and noise power of each optics group, before whitening."""
    curves = {}
    for optics, noise in zip(store.attributes.optics, store.attributes.noise, strict=True):
        power = np.array(noise.power[1 : optics.box_size // 2 + 1])
        shells = np.arange(1, len(power) + 1) / (optics.box_size * optics.pixel_size_angstrom)
        curves[f"{optics.name}{', white' if noise.white else ''}"] = np.stack([shells, power])
    return curves


def _sample_rows(store: ParticleStore, sample: int, seed: int) -> NDArray[np.int64]:
    """Rows of randomly chosen whole chunks, fair samples because store rows are in random order."""
    chunks = np.random.default_rng(seed).permutation(-(-len(store) // store.chunk_size))
    rows = (chunks[:, None] * store.chunk_size + np.arange(store.chunk_size)).reshape(-1)
    kept: NDArray[np.int64] = rows[rows < len(store)][:sample]
    return kept


def _split_into_halves(particles: StoredParticles, rows: NDArray[np.int64], seed: int) -> tuple[Tensor, str]:
    """Half (0 or 1) of each sampled particle: the source's, or a random one where it says nothing."""
    given = particles.half_set[rows]
    if (given == 1).any() and (given == 2).any() and (given > 0).all():
        return torch.from_numpy((given == 2).astype(np.int64)), "given"
    random = np.random.default_rng([seed, 2]).permutation(len(rows)) % 2
    return torch.from_numpy(random), _why_random(given)


def _why_random(given: NDArray[np.int8]) -> str:
    """Which half-sets stand in for those of the source, and why those cannot be used."""
    if not given.any():
        return "random"
    why = "not all particles are in one" if not given.all() else f"all particles are in half-set {given.max()}"
    return f"random (the given ones cannot be compared: {why})"


def _back_project_halves(
    store: ParticleStore,
    particles: StoredParticles,
    rows: NDArray[np.int64],
    half: Tensor,
    progress: StagedProgress,
) -> tuple[Float[Tensor, "2 box box box"], _Sample]:
    """Half maps of at most 128 pixels, and the sample at a size that is quick to back-project again."""
    box, small_box = min(store.box_size, _MAP_BOX), min(store.box_size, _VARIANT_BOX)
    pose, ctf = particles.pose(rows), particles.ctf(rows)
    pixel_size = torch.from_numpy(particles.pixel_size_angstrom[rows] * store.box_size)
    reference = store.pixel_size_angstrom * store.box_size / box
    accumulators = [FourierAccumulator(box, reference) for _ in range(2)]
    small = torch.empty(len(rows), small_box, small_box)
    for start in range(0, len(rows), store.chunk_size):
        block = torch.arange(start, min(start + store.chunk_size, len(rows)))
        images = torch.from_numpy(store.read_images(rows[block.numpy()]).astype(np.float32))
        small[block] = crop_images(images, small_box)
        images = crop_images(images, box)
        for number, accumulator in enumerate(accumulators):
            mine = half[block] == number
            members = block[mine]
            if len(members):
                accumulator.add(images[mine], pose[members], ctf[members], pixel_size[members] / box)
        progress("back-projection", int(block[-1]) + 1, len(rows))
    maps = torch.stack([accumulator.solve() for accumulator in accumulators])
    return maps, _Sample(small, pose, ctf, pixel_size / small_box, half)


def _try_variants(sample: _Sample, progress: StagedProgress) -> dict[str, float]:
    """FSC area of the half maps under each reading of the conventions."""
    pose = sample.pose
    readings = {
        AS_STORED: (sample.images, pose),
        SHIFTS_FLIPPED: (sample.images, Pose(pose.rotation, -pose.shift_angstrom)),
        ROTATIONS_TRANSPOSED: (
            sample.images,
            Pose(pose.rotation.transpose(-1, -2).contiguous(), pose.shift_angstrom),
        ),
        PHASES_FLIPPED: (_flip_phases(sample), pose),
    }
    areas = {}
    for number, (name, (images, reading)) in enumerate(readings.items()):
        areas[name] = _correlate_halves(images, reading, sample).area
        progress("conventions", number + 1, len(readings))
    return areas


def _correlate_halves(images: Tensor, pose: Pose, sample: _Sample) -> FSCCurve:
    """FSC between the back-projections of the two halves of a sample."""
    pixel_size = float(sample.pixel_size_angstrom[0])
    maps = []
    for number in range(2):
        accumulator = FourierAccumulator(images.shape[-1], pixel_size)
        members = torch.nonzero(sample.half == number).reshape(-1)
        for start in range(0, len(members), _BLOCK):
            block = members[start : start + _BLOCK]
            accumulator.add(images[block], pose[block], sample.ctf[block], sample.pixel_size_angstrom[block])
        maps.append(accumulator.solve())
    return _correlate_in_sphere(torch.stack(maps), pixel_size)


def _correlate_in_sphere(maps: Float[Tensor, "2 box box box"], pixel_size_angstrom: float) -> FSCCurve:
    """FSC inside the sphere that fits the box, with an edge of 10 % of the box."""
    box = maps.shape[-1]
    edge = ((0.5 * box - radius_grid(box, 3)) / (0.1 * box)).clamp(0, 1)
    mask = 0.5 - 0.5 * torch.cos(torch.pi * edge)
    return fourier_shell_correlation(maps[0], maps[1], pixel_size_angstrom, mask)


def _flip_phases(sample: _Sample) -> Float[Tensor, "particles box box"]:
    """Multiply each image by the sign of its CTF, which undoes phase flipping."""
    box = sample.images.shape[-1]
    transfer = transfer_at(sample.ctf, frequency_grid(box), sample.pixel_size_angstrom)
    return fourier_to_image(image_to_fourier(sample.images) * torch.where(transfer < 0, -1.0, 1.0), box)


def _measure_contrast(sample: _Sample) -> float:
    """Contrast of the stored images, which should be light-on-dark."""
    box = min(sample.images.shape[-1], _CONTRAST_BOX)
    pixel_size = sample.pixel_size_angstrom * sample.images.shape[-1] / box
    return contrast_z_score(crop_images(sample.images, box), sample.pose, sample.ctf, pixel_size)


def _judge(areas: dict[str, float], z_score: float) -> tuple[list[str], list[str]]:
    """Put the findings into words: problems, and the rest."""
    problems, notes = [], []
    stored = areas[AS_STORED]
    better = {name: area for name, area in areas.items() if area > stored + _CLEAR_AREA_DIFFERENCE}
    worse = [name for name, area in areas.items() if area < stored - _CLEAR_AREA_DIFFERENCE]
    alike = [name for name in areas if name != AS_STORED and name not in worse and name not in better]
    if better:
        best = max(better, key=better.__getitem__)
        problems.append(f"{_ADVICE[best]} (half-map FSC area {areas[best]:.3f} against {stored:.3f} as stored)")
    elif not alike:
        second = max(areas[name] for name in worse)
        notes.append(
            f"the given conventions are the best of {len(areas)} "
            f"(half-map FSC area {stored:.3f}, the next {second:.3f})"
        )
    else:
        notes.append(
            f"no other reading of the conventions fits better (half-map FSC area {stored:.3f}); "
            f"clearly worse: {', '.join(worse) or 'none'}; "
            f"cannot be told apart in this sample: {', '.join(alike)}"
        )
    if z_score < -CERTAIN_Z_SCORE:
        problems.append(
            f"the protein is dark ({-z_score:.1f} standard errors): convert again with the other --contrast"
        )
    elif z_score < CERTAIN_Z_SCORE:
        notes.append(f"the contrast is uncertain ({z_score:+.1f} standard errors; 3 are wanted): look at the picture")
    else:
        notes.append(f"the protein is bright, as it must be ({z_score:.1f} standard errors)")
    notes.append("the hand cannot be told from projections: compare the map with a known structure")
    return problems, notes


def _judge_background(store: ParticleStore, rows: NDArray[np.int64]) -> str:
    """Mean and standard deviation of the corners of some images; cropping has emptied their Nyquist lines."""
    images = store.read_images(rows).astype(np.float32)
    corners = images[:, (radius_grid(store.box_size, 2) > store.box_size / 2 - 1).numpy()]
    mean, deviation = corners.mean(), corners.std(axis=1).mean()
    return f"background mean {mean:+.3f}, standard deviation {deviation:.3f} (wanted 0 and 1)"


def _write_maps(output: Path, maps: Float[Tensor, "2 box box box"], fsc: FSCCurve) -> tuple[Path, ...]:
    """Write half maps, their mean, and the FSC table."""
    labels = ("cryoformer-dist check", "back-projection of a sample of the particle store")
    named = dict(zip(_MAPS, (maps[0], maps[1], maps.mean(0)), strict=True))
    for name, voxels in named.items():
        write_volume(output / name, Volume(voxels, fsc.pixel_size_angstrom), labels)
    return *(output / name for name in named), write_curves(output / _CURVE, {"correlation": fsc})
