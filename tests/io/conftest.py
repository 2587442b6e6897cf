from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.physics.pose import random_rotations


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture
def particle_table(rng: np.random.Generator) -> ParticleTable:
    """Twelve particles of two optics groups on one stack."""
    count = 12
    rotation = random_rotations(count, torch.Generator().manual_seed(3)).numpy()
    optics = (
        OpticsGroup("first session", 1.34, 8, 300.0, 2.7, 0.1),
        OpticsGroup("second", 1.05, 8, 200.0, 0.0, 0.07),
    )
    return ParticleTable(
        source=Path("made_here.star"),
        stack_paths=(Path("stack.mrcs"),),
        stack=np.zeros(count, dtype=np.int32),
        stack_index=np.arange(count, dtype=np.int64)[::-1].copy(),
        rotation=rotation,
        shift_angstrom=rng.uniform(-4, 4, (count, 2)).astype(np.float32),
        defocus_u_angstrom=rng.uniform(8000, 25000, count).astype(np.float32),
        defocus_v_angstrom=rng.uniform(8000, 25000, count).astype(np.float32),
        defocus_angle_deg=rng.uniform(-90, 90, count).astype(np.float32),
        phase_shift_deg=rng.uniform(0, 90, count).astype(np.float32),
        optics=optics,
        optics_group=np.asarray([0, 1] * (count // 2), dtype=np.int32),
        half_set=np.asarray([1, 2, 2, 1] * (count // 4), dtype=np.int8),
        uid=np.zeros(count, dtype=np.uint64),
        source_row=np.arange(count, dtype=np.int64),
    )


@pytest.fixture
def write_mrcs() -> Callable[..., Path]:
    """Write a stack by mrcfile itself, so that our reader is not judged by our writer."""

    def write(path: Path, images: np.ndarray, pixel_size_angstrom: float = 0.0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, images, overwrite=True) as created:
            if images.ndim == 3:
                created.set_image_stack()
            created.voxel_size = pixel_size_angstrom
        return path

    return write


RELION_30 = """# made by hand
data_images

loop_
_rlnImageName #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnMagnification #5
_rlnDetectorPixelSize #6
_rlnDefocusU #7
_rlnDefocusV #8
_rlnDefocusAngle #9
_rlnPhaseShift #10
_rlnAngleRot #11
_rlnAngleTilt #12
_rlnAnglePsi #13
_rlnOriginX #14
_rlnOriginY #15
_rlnRandomSubset #16
_rlnMicrographName #17
000001@Extract/a.mrcs 300 2.7 0.1 50000 7.5 12000 11500  30 0 10 20 30  2.0 -1.0 1 mic_007.mrc
000003@Extract/b.mrcs 200 0.0 0.1 50000 7.5 22000 21500 -40 5 40 50 60 -3.0  4.0 2 mic_008.mrc
000002@Extract/a.mrcs 300 2.7 0.1 50000 7.5 12100 11600  31 0 70 80 90  0.5  0.0 2 mic_007.mrc
"""

# The same three particles; the blocks in an order that RELION does not use, with two more to be ignored.
RELION_31 = """
# version 50001

data_particles

loop_
_rlnImageName
_rlnOpticsGroup
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnPhaseShift
_rlnAngleRot
_rlnAngleTilt
_rlnAnglePsi
_rlnOriginXAngst
_rlnOriginYAngst
_rlnRandomSubset
_rlnMicrographName
000001@Extract/a.mrcs 7 12000 11500  30 0 10 20 30  3.0 -1.5 1 mic_007.mrc
000003@Extract/b.mrcs 4 22000 21500 -40 5 40 50 60 -4.5  6.0 2 mic_008.mrc
000002@Extract/a.mrcs 7 12100 11600  31 0 70 80 90  0.75 0.0 2 mic_007.mrc


data_general

_rlnJobTypeLabel relion.refine3d

data_optics

loop_
_rlnOpticsGroupName
_rlnOpticsGroup
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
_rlnImageSize
_rlnImageDimensionality
old 7 300.0 2.7 0.1 1.5 64 2
007 4 200.0 0.0 0.1 1.5 64 2

data_leftover

loop_
_rlnSomething
1
2
"""


@pytest.fixture
def relion_30(tmp_path: Path) -> Path:
    path = tmp_path / "relion_30.star"
    path.write_text(RELION_30)
    return path


@pytest.fixture
def relion_31(tmp_path: Path) -> Path:
    path = tmp_path / "relion_31.star"
    path.write_text(RELION_31)
    return path
