from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.cryosparc import read_cs
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues

LABELS = (
    *("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
)
ALL = StatedValues(300.0, 2.7, 0.1, 1.5, centred=True)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A star file with angles and defocus, and neither microscope nor origins."""
    path = tmp_path / "bare.star"
    rows = ["1@a.mrcs 10 20 30 12000 11000 5", "2@a.mrcs 40 50 60 13000 12000 6"]
    path.write_text("\n".join(["data_", "loop_", *(f"_{label}" for label in LABELS), *rows, ""]))
    return path


def write_cs(path: Path, **changes: object) -> Path:
    """A heterogeneous refinement of three classes, without microscope."""
    kinds = [
        *[("uid", "<u8"), ("blob/path", "S8"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))],
        *[("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4")],
        *[("alignments3D_multi/pose", "<f4", (3, 3)), ("alignments3D_multi/shift", "<f4", (3, 2))],
        *[("alignments3D_multi/psize_A", "<f4"), ("alignments3D_multi/split", "<u4", (3,))],
    ]
    records = np.zeros(2, dtype=kinds)
    records["blob/path"], records["blob/idx"], records["blob/shape"] = b">a.mrc", [0, 1], 32
    records["ctf/df1_A"] = records["ctf/df2_A"] = 15000
    records["alignments3D_multi/pose"] = np.arange(9).reshape(3, 3) / 10
    records["alignments3D_multi/shift"] = [[1, 2], [3, 4], [5, 6]]
    records["alignments3D_multi/psize_A"] = 2.0
    records["alignments3D_multi/split"] = [[0, 1, 0], [1, 0, 1]]
    with path.open("wb") as handle:
        np.save(handle, records)
    return path


def test_what_a_star_file_lacks_is_taken_as_stated(bare):
    table = read_star(bare, stated=ALL)
    (group,) = table.optics
    assert (group.voltage_kv, group.spherical_aberration_mm, group.amplitude_contrast) == (300, 2.7, 0.1)
    assert group.pixel_size_angstrom == 1.5
    assert table.rotation is not None
    assert not table.shift_angstrom.any()


def test_every_option_that_would_help_is_named(bare):
    with pytest.raises(ParticleFormatError, match=r"--centred.*--voltage, --cs, --amplitude-contrast, --pixel-size"):
        read_star(bare)


def test_what_the_file_says_itself_cannot_be_stated(relion_30):
    with pytest.raises(ParticleFormatError, match="has rlnVoltage itself, and --voltage is for files without"):
        read_star(relion_30, stated=StatedValues(voltage_kv=200.0))
    with pytest.raises(ParticleFormatError, match="has rlnDetectorPixelSize itself, and --pixel-size"):
        read_star(relion_30, stated=StatedValues(pixel_size_angstrom=1.0))
    with pytest.raises(ParticleFormatError, match="has rlnOriginX itself, and --centred"):
        read_star(relion_30, stated=StatedValues(centred=True))
    with pytest.raises(ParticleFormatError, match="--class belongs to cryoSPARC"):
        read_star(relion_30, stated=StatedValues(class_number=0))


def test_a_class_of_a_heterogeneous_refinement_is_chosen(tmp_path):
    path = write_cs(tmp_path / "multi.cs")
    microscope = {"voltage_kv": 300.0, "spherical_aberration_mm": 2.7, "amplitude_contrast": 0.1}
    stated = StatedValues(**microscope, pixel_size_angstrom=1.5, class_number=1)
    table = read_cs(path, stated=stated)
    assert table.shift_angstrom.tolist() == [[6, 8], [6, 8]]
    assert table.half_set.tolist() == [2, 1]
    (group,) = table.optics
    assert (group.pixel_size_angstrom, group.voltage_kv) == (1.5, 300)
    with pytest.raises(ParticleFormatError, match="--class 3: the classes are 0 to 2"):
        read_cs(path, stated=StatedValues(**microscope, pixel_size_angstrom=1.5, class_number=3))
    with pytest.raises(ParticleFormatError, match=r"per class .* 3 classes"):
        read_cs(path, stated=StatedValues(**microscope, pixel_size_angstrom=1.5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"voltage_kv": 300000.0}, r"--voltage 300000: not within 20 to 1500 kV; .*written in V"),
        ({"amplitude_contrast": 10.0}, "--amplitude-contrast 10: .*percent"),
        ({"pixel_size_angstrom": float("nan")}, "--pixel-size nan"),
    ],
)
def test_a_stated_value_has_the_limits_of_a_read_one(values, words):
    with pytest.raises(ParticleFormatError, match=words):
        StatedValues(**values)


def test_files_that_lack_nothing_take_nothing():
    NOTHING_STATED.refuse_any(Path("a.mrcs"))
    with pytest.raises(ParticleFormatError, match=r"a\.mrcs: --voltage.*leave the others out"):
        ALL.refuse_any(Path("a.mrcs"))
