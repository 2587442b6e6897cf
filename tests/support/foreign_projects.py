"""Projects of other programs, laid out as the docs' pages name their files; of the two-class stacks."""

import shutil
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryoformer_dist.errors import CryoFormerWarning
from cryoformer_dist.io.cryodrgn import write_ctf_pkl, write_indices_pkl, write_poses_pkl
from cryoformer_dist.io.mrc import open_stack
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.physics.pose import axis_angle_from_rotation

STACKS = ("10076_classD_32_sim.mrcs", "10076_classE_32_sim.mrcs")
STAR = "10076_both_32_sim.star"
PIXEL_SIZE_ANGSTROM, BOX = 13.1, 32


def lay_out_relion(project: Path, two_classes: Path) -> None:
    """A refinement's ``run_data.star``, with half-sets, in its job's folder and beside the stacks."""
    lay_out_stacks(project, two_classes)
    lines = (two_classes / STAR).read_text().splitlines()
    labels = [number for number, line in enumerate(lines) if line.startswith("_rln")]
    lines.insert(labels[-1] + 1, f"_rlnRandomSubset #{len(labels) + 1}")
    rows = [number for number, line in enumerate(lines) if "@" in line]
    for row, number in enumerate(rows):
        lines[number] += f" {row % 2 + 1}"
    for file in (project / "Refine3D/job042/run_data.star", project / "run_data.star"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


def lay_out_stacks(project: Path, two_classes: Path) -> None:
    """The stacks where the particle file says."""
    (project / "data").mkdir(parents=True)
    for stack in STACKS:
        shutil.copyfile(two_classes / stack, project / "data" / stack)


def lay_out_cryosparc(project: Path, two_classes: Path) -> None:
    """``J42_particles.cs`` with poses and paths, the CTF in its passthrough file, stacks in the folder ``P1``."""
    table = _read_table(project / "P1", two_classes)
    count = len(table.source_row)
    uid = np.arange(count, dtype=np.uint64) + 10**15
    particles = np.zeros(
        count,
        [
            *[("uid", "<u8"), ("blob/path", "S64"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))],
            *[("blob/psize_A", "<f4"), ("alignments3D/split", "<u4"), ("alignments3D/pose", "<f4", (3,))],
            *[("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4")],
        ],
    )
    particles["uid"], particles["blob/idx"], particles["blob/shape"] = uid, table.stack_index, BOX
    particles["blob/path"] = [f">data/{table.stack_paths[number].name}".encode() for number in table.stack]
    particles["blob/psize_A"] = particles["alignments3D/psize_A"] = PIXEL_SIZE_ANGSTROM
    particles["alignments3D/split"] = np.arange(count) % 2
    particles["alignments3D/pose"] = axis_angle_from_rotation(torch.from_numpy(table.rotation).double()).numpy()
    particles["alignments3D/shift"] = table.shift_angstrom / PIXEL_SIZE_ANGSTROM
    (optics,) = table.optics
    ctf = {
        "accel_kv": optics.voltage_kv,
        "cs_mm": optics.spherical_aberration_mm,
        "amp_contrast": optics.amplitude_contrast,
        "df1_A": table.defocus_u_angstrom,
        "df2_A": table.defocus_v_angstrom,
        "df_angle_rad": np.deg2rad(table.defocus_angle_deg),
        "phase_shift_rad": np.deg2rad(table.phase_shift_deg),
    }
    passthrough = np.zeros(count, [("uid", "<u8"), *((f"ctf/{name}", "<f4") for name in ctf)])
    passthrough["uid"] = uid
    for name, values in ctf.items():
        passthrough[f"ctf/{name}"] = values
    for name, records in (("J42_particles.cs", particles), ("J42_passthrough_particles.cs", passthrough)):
        with (project / name).open("wb") as file:
            np.save(file, records)


def lay_out_cryodrgn(project: Path, two_classes: Path) -> None:
    """One stack with ``poses.pkl``, ``ctf.pkl`` and ``ind.pkl``; and the refinement that they came from."""
    table = _read_table(project, two_classes)
    images = np.empty((len(table.source_row), BOX, BOX), dtype=np.float32)
    for number, path in enumerate(table.stack_paths):
        member = table.stack == number
        images[member] = open_stack(path).read(table.stack_index[member])
    with mrcfile.new(project / "particles.128.mrcs", images) as created:
        created.set_image_stack()
        created.voxel_size = PIXEL_SIZE_ANGSTROM
    write_poses_pkl(project / "poses.pkl", table.rotation, table.shift_angstrom / (PIXEL_SIZE_ANGSTROM * BOX))
    (optics,) = table.optics
    constants = (optics.voltage_kv, optics.spherical_aberration_mm, optics.amplitude_contrast)
    columns = [
        *(np.full(len(images), value) for value in (BOX, PIXEL_SIZE_ANGSTROM)),
        *(table.defocus_u_angstrom, table.defocus_v_angstrom, table.defocus_angle_deg),
        *(np.full(len(images), value) for value in constants),
        table.phase_shift_deg,
    ]
    write_ctf_pkl(project / "ctf.pkl", np.stack(columns, axis=1).astype(np.float32))
    write_indices_pkl(project / "ind.pkl", np.arange(0, len(images), 2))
    lay_out_relion(project / "refinement", two_classes)
    shutil.copyfile(project / "refinement" / "run_data.star", project / "run_data.star")


def _read_table(project: Path, two_classes: Path) -> ParticleTable:
    lay_out_stacks(project, two_classes)
    shutil.copyfile(two_classes / STAR, project / STAR)
    with warnings.catch_warnings():
        # What is told of this file is not what is tried here.
        warnings.simplefilter("ignore", CryoFormerWarning)
        return read_particles(project / STAR)
