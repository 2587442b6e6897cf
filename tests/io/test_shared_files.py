"""Every file that other programs left in the folder of real test files, with its known answer."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import (
    AberrationsNotAppliedWarning,
    CryoFormerWarning,
    ParticleFormatError,
    PixelSizeConflictWarning,
)
from cryoformer_dist.io.cryodrgn import load_numpy_pickle
from cryoformer_dist.io.mrc import open_stack, read_volume
from cryoformer_dist.io.reading import check_stacks, read_particles
from cryoformer_dist.io.relion import read_blocks, read_star, update_star_poses

NOT_PARTICLES = (
    *("default_pipeline", "empty_loop", "loop_double_quote", "loop_single_quote", "postprocess"),
    "two_single_line_loop_blocks",
)
INCOMPLETE = (
    "one_loop",
    "rln3.1_data_style",
    "single_line_end_of_multiblock",
    "single_line_middle_of_multiblock",
)
ORACLES = ("64_centered", "64_shifted", "65_centered", "65_shifted")


@pytest.mark.parametrize("name", NOT_PARTICLES)
def test_star_file_of_something_else_is_refused_for_its_missing_images(shared_data, name):
    with pytest.raises(ParticleFormatError, match=rf"{name}\.star: not a particle file.*rlnImageName"):
        read_particles(shared_data / "edge" / "star" / f"{name}.star")


@pytest.mark.parametrize("name", INCOMPLETE)
def test_star_file_without_ctf_is_refused_for_all_of_it(shared_data, name):
    with pytest.raises(ParticleFormatError, match=r"missing columns.*rlnDefocusU, rlnDefocusV.*rlnVoltage"):
        read_particles(shared_data / "edge" / "star" / f"{name}.star")


def test_every_edge_star_is_covered(shared_data):
    found = {path.stem for path in (shared_data / "edge" / "star").iterdir()}
    assert found == {*NOT_PARTICLES, *INCOMPLETE}


def test_blocks_have_the_sizes_their_owner_asserts(shared_data):
    folder = shared_data / "edge" / "star"

    def sizes(name: str) -> list[tuple[int, int]]:
        return [(len(next(iter(block.values()))), len(block)) for block in read_blocks(folder / name).values()]

    assert sizes("postprocess.star") == [(1, 6), (49, 7), (49, 3)]
    assert sizes("one_loop.star") == [(16, 12)]
    assert sizes("default_pipeline.star")[1:] == [(31, 4), (74, 2), (48, 2), (72, 2)]
    assert len(sizes("rln3.1_data_style.star")) == 3


def test_empty_cs_is_refused(shared_data):
    with pytest.raises(ParticleFormatError, match=r"empty_0rows\.cs: has 0 rows"):
        read_particles(shared_data / "edge" / "empty_0rows.cs")


def test_headerless_cs_is_refused(shared_data):
    with pytest.raises(ParticleFormatError, match=r"malformed_headerless\.cs: no \.cs header"):
        read_particles(shared_data / "edge" / "malformed_headerless.cs")


def test_a_relion_1_refinement_reads_as_one_optics_group_and_its_absent_stacks_are_counted(shared_data):
    table = read_particles(shared_data / "metadata" / "empiar10017_relion1_images.star")
    assert len(table) == 6496
    assert len(table.stack_paths) == 15
    (group,) = table.optics
    assert group.pixel_size_angstrom == pytest.approx(3.54, abs=1e-4)
    assert (table.defocus_u_angstrom.min(), table.defocus_u_angstrom.max()) == pytest.approx((19715, 33864), abs=1)
    assert (table.shift_angstrom / 3.54).std() == pytest.approx(2.7, abs=0.1)
    assert set(table.half_set.tolist()) == {1, 2}
    assert table.stack_index[:2].tolist() == [41, 49]
    with pytest.raises(ParticleFormatError, match="15 of 15 stacks not found"):
        check_stacks(table)


def test_relion_model_file_is_no_particle_file(shared_data):
    with pytest.raises(ParticleFormatError, match="not a particle file"):
        read_particles(shared_data / "metadata" / "empiar10017_relion1_model.star")


def test_scipion_file_lacks_poses_only(shared_data):
    path = shared_data / "metadata" / "esrf_input_particles.star"
    with pytest.raises(ParticleFormatError, match="poses: rlnAngleRot, rlnAngleTilt, rlnAnglePsi") as caught:
        read_particles(path)
    assert "CTF" not in str(caught.value)
    table = read_particles(path, require_poses=False)
    assert len(table) == 2021
    assert table.rotation is None
    assert (table.optics[0].name, table.optics[0].box_size, table.optics[0].pixel_size_angstrom) == (
        "opticsGroup1",
        86,
        3.0,
    )


def test_aberrations_are_named_and_zero_cs_is_valid(shared_data):
    with pytest.warns(AberrationsNotAppliedWarning, match=r"not applied: [^,]*rlnMagMat[^,]*; ") as caught:
        table = read_particles(shared_data / "metadata" / "isecc_aberrations.star")
    assert len(caught) == 1
    assert len(table) == 1
    assert table.optics[0].spherical_aberration_mm == 0
    assert len(table.optics[0].unapplied_aberrations) == 1
    imaging = table.optics[0].imaging
    assert len(imaging.odd_zernike) >= 5
    assert len(imaging.even_zernike) >= 5


def test_a_cryosparc_refinement_reads_as_one_optics_group_with_equal_half_sets(shared_data):
    table = read_particles(shared_data / "metadata" / "t20s_empiar10025_J209_000_particles.cs")
    assert len(table) == 11764
    assert len(table.stack_paths) == 196
    assert len(np.unique(table.uid)) == 11764
    assert np.bincount(table.half_set).tolist() == [0, 5882, 5882]
    assert (table.defocus_u_angstrom.min(), table.defocus_u_angstrom.max()) == pytest.approx((11352, 22128), rel=0.03)
    (group,) = table.optics
    assert (group.box_size, group.unapplied_aberrations) == (256, ())
    assert group.pixel_size_angstrom == pytest.approx(1.0273438)
    assert np.abs(table.shift_angstrom).max() / 1.0273438 == pytest.approx(28.6, abs=0.1)
    np.testing.assert_allclose(
        table.rotation @ table.rotation.transpose(0, 2, 1), np.eye(3)[None].repeat(11764, 0), atol=1e-5
    )
    assert table.stack_paths[0].parts[:2] == ("J204", "extract")


@pytest.mark.parametrize("name", ORACLES)
def test_projections_without_ctf_are_refused_and_readable_on_demand(shared_data, name):
    path = shared_data / "oracle_relion_project" / f"rln_proj_{name}.star"
    with pytest.raises(
        ParticleFormatError, match="CTF: rlnDefocusU, rlnDefocusV, rlnDefocusAngle, rlnAmplitudeContrast"
    ):
        read_particles(path)
    table = read_star(path, require_ctf=False)
    assert len(table) == 4
    assert table.rotation.shape == (4, 3, 3)
    expected = [6, 10] if "shifted" in name else [0, 0]
    assert table.shift_angstrom[0].tolist() == expected
    box = int(name[:2])
    assert table.optics[0].box_size == box
    if box % 2:
        with pytest.raises(ParticleFormatError, match="odd box 65"):
            check_stacks(table)
    else:
        check_stacks(table)


def test_relion_30_and_31_of_real_particles_agree_where_their_owner_left_them_alike(shared_data):
    folder = shared_data / "particles" / "aspire"
    old, new, more = (
        read_particles(folder / f"sample_{name}.star")
        for name in ("particles_relion30", "particles_relion31", "relion_symmetry_group_D4")
    )
    assert len(old) == len(new) == len(more) == 17
    # In row 15 of the 3.1 file stand the numbers of row 14: a slip of its owner.
    alike = np.delete(np.arange(17), 14)
    for name in ("stack_index", "rotation", "defocus_u_angstrom", "defocus_angle_deg", "half_set"):
        np.testing.assert_allclose(getattr(old, name)[alike], getattr(new, name)[alike], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(getattr(old, name), getattr(more, name), err_msg=name)
    assert old.optics[0].pixel_size_angstrom == pytest.approx(1.338, abs=1e-6)
    assert [group.pixel_size_angstrom for group in new.optics] == [1.4, 1.4]
    assert [group.voltage_kv for group in new.optics] == [300, 200]
    assert {group.box_size for group in (*old.optics, *new.optics)} == {200}
    for table in (old, new, more):
        check_stacks(table)


def test_missing_voltage_is_named(shared_data):
    with pytest.raises(ParticleFormatError, match=r"CTF: rlnVoltage\."):
        read_particles(shared_data / "particles" / "aspire" / "sample_incomplete_ctf_params.star")


def test_real_images_are_read(shared_data):
    stack = open_stack(shared_data / "particles" / "aspire" / "sample.mrcs")
    assert (len(stack), stack.box_size, stack.pixel_size_angstrom) == (17, 200, 0)
    images = stack.read(range(17))
    assert (images.mean(), images.std()) == pytest.approx((0.01064, 1.007), abs=1e-3)


def test_a_set_in_two_stacks_reads_as_one_table_in_degrees_and_angstrom(shared_data):
    folder = shared_data / "particles" / "tomodrgn_2class"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read_particles(folder / "10076_both_32_sim.star", datadir=folder)
    assert [warning.category for warning in caught] == [CryoFormerWarning, AberrationsNotAppliedWarning]
    check_stacks(table)
    assert len(table) == 1296
    assert np.bincount(table.stack).tolist() == [576, 720]
    (group,) = table.optics
    assert (group.box_size, group.pixel_size_angstrom) == (32, pytest.approx(13.1))
    assert (table.phase_shift_deg == 90).all()
    np.testing.assert_allclose(table.shift_angstrom[0], np.asarray([-2.672172, -2.528634]) * 13.1, rtol=1e-5)
    labels = load_numpy_pickle(folder / "labels_D-0_E-1.pkl")
    assert np.bincount(labels.astype(int)).tolist() == [72, 72]


@pytest.mark.parametrize(
    ("name", "box", "voxel_size"),
    [
        ("maps/emd_1832.map", 64, 5.7),
        ("maps/emd_3197.map", 20, 11.4),
        ("maps/slac_relion_locres_filtered.mrc", 90, 4.1),
        ("maps/maven_10076/vol_018.mrc", 64, 6.55),
        ("maps/maven_10076/vol_194.mrc", 64, 6.55),
        ("maps/maven_10076/vol_293.mrc", 64, 6.55),
        ("maps/maven_10076/vol_388.mrc", 64, 6.55),
        ("oracle_relion_project/clean70SRibosome_vol_64_derived.mrc", 64, 1.0),
        ("particles/tomodrgn_2class/10076_classD_32.mrc", 32, 1.0),
        ("particles/tomodrgn_2class/10076_classE_32.mrc", 32, 1.0),
    ],
)
def test_map_has_its_box_and_voxel_size(shared_data, name, box, voxel_size):
    volume = read_volume(shared_data / name)
    assert volume.voxels.shape == (box,) * 3
    assert volume.voxel_size_angstrom == pytest.approx(voxel_size, rel=1e-3)
    assert volume.voxels.isfinite().all()


def test_voxels_are_those_the_owner_of_the_map_asserts(shared_data):
    voxels = read_volume(shared_data / "maps" / "emd_3197.map").voxels
    found = [voxels[0, 0, 0], voxels[9, 6, 13], voxels[9, 6, 14], voxels[-1, -1, -1]]
    assert [value.item() for value in found] == pytest.approx([-1.8013091, 4.6207790, 5.0373931, 1.3078574])


def test_turned_map_that_is_no_cube_is_refused_in_zyx(shared_data):
    # Stored 25 x 43 x 73 with columns along z, rows along x, sections along y.
    with pytest.raises(ParticleFormatError, match=r"emd_3001\.map\.gz: the map is 73 x 25 x 43 voxels"):
        read_volume(shared_data / "maps" / "emd_3001.map.gz")


def test_map_without_voxel_size_is_warned_about(shared_data):
    path = shared_data / "oracle_relion_project" / "clean70SRibosome_vol_65p.mrc"
    with pytest.warns(PixelSizeConflictWarning, match="no voxel size"):
        assert read_volume(path).voxel_size_angstrom == 1.0


def test_every_map_is_covered(shared_data):
    maps = {path.name for path in (shared_data / "maps").rglob("*") if path.is_file()}
    assert maps == {
        *("emd_1832.map", "emd_3001.map.gz", "emd_3197.map", "slac_relion_locres_filtered.mrc"),
        *("vol_018.mrc", "vol_194.mrc", "vol_293.mrc", "vol_388.mrc"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "metadata/empiar10017_relion1_images.star",
        "particles/aspire/sample_particles_relion30.star",
        "particles/aspire/sample_particles_relion31.star",
    ],
)
def test_poses_of_a_real_file_are_replaced_and_nothing_else(shared_data, tmp_path, name):
    source: Path = shared_data / name
    table = read_star(source)
    rows = np.arange(len(table))[::-2]
    output = tmp_path / "refined.star"
    update_star_poses(source, output, rows, table.rotation[rows].transpose(0, 2, 1), -table.shift_angstrom[rows])
    after = read_star(output)
    np.testing.assert_allclose(after.rotation[rows], table.rotation[rows].transpose(0, 2, 1), atol=1e-5)
    np.testing.assert_allclose(after.shift_angstrom[rows], -table.shift_angstrom[rows], atol=1e-4)
    pose = {
        f"rln{label}"
        for label in (
            "AngleRot",
            "AngleTilt",
            "AnglePsi",
            "OriginX",
            "OriginY",
            "OriginXAngst",
            "OriginYAngst",
        )
    }
    old, new = read_blocks(source), read_blocks(output)
    assert list(old) == list(new)
    for block_name, block in old.items():
        assert list(block) == list(new[block_name])
        for label in set(block) - pose:
            np.testing.assert_array_equal(block[label], new[block_name][label], err_msg=label)
