"""Small sets of simulated particles with known poses, as stacks and a table, for tests of any folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from support.noise import Curve, make_noise, white

from cryoformer_dist.io.mrc import new_stack
from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.physics.ctf import CTFParams, contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.physics.projection import project_points

PIXEL_SIZE_ANGSTROM = 5.0


def write_particles(
    folder: Path,
    particles: int = 150,
    box: int = 32,
    sign: int = 1,
    noise_ratio: float = 20.0,
    seed: int = 0,
    half_set: bool = True,
    noise_curve: Curve = white,
) -> ParticleTable:
    """Two stacks of unequal length with noisy projections of an asymmetric blob, offset 3 and scaled 7.

    ``sign`` is the contrast of the protein; ``noise_ratio`` the noise variance over the signal's, ``noise_curve`` its
    spectrum.
    """
    generator = torch.Generator().manual_seed(seed)
    points = _blob(box)
    rotation = random_rotations(particles, generator)
    shift = torch.randn(particles, 2, generator=generator) * 2.0 * PIXEL_SIZE_ANGSTROM
    defocus = 8000 + 12000 * torch.rand(particles, generator=generator)
    ones = torch.ones(particles)
    ctf = CTFParams(defocus, defocus + 300, 40 * ones, 0 * ones, 300 * ones, 2.7 * ones, 0.1 * ones)
    projection = project_points(torch.ones(particles, len(points)), points, rotation, -shift / PIXEL_SIZE_ANGSTROM, box)
    transfer = contrast_transfer_function(ctf, frequency_grid(box)[None] / PIXEL_SIZE_ANGSTROM)
    signal = fourier_to_image(projection * transfer, box)
    noise = torch.randn(signal.shape, generator=generator) * signal.std() * noise_ratio**0.5
    if noise_curve is not white:
        noise = torch.from_numpy(make_noise(noise_curve, particles, box, seed)) * noise.std()
    images = (7.0 * (sign * signal + noise) / noise.std() + 3.0).numpy()

    folder.mkdir(parents=True, exist_ok=True)
    first = particles // 3
    paths = (folder / "a.mrcs", folder / "b.mrcs")
    write_stack(paths[0], images[:first], PIXEL_SIZE_ANGSTROM)
    # The second stack is referred to backwards, so that row order and image order differ.
    write_stack(paths[1], images[first:][::-1], PIXEL_SIZE_ANGSTROM)
    source = folder / "particles.star"
    source.write_text(f"simulated {particles} {sign} {seed}\n")
    rows = np.arange(particles)
    return ParticleTable(
        source=source,
        stack_paths=paths,
        stack=(rows >= first).astype(np.int32),
        stack_index=np.where(rows < first, rows, particles - 1 - rows),
        rotation=rotation.numpy(),
        shift_angstrom=shift.numpy(),
        defocus_u_angstrom=ctf.defocus_u_angstrom.numpy(),
        defocus_v_angstrom=ctf.defocus_v_angstrom.numpy(),
        defocus_angle_deg=ctf.defocus_angle_deg.numpy(),
        phase_shift_deg=ctf.phase_shift_deg.numpy(),
        optics=(OpticsGroup("one", PIXEL_SIZE_ANGSTROM, box, 300.0, 2.7, 0.1),),
        optics_group=np.zeros(particles, np.int32),
        half_set=(rows % 2 + 1).astype(np.int8) if half_set else np.zeros(particles, np.int8),
        uid=np.arange(particles, dtype=np.uint64) + 10**15,
        source_row=rows.astype(np.int64),
    )


def write_stack(path: Path, images: np.ndarray, pixel_size_angstrom: float, labels: Sequence[str] = ()) -> None:
    """Write images ``(k, box, box)`` as a float32 stack."""
    with new_stack(path, pixel_size_angstrom, labels) as stack:
        stack.append(images)


def source_images(table: ParticleTable) -> np.ndarray:
    """`(particles, box, box)` raw pixels in table order, read without the product's reader of stacks."""
    stacks = []
    for path in table.stack_paths:
        box = table.optics[0].box_size
        stacks.append(np.frombuffer(path.read_bytes()[1024:], "<f4").reshape(-1, box, box))
    return np.stack([stacks[s][i] for s, i in zip(table.stack, table.stack_index, strict=True)])


def replace_image(table: ParticleTable, row: int, image: np.ndarray) -> None:
    """Overwrite an image of a table's stack on disk."""
    path, box = table.stack_paths[table.stack[row]], table.optics[0].box_size
    content = bytearray(path.read_bytes())
    start = 1024 + int(table.stack_index[row]) * box * box * 4
    content[start : start + box * box * 4] = image.astype("<f4").tobytes()
    path.write_bytes(bytes(content))


def _blob(box: int) -> torch.Tensor:
    """Points of a compact object without symmetry, in pixels about the centre."""
    generator = torch.Generator().manual_seed(11)
    centres = torch.randn(12, 3, generator=generator) * box * 0.11
    return (centres[:, None] + torch.randn(12, 40, 3, generator=generator) * 0.03 * box).reshape(-1, 3)
