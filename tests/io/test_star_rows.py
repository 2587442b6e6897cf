from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.star_rows import (
    open_rows,
    refuse_missing,
    split_image_names,
    star_poses,
)

SOURCE = Path("a.star")


def column(*cells: object) -> np.ndarray:
    return np.asarray(cells)


@pytest.fixture
def blocks():
    return {
        "optics": {"rlnOpticsGroup": column(9, 3), "rlnVoltage": column(300.0, 200.0)},
        "particles": {
            "rlnImageName": column("1@a.mrcs", "2@a.mrcs", "1@b.mrcs"),
            "rlnOpticsGroup": column(3, 9, 3),
            "rlnVoltage": column(1.0, 2.0, 3.0),
            "rlnDefocusU": column("10", "20", "30"),
        },
    }


def test_optics_table_wins_over_a_leftover_particle_column(blocks):
    rows = open_rows(SOURCE, blocks)
    assert rows.numbers("rlnVoltage").tolist() == [200, 300, 200]
    assert rows.numbers("rlnDefocusU").tolist() == [10, 20, 30]
    assert rows.optional("rlnPhaseShift", 7.0).tolist() == [7, 7, 7]


def test_one_optics_group_needs_no_group_column(blocks):
    del blocks["particles"]["rlnOpticsGroup"]
    with pytest.raises(ParticleFormatError, match="2 optics groups and no column rlnOpticsGroup"):
        open_rows(SOURCE, blocks)
    blocks["optics"] = {label: cells[:1] for label, cells in blocks["optics"].items()}
    assert open_rows(SOURCE, blocks).numbers("rlnVoltage").tolist() == [300] * 3


def test_block_named_particles_is_preferred(blocks):
    extra = {"earlier": {"rlnImageName": column("1@z.mrcs")}, **blocks}
    assert open_rows(SOURCE, extra).block_name == "particles"


def test_pixel_origins_without_pixel_size_are_refused():
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginX", "rlnOriginY")
    rows = open_rows(SOURCE, {"": {"rlnImageName": column("1@a"), **{label: column(1.0) for label in labels}}})
    with pytest.raises(ParticleFormatError, match="rlnOriginX/Y are in pixels"):
        star_poses(rows, np.zeros(1))
    rotation, shift = star_poses(rows, np.full(1, 2.5))
    assert rotation.shape == (1, 3, 3)
    assert shift.tolist() == [[2.5, 2.5]]


def test_angles_without_origins_are_no_pose():
    particles = {
        "rlnImageName": column("1@a"),
        "rlnAngleRot": column(1),
        "rlnAngleTilt": column(2),
        "rlnAnglePsi": column(3),
    }
    rows = open_rows(SOURCE, {"": particles})
    with pytest.raises(ParticleFormatError, match="poses: rlnOriginXAngst, rlnOriginYAngst"):
        refuse_missing(rows, require_poses=True, require_ctf=False)
    rotation, shift = star_poses(rows, np.ones(1))
    assert rotation is None
    assert not shift.any()


def test_image_names_are_split_at_the_first_mark_and_count_from_zero():
    names, stack, index = split_image_names(SOURCE, column("000002@b@x.mrcs", "3@a.mrcs", "1@b@x.mrcs"))
    assert names == ["b@x.mrcs", "a.mrcs"]
    assert stack.tolist() == [0, 1, 0]
    assert index.tolist() == [1, 2, 0]
