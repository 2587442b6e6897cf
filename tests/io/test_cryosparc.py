from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.recfunctions import repack_fields

from cryoformer_dist.errors import AberrationsNotAppliedWarning, CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.cryosparc import read_cs, select_cs_rows, update_cs_poses
from cryoformer_dist.io.particles import NewPoses
from cryoformer_dist.io.relion import read_star, write_star
from cryoformer_dist.physics.pose import axis_angle_from_rotation, random_rotations

FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/tilt_A", "<f4", (2,)),
    ("ctf/anisomag", "<f4", (4,)),
    ("ctf/scale", "<f4"),
    ("ctf/bfactor", "<f4"),
    ("ctf/exp_group_id", "<u4"),
    ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/psize_A", "<f4"),
    ("alignments3D/split", "<u4"),
    ("note/anything", "S8"),
]


def save(path: Path, records: np.ndarray) -> Path:
    with path.open("wb") as handle:
        np.save(handle, records, allow_pickle=False)
    return path


def keep(records: np.ndarray, prefixes: Sequence[str]) -> np.ndarray:
    """Only the fields that start so."""
    return repack_fields(records[[name for name in records.dtype.names if name.startswith(tuple(prefixes))]])


@pytest.fixture
def records(rng) -> np.ndarray:
    count = 6
    made = np.zeros(count, dtype=FIELDS)
    made["uid"] = np.asarray([2**63 + 5, 17, 3, 2**64 - 1, 9, 4], dtype=np.uint64)
    made["blob/path"] = [b">J1/extract/b.mrc", b">J1/extract/a.mrc"] * 3
    made["blob/idx"] = [0, 4, 2, 0, 7, 1]
    made["blob/shape"] = 64
    made["blob/psize_A"] = 2.5
    made["ctf/accel_kv"], made["ctf/cs_mm"], made["ctf/amp_contrast"] = 300, 2.7, 0.1
    made["ctf/df1_A"] = rng.uniform(8000, 20000, count)
    made["ctf/df2_A"] = made["ctf/df1_A"] - 300
    made["ctf/df_angle_rad"] = rng.uniform(-1.5, 1.5, count)
    made["ctf/phase_shift_rad"] = np.pi / 2
    made["ctf/scale"] = 1
    made["alignments3D/pose"] = rng.normal(0, 1.5, (count, 3))
    made["alignments3D/pose"][2] = 0
    made["alignments3D/shift"] = rng.normal(0, 5, (count, 2))
    made["alignments3D/psize_A"] = 1.25
    made["alignments3D/split"] = [0, 1, 1, 0, 0, 7]
    made["note/anything"] = [b"a", b"b", b"c", b"d", b"e", b"f"]
    return made


def test_every_field_is_read_in_our_units(tmp_path, records):
    table = read_cs(save(tmp_path / "particles.cs", records))
    assert [path.as_posix() for path in table.stack_paths] == ["J1/extract/b.mrc", "J1/extract/a.mrc"]
    assert table.stack.tolist() == [0, 1] * 3
    assert table.stack_index.tolist() == [0, 4, 2, 0, 7, 1]
    np.testing.assert_array_equal(table.uid, records["uid"])
    assert table.uid.dtype == np.uint64
    assert table.half_set.tolist() == [1, 2, 2, 1, 1, 0]
    np.testing.assert_allclose(table.defocus_u_angstrom, records["ctf/df1_A"])
    np.testing.assert_allclose(table.defocus_v_angstrom, records["ctf/df2_A"])
    np.testing.assert_allclose(table.defocus_angle_deg, np.degrees(records["ctf/df_angle_rad"]), rtol=1e-6)
    np.testing.assert_allclose(table.phase_shift_deg, 90, rtol=1e-6)
    (group,) = table.optics
    assert (group.box_size, group.pixel_size_angstrom, group.voltage_kv) == (64, 2.5, 300)


def test_shift_is_in_pixels_of_the_alignment_not_of_the_image(tmp_path, records):
    table = read_cs(save(tmp_path / "particles.cs", records))
    np.testing.assert_allclose(table.shift_angstrom, records["alignments3D/shift"] * 1.25, rtol=1e-6)


def test_zero_rotation_vector_is_the_identity(tmp_path, records):
    table = read_cs(save(tmp_path / "particles.cs", records))
    np.testing.assert_array_equal(table.rotation[2], np.eye(3, dtype=np.float32))
    assert np.isfinite(table.rotation).all()


def test_star_and_cs_of_the_same_particles_give_the_same_table(tmp_path, particle_table):
    count = len(particle_table)
    group = [particle_table.optics[number] for number in particle_table.optics_group]
    made = np.zeros(count, dtype=FIELDS)
    made["blob/path"], made["blob/idx"], made["blob/shape"] = b"stack.mrcs", particle_table.stack_index, 8
    made["blob/psize_A"] = made["alignments3D/psize_A"] = [each.pixel_size_angstrom for each in group]
    made["ctf/accel_kv"] = [each.voltage_kv for each in group]
    made["ctf/cs_mm"] = [each.spherical_aberration_mm for each in group]
    made["ctf/amp_contrast"] = [each.amplitude_contrast for each in group]
    made["ctf/df1_A"], made["ctf/df2_A"] = (
        particle_table.defocus_u_angstrom,
        particle_table.defocus_v_angstrom,
    )
    made["ctf/df_angle_rad"] = np.radians(particle_table.defocus_angle_deg)
    made["ctf/phase_shift_rad"] = np.radians(particle_table.phase_shift_deg)
    made["ctf/scale"] = 1
    made["alignments3D/pose"] = axis_angle_from_rotation(torch.from_numpy(particle_table.rotation)).numpy()
    made["alignments3D/shift"] = particle_table.shift_angstrom / made["alignments3D/psize_A"][:, None]
    made["alignments3D/split"] = particle_table.half_set - 1
    star = tmp_path / "particles.star"
    write_star(star, particle_table, [f"{index + 1}@stack.mrcs" for index in particle_table.stack_index])
    from_star, from_cs = read_star(star), read_cs(save(tmp_path / "particles.cs", made))
    assert from_star.stack_paths == from_cs.stack_paths
    for name in ("rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_angle_deg", "phase_shift_deg"):
        np.testing.assert_allclose(getattr(from_star, name), getattr(from_cs, name), rtol=1e-6, atol=1e-4, err_msg=name)
    for name in ("stack_index", "half_set", "optics_group"):
        np.testing.assert_array_equal(getattr(from_star, name), getattr(from_cs, name))
    for name in ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast"):
        np.testing.assert_allclose(getattr(from_star.ctf_params(), name), getattr(from_cs.ctf_params(), name))


def test_fields_of_passthrough_files_are_joined_on_uid(tmp_path, records):
    whole = read_cs(save(tmp_path / "whole.cs", records))
    main = save(tmp_path / "main.cs", keep(records, ["uid", "alignments3D"]))
    turned = np.concatenate([records[::-1], records[:1]])
    turned["uid"][-1] = 12345
    images = save(tmp_path / "images.cs", keep(turned, ["uid", "blob", "note"]))
    optics = save(tmp_path / "optics.cs", keep(turned[[3, 1, 5, 0, 2, 4]], ["uid", "ctf"]))
    joined = read_cs(main, [images, optics])
    for name in (
        "rotation",
        "shift_angstrom",
        "stack",
        "stack_index",
        "defocus_u_angstrom",
        "uid",
        "half_set",
    ):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), err_msg=name)
    assert joined.stack_paths == whole.stack_paths
    assert joined.optics == whole.optics


def test_field_of_the_main_file_wins_over_the_passthrough(tmp_path, records):
    other = records.copy()
    other["alignments3D/shift"] = 99
    path = save(tmp_path / "main.cs", records)
    table = read_cs(path, [save(tmp_path / "other.cs", other)])
    np.testing.assert_array_equal(table.shift_angstrom, read_cs(path).shift_angstrom)


def test_passthrough_that_lacks_particles_is_refused(tmp_path, records):
    main = save(tmp_path / "main.cs", keep(records, ["uid", "alignments3D"]))
    other = save(tmp_path / "other.cs", records[[0, 2, 4]])
    with pytest.raises(ParticleFormatError, match=r"other\.cs: lacks 3 of the 6 particles.*row 2, uid 17"):
        read_cs(main, [other])


def test_passthrough_with_a_repeated_uid_is_refused(tmp_path, records):
    main = save(tmp_path / "main.cs", records)
    other = save(tmp_path / "other.cs", records[[0, 1, 2, 3, 4, 5, 0]])
    with pytest.raises(ParticleFormatError, match="a uid occurs twice"):
        read_cs(main, [other])


def test_passthrough_without_uid_is_refused(tmp_path, records):
    main = save(tmp_path / "main.cs", records)
    other = save(tmp_path / "other.cs", keep(records, ["blob"]))
    with pytest.raises(ParticleFormatError, match=r"other\.cs: no field uid"):
        read_cs(main, [other])


def test_all_missing_fields_are_named_in_one_error(tmp_path, records):
    path = save(tmp_path / "particles.cs", keep(records, ["uid", "blob/path", "blob/idx", "blob/shape", "ctf/df"]))
    with pytest.raises(ParticleFormatError) as caught:
        read_cs(path)
    for word in (
        "blob/psize_A",
        "alignments3D/pose",
        "alignments3D/shift",
        "ctf/accel_kv",
        "ctf/cs_mm",
        "--passthrough",
    ):
        assert word in str(caught.value)
    assert "ctf/df1_A" not in str(caught.value)


def test_2d_alignments_alone_are_no_poses(tmp_path, records):
    bare = keep(records, ["uid", "blob", "ctf"])
    wider = np.zeros(6, dtype=[*bare.dtype.descr, ("alignments2D/pose", "<f4"), ("alignments2D/shift", "<f4", (2,))])
    for name in bare.dtype.names:
        wider[name] = bare[name]
    path = save(tmp_path / "class2d.cs", wider)
    with pytest.raises(ParticleFormatError, match="only 2D alignments are there: run a 3D refinement"):
        read_cs(path)
    assert read_cs(path, require_poses=False).rotation is None


def test_file_without_ctf_is_read_when_the_caller_has_it(tmp_path, records):
    table = read_cs(save(tmp_path / "particles.cs", keep(records, ["uid", "blob", "alignments3D"])), require_ctf=False)
    assert not table.defocus_u_angstrom.any()


def test_zero_rows_is_said(tmp_path, records):
    with pytest.raises(ParticleFormatError, match=r"empty\.cs: has 0 rows"):
        read_cs(save(tmp_path / "empty.cs", records[:0]))


def test_headerless_file_is_refused_without_unpickling(tmp_path, records):
    path = tmp_path / "bare.cs"
    path.write_bytes(records.tobytes())
    with pytest.raises(ParticleFormatError, match=r"bare\.cs: no \.cs header"):
        read_cs(path)


def test_truncated_file_is_refused(tmp_path, records):
    path = save(tmp_path / "cut.cs", records)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ParticleFormatError, match=r"cut\.cs: truncated or damaged"):
        read_cs(path)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "objects.cs"
    with path.open("wb") as handle:
        np.save(handle, np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ParticleFormatError, match=r"objects\.cs"):
        read_cs(path)


def test_plain_array_is_refused(tmp_path):
    with pytest.raises(ParticleFormatError, match="plain numpy array"):
        read_cs(save(tmp_path / "plain.cs", np.zeros(3)))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ParticleFormatError, match="no such file"):
        read_cs(tmp_path / "absent.cs")


def test_long_headers_are_read(tmp_path, records):
    extra = [(f"alignments_class_{number}/class_posterior_of_this", "<f4") for number in range(400)]
    wide = np.zeros(6, dtype=[*records.dtype.descr, *extra])
    for name in records.dtype.names:
        wide[name] = records[name]
    path = save(tmp_path / "wide.cs", wide)
    with pytest.raises(ValueError, match="Header info length"):
        np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(read_cs(path).uid, records["uid"])


def test_oblong_images_are_refused(tmp_path, records):
    records["blob/shape"][3] = 64, 60
    with pytest.raises(ParticleFormatError, match=r"row 4, field blob/shape: \[64, 60\]"):
        read_cs(save(tmp_path / "particles.cs", records))


def test_nan_is_named_by_row_and_field(tmp_path, records):
    records["alignments3D/pose"][4, 1] = np.nan
    with pytest.raises(ParticleFormatError, match=r"row 5 \(of 6\), column alignments3D/pose"):
        read_cs(save(tmp_path / "particles.cs", records))


def test_exposure_groups_become_optics_groups(tmp_path, records):
    records["ctf/exp_group_id"] = [4, 4, 2, 2, 4, 2]
    table = read_cs(save(tmp_path / "particles.cs", records))
    assert [group.name for group in table.optics] == ["exposureGroup2", "exposureGroup4"]
    assert table.optics_group.tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("label", ["ctf/tilt_A", "ctf/anisomag", "ctf/bfactor", "ctf/scale"])
def test_unapplied_term_is_named_and_kept(tmp_path, records, label):
    records[label][1] = 0.5
    with pytest.warns(AberrationsNotAppliedWarning, match=label) as caught:
        table = read_cs(save(tmp_path / "particles.cs", records))
    assert len(caught) == 1
    assert table.optics[table.optics_group[1]].unapplied_aberrations == (label,)


def test_absent_alignment_pixel_size_is_warned_about(tmp_path, records):
    bare = keep(records, ["uid", "blob", "ctf", "alignments3D/pose", "alignments3D/shift"])
    with pytest.warns(CryoFormerWarning, match="blob/psize_A"):
        table = read_cs(save(tmp_path / "particles.cs", bare))
    np.testing.assert_allclose(table.shift_angstrom, records["alignments3D/shift"] * 2.5, rtol=1e-6)


@pytest.fixture
def new_poses():
    rotation = random_rotations(2, torch.Generator().manual_seed(5)).numpy()
    return np.asarray([4, 1]), rotation, np.asarray([[1.5, -2.5], [10.0, 0.25]], dtype=np.float32)


def test_updated_poses_are_read_back_and_every_other_field_stays(tmp_path, records, new_poses):
    rows, rotation, shift = new_poses
    source, output = save(tmp_path / "particles.cs", records), tmp_path / "refined.cs"
    update_cs_poses(source, output, rows, rotation, shift)
    table = read_cs(output)
    np.testing.assert_allclose(table.rotation[rows], rotation, atol=1e-6)
    np.testing.assert_allclose(table.shift_angstrom[rows], shift, atol=1e-6)
    after = np.load(output)
    assert after.dtype == records.dtype
    for name in set(records.dtype.names) - {"alignments3D/pose", "alignments3D/shift"}:
        np.testing.assert_array_equal(after[name], records[name], err_msg=name)
    others = np.setdiff1d(np.arange(6), rows)
    np.testing.assert_array_equal(after[others], records[others])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["particles.cs", "refined.cs"]


def test_file_without_poses_gets_fields_and_loses_rows_without_pose(tmp_path, records, new_poses):
    rows, rotation, shift = new_poses
    source = save(tmp_path / "extracted.cs", keep(records, ["uid", "blob", "ctf"]))
    with pytest.warns(CryoFormerWarning, match="4 particles without a new pose are left out"):
        update_cs_poses(source, tmp_path / "refined.cs", rows, rotation, shift)
    table = read_cs(tmp_path / "refined.cs")
    np.testing.assert_array_equal(table.uid, records["uid"][[1, 4]])
    np.testing.assert_allclose(table.rotation, rotation[::-1], atol=1e-6)
    np.testing.assert_allclose(table.shift_angstrom, shift[::-1], atol=1e-6)


def test_poses_for_rows_that_are_not_there_are_refused(tmp_path, records, new_poses):
    _, rotation, shift = new_poses
    source = save(tmp_path / "particles.cs", records)
    with pytest.raises(ParticleFormatError, match="has 6 particles, and row 7 is asked for"):
        update_cs_poses(source, source, np.asarray([0, 6]), rotation, shift)


def test_poses_without_any_pixel_size_are_refused(tmp_path, records, new_poses):
    source = save(tmp_path / "particles.cs", keep(records, ["uid", "ctf"]))
    with pytest.raises(ParticleFormatError, match="blob/psize_A"):
        update_cs_poses(source, source, *new_poses)


def test_some_records_are_copied_whole_in_the_order_of_the_file(tmp_path, records):
    source = save(tmp_path / "particles.cs", records)
    select_cs_rows(source, tmp_path / "some.cs", np.asarray([4, 1, 2]))
    some = np.load(tmp_path / "some.cs")
    assert some.dtype == records.dtype
    np.testing.assert_array_equal(some, records[[1, 2, 4]])
    select_cs_rows(source, tmp_path / "all.cs", np.arange(6))
    assert (tmp_path / "all.cs").read_bytes() == source.read_bytes()
    with pytest.raises(ParticleFormatError, match="has 6 particles, and row 7 is asked for"):
        select_cs_rows(source, tmp_path / "more.cs", np.asarray([6]))
    assert not (tmp_path / "more.cs").exists()


def test_some_records_with_new_poses_are_those_of_an_update(tmp_path, records):
    source = save(tmp_path / "particles.cs", records)
    rotation = random_rotations(2, torch.Generator().manual_seed(2)).numpy()
    poses = NewPoses(np.asarray([4, 1]), rotation, np.asarray([[1, 2], [3, -4]], dtype=np.float32))
    update_cs_poses(source, tmp_path / "posed.cs", poses.source_row, poses.rotation, poses.shift_angstrom)
    select_cs_rows(source, tmp_path / "some.cs", np.asarray([1, 3, 4]), poses)
    np.testing.assert_array_equal(np.load(tmp_path / "some.cs"), np.load(tmp_path / "posed.cs")[[1, 3, 4]])
    bare = save(tmp_path / "bare.cs", keep(records, ("uid", "blob", "ctf")))
    with pytest.warns(CryoFormerWarning, match="no pose fields, so its 1 particles without a new pose are left out"):
        select_cs_rows(bare, tmp_path / "some.cs", np.asarray([1, 3, 4]), poses)
    table = read_cs(tmp_path / "some.cs")
    np.testing.assert_allclose(table.rotation, rotation[::-1], atol=1e-5)
    np.testing.assert_allclose(table.shift_angstrom, [[3, -4], [1, 2]], atol=1e-5)
    np.testing.assert_array_equal(table.uid, records["uid"][[1, 4]])
