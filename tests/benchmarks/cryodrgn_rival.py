"""cryoDRGN from PyPI in an environment of its own, on the images, poses and CTF of a store.

Zhong et al., Nature Methods 18, 176 (2021). GPL: it is run, not read into this program.
"""

import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path

import numpy as np
from cpu_clock import CpuClock, one_thread, run_timed
from cryodrgn_inputs import write_inputs
from particle_set import Contender, ParticleSet, Snapshot

from cryoformer_dist.analysis.cryobench import sample_particles
from cryoformer_dist.io.cryodrgn import load_numpy_pickle
from cryoformer_dist.io.mrc import read_volume

VERSION = "4.3.1"
LATENT_DIMENSIONS, LEARNING_RATE, BATCH = 8, 5e-4, 16


def make_environment(folder: Path) -> Path:
    """Python environment with cryoDRGN; made (a download of about a gigabyte) unless it is there."""
    if not (folder / "bin" / "cryodrgn").is_file():
        print(f"installing cryodrgn {VERSION} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"cryodrgn=={VERSION}"], check=True)
    return folder


def cryodrgn(data: ParticleSet, environment: Path, width: int) -> Contender:
    """cryoDRGN's VAE with encoder and decoder of three layers of ``width``."""
    folder = data.folder / f"cryodrgn-{width}"
    return Contender(
        name=f"cryoDRGN {VERSION}, {width} wide",
        train=partial(_train, data, folder, environment, width),
        epochs=CpuClock(folder).read,
        snapshot=partial(_snapshot, data, folder, environment),
    )


def _train(data: ParticleSet, folder: Path, environment: Path, width: int, epochs: int) -> None:
    done = _finished(folder)
    if max(done, default=0) >= epochs:
        return
    inputs = data.folder / "cryodrgn-inputs"
    if not (inputs / "particles.mrcs").is_file():
        write_inputs(data.store, inputs)
    (folder / "out").mkdir(parents=True, exist_ok=True)
    program = make_environment(environment) / "bin" / "cryodrgn"
    command = [program, "train_vae", inputs / "particles.mrcs", "-o", folder / "out"]
    command += ["--poses", inputs / "poses.pkl", "--ctf", inputs / "ctf.pkl", "--zdim", LATENT_DIMENSIONS]
    command += ["--enc-dim", width, "--dec-dim", width, "--lr", LEARNING_RATE, "-b", BATCH, "-n", epochs]
    # Default is to invert: its CTF is -ours, so images that are bright on dark must change sign as well.
    command += ["--no-window", "--no-amp", "--no-analysis", "--checkpoint", 1, "--seed", 0, "--max-threads", 1]
    if done:
        command += ["--load", folder / "out" / f"weights.{max(done)}.pkl"]
    run_timed([str(word) for word in command], folder / "log.txt", CpuClock(folder), partial(_finished, folder))


def _finished(folder: Path) -> set[int]:
    """Epochs of which both weights and latents are there: latents are written after the weights."""
    names = (path.name.split(".")[1] for path in (folder / "out").glob("z.*.pkl"))
    return {int(name) for name in names if name.isdigit()}


def _snapshot(data: ParticleSet, folder: Path, environment: Path, epoch: int) -> Snapshot:
    latents = load_numpy_pickle(folder / "out" / f"z.{epoch}.pkl").astype(np.float32)
    # Those that the evaluation will ask for, in one go: each start of the program costs seconds.
    in_file_order = np.argsort(data.particles.source_row, kind="stable")
    decoder = _Decoder(
        program=environment / "bin" / "cryodrgn",
        weights=folder / "out" / f"weights.{epoch}.pkl",
        voxel_size_angstrom=data.store.pixel_size_angstrom,
        soon=latents[in_file_order[sample_particles(len(latents))]],
    )
    return Snapshot(latents, decoder)


class _Decoder:
    """Maps by ``cryodrgn eval_vol``."""

    def __init__(self, program: Path, weights: Path, voxel_size_angstrom: float, soon: np.ndarray) -> None:
        self._program, self._weights, self._voxel_size_angstrom = program, weights, voxel_size_angstrom
        self._soon = soon
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        wanted = np.asarray(latents, dtype=np.float32)
        keys = [row.tobytes() for row in wanted]
        if not set(keys) <= {row.tobytes() for row in self._soon}:
            return self._decode(wanted)
        if not self._known:
            self._known = {row.tobytes(): one for row, one in zip(self._soon, self._decode(self._soon), strict=True)}
        return np.stack([self._known[key] for key in keys])

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as scratch:
            latent_file, maps = Path(scratch) / "z.txt", Path(scratch) / "maps"
            np.savetxt(latent_file, latents)
            command = [self._program, "eval_vol", self._weights, "-c", self._weights.with_name("config.yaml")]
            command += ["--zfile", latent_file, "-o", maps, "--Apix", self._voxel_size_angstrom]
            words = [str(word) for word in command]
            subprocess.run(words, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
            # Numbered from 0 or 1 by version, with at least three digits.
            paths = sorted(maps.glob("vol_*.mrc"), key=lambda path: int(path.stem.removeprefix("vol_")))
            return np.stack([read_volume(path).voxels.numpy() for path in paths])
