"""Particles of a run as cryoDRGN keeps them: poses and CTF of the whole file, chosen rows, and their latents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.data.selection import Selection
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.io.cryodrgn import write_ctf_pkl, write_indices_pkl, write_latents_pkl, write_poses_pkl
from cryoformer_dist.io.particles import NewPoses
from cryoformer_dist.selection.columns import ParticleColumns


@dataclass(frozen=True, slots=True, eq=False)
class Pickles:
    """Content of cryoDRGN's files.

    Attributes
    ----------
    rotation, shift_fraction
        ``(N, 3, 3)`` and ``(N, 2)``, in fractions of the source's box, of all particles of the file.
    ctf
        ``(N, 9)`` of all, in the order of `CTF_COLUMNS`; box and pixel size of the source.
    rows
        ``(k,)`` chosen rows of the file.
    latent, log_variance
        ``(k, dimensions)`` of those; the latter ``None`` where latents have no width.
    """

    rotation: np.ndarray
    shift_fraction: np.ndarray
    ctf: np.ndarray
    rows: np.ndarray
    latent: np.ndarray
    log_variance: np.ndarray | None


def gather_pickles(selection: Selection, columns: ParticleColumns, poses: NewPoses | None) -> Pickles:
    """What cryoDRGN's files are to hold.

    Parameters
    ----------
    selection
        Of particles of the run.
    columns
        Of the run, whose store holds the whole particle file: cryoDRGN counts its rows.
    poses
        New ones of some particles; as given when ``None``.

    Raises
    ------
    SelectionError
        If the store holds a part of the file, or a selected particle was not trained on.
    """
    particles, optics = columns.store.particles(), columns.store.attributes.optics
    order = np.argsort(particles.source_row)
    if (particles.source_row[order] != np.arange(len(order))).any():
        raise SelectionError(
            f"{columns.store.path}: holds a part of {columns.source.path}, and cryoDRGN's files are of all of it; "
            "write the particles with --output"
        )
    group = particles.optics_group[order]
    box, pixel = (
        np.array([getattr(each, name) for each in optics], dtype=np.float64)[group]
        for name in ("source_box_size", "source_pixel_size_angstrom")
    )
    rotation, shift = particles.rotation[order], particles.shift_angstrom[order].astype(np.float64)
    if poses is not None:
        rotation[poses.source_row], shift[poses.source_row] = poses.rotation, poses.shift_angstrom
    names = ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_deg", "voltage_kv", "spherical_aberration_mm")
    rest = [getattr(particles, name)[order] for name in (*names, "amplitude_contrast", "phase_shift_deg")]
    latent, log_variance = _take_latents(selection, columns)
    ctf = np.stack([box, pixel, *rest], axis=1)
    return Pickles(rotation, shift / (box * pixel)[:, None], ctf, selection.source_row, latent, log_variance)


def _take_latents(selection: Selection, columns: ParticleColumns) -> tuple[np.ndarray, np.ndarray | None]:
    """Latents of the selected particles in their order, and the logarithm of their variance."""
    order = np.argsort(columns.source_row)
    kept = order[np.isin(columns.source_row[order], selection.source_row)]
    if len(kept) < len(selection):
        raise SelectionError(
            f"{columns.run.home}: {len(selection) - len(kept)} of {len(selection)} selected particles were not trained "
            "on and have no latent for z.pkl; select among the run's own"
        )
    deviation = columns.table.get("latent_deviation")
    # Of a latent that is known exactly, what single precision knows.
    log_variance = None if deviation is None else 2 * np.log(deviation[kept].clip(min=1e-6))
    return columns.table["latent"][kept], log_variance


def write_pickles(folder: Path, pickles: Pickles) -> list[Path]:
    """Write ``poses.pkl``, ``ctf.pkl``, ``ind.pkl`` and ``z.pkl`` into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    poses, ctf, rows, latents = (folder / f"{name}.pkl" for name in ("poses", "ctf", "ind", "z"))
    write_poses_pkl(poses, pickles.rotation, pickles.shift_fraction)
    write_ctf_pkl(ctf, pickles.ctf)
    write_indices_pkl(rows, pickles.rows)
    write_latents_pkl(latents, pickles.latent, pickles.log_variance)
    return [poses, ctf, rows, latents]
