"""A linear model of density: a mean map plus K principal maps, by alternating least squares at the full box.

In the spirit of 3DVA (Punjani and Fleet 2021: probabilistic PCA in the limit of no noise, that is alternating least
squares) and RECOVAR (Gilles and Singer 2025). It differs from both: real-space voxels in a mask, no prior on the maps
but early stopping, latents under a unit Gaussian prior without their posterior covariance. The class is the one that
gives our own training its first latents, there at 14 angstrom.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu_clock import CpuClock
from particle_set import Contender, ParticleSet, Snapshot

from cryoformer_dist.data.cropped_images import CroppedImages
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.initialization.linear_model import LinearModel, whiten
from cryoformer_dist.physics.grids import lattice_points


def linear(data: ParticleSet, maps: int) -> Contender:
    """Linear model with so many principal maps; an epoch is a round (maps given latents, latents given maps)."""
    folder = data.folder / f"linear-{maps}"
    return Contender(
        name=f"linear, {maps} maps",
        train=partial(_train, data, folder, maps),
        epochs=CpuClock(folder).read,
        snapshot=partial(_snapshot, data, folder),
    )


def _train(data: ParticleSet, folder: Path, count: int, rounds: int) -> None:
    clock = CpuClock(folder)
    done = max(clock.read(), default=0)
    if done >= rounds:
        return
    spent = clock.spent() or data.preparation_cpu_seconds
    start = time.process_time()
    box, rows = data.store.box_size, np.arange(len(data.store))
    points = lattice_points(box)[data.mask.ravel()]
    model = LinearModel(points, box)
    images = CroppedImages.of(data.store, rows, box)
    if done:
        state = torch.load(folder / f"round_{done:03d}.pt")
        latent, maps = state["next_latent"], state["maps"]
    else:
        latent = torch.randn(len(rows), count, generator=torch.Generator().manual_seed(0))
        maps = torch.zeros(count + 1, len(points))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(done + 1, rounds + 1):
        maps = model.fit_maps(images, latent, maps)
        following = whiten(model.compare(images, maps, with_slopes=False).find_coordinates(Spread())[0])
        # The maps belong to the latents that they were fitted to.
        state = {"latent": latent, "maps": maps, "next_latent": following}
        torch.save(state, folder / f"round_{number:03d}.pt")
        clock.append(number, spent + time.process_time() - start)
        latent = following


def _snapshot(data: ParticleSet, folder: Path, number: int) -> Snapshot:
    state = torch.load(folder / f"round_{number:03d}.pt")
    maps, inside = state["maps"], torch.nonzero(data.mask.ravel())[:, 0]
    return Snapshot(state["latent"].numpy(), partial(decode_linear, maps, inside, data.store.box_size))


def decode_linear(maps: torch.Tensor, inside: torch.Tensor, box: int, latents: np.ndarray) -> np.ndarray:
    """Mean map plus weighted principal maps, zero outside the mask."""
    weights = torch.nn.functional.pad(torch.from_numpy(np.atleast_2d(latents)).float(), (1, 0), value=1.0)
    volumes = torch.zeros(len(weights), box**3)
    volumes[:, inside] = weights @ maps
    return volumes.reshape(-1, box, box, box).numpy()
