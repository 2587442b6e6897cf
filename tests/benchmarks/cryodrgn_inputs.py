"""A store as cryoDRGN reads particles: a stack and two pickles, rows in store order."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cryoformer_dist.data.noise_measurement import whiten_images
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.io.cryodrgn import CTF_COLUMNS, write_poses_pkl
from cryoformer_dist.io.mrc import new_stack

_BLOCK = 1024


def write_inputs(store: ParticleStore, folder: Path) -> None:
    """``particles.mrcs``, ``poses.pkl`` and ``ctf.pkl`` in store order; images as they were before whitening."""
    folder.mkdir(parents=True, exist_ok=True)
    particles = store.particles()
    write_poses_and_ctf(particles, store.box_size, folder)
    with new_stack(folder / "particles.mrcs", store.pixel_size_angstrom) as writer:
        for block in _blocks(len(store)):
            images = torch.from_numpy(store.read_images(block).astype(np.float32))
            for number, noise in enumerate(store.attributes.noise):
                mine = torch.from_numpy(particles.optics_group[block] == number)
                if not noise.white and mine.any():
                    images[mine] = whiten_images(images[mine], 1 / noise.gain)
            writer.append(images.numpy())


def write_poses_and_ctf(particles: StoredParticles, box: int, folder: Path) -> None:
    """Poses and CTF as cryoDRGN reads them.

    Its matrix is RELION's A and its shift, a fraction of the box, is what centres the image: both as ours.
    """
    length = particles.pixel_size_angstrom * box
    # It calls its particle stack's side D + 1 pixels when it turns fractions into pixels; users get the same.
    write_poses_pkl(folder / "poses.pkl", particles.rotation, particles.shift_angstrom / length[:, None])
    columns = {"box_size": np.full(len(particles), box)} | {
        name: getattr(particles, name) for name in CTF_COLUMNS if name != "box_size"
    }
    table = np.stack([columns[name] for name in CTF_COLUMNS], axis=1).astype(np.float32)
    (folder / "ctf.pkl").write_bytes(pickle.dumps(table))


def _blocks(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, count))
