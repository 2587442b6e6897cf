import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.simulated_particles import write_particles

from cryoformer_dist.errors import ParticleFormatError, PixelSizeConflictWarning
from cryoformer_dist.io.particles import OpticsGroup
from cryoformer_dist.io.reading import check_stacks, read_particles
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.physics.pose import random_rotations


def save(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def images(rng):
    return rng.normal(size=(12, 8, 8)).astype(np.float32)


@pytest.fixture
def star(tmp_path, particle_table, images, write_mrcs) -> Path:
    """A star file of one pixel size with its stack beside it."""
    write_mrcs(tmp_path / "stack.mrcs", images)
    path = tmp_path / "particles.star"
    write_star(path, particle_table, [f"{index + 1:06d}@stack.mrcs" for index in particle_table.stack_index])
    return path


@pytest.fixture
def relion_1(relion_30, rng, write_mrcs) -> Path:
    """The hand-made RELION 3.0 file, which gives no box, with its two stacks of box 64."""
    for name, count in (("a", 2), ("b", 3)):
        stack = rng.normal(size=(count, 64, 64)).astype(np.float32)
        write_mrcs(relion_30.parent / "Extract" / f"{name}.mrcs", stack, 1.5)
    return relion_30


@pytest.fixture
def pickles(tmp_path):
    """poses.pkl and ctf.pkl of twelve particles, box 16 at 1.25 A before binning to the stack's box 8."""
    rotation = random_rotations(12, torch.Generator().manual_seed(9)).numpy()
    fraction = np.linspace(-0.2, 0.2, 24).reshape(12, 2)
    ctf = np.tile(np.asarray([16, 1.25, 15000, 14500, 30, 300, 2.7, 0.1, 90]), (12, 1))
    ctf[:, 2] += np.arange(12)
    poses = save(tmp_path / "poses.pkl", (rotation, fraction))
    return poses, save(tmp_path / "ctf.pkl", ctf), rotation, fraction


def test_good_files_pass_without_a_word(star, relion_1):
    check_stacks(read_particles(star))
    check_stacks(read_particles(relion_1))


def test_box_that_the_metadata_leave_out_comes_from_the_stack(relion_1):
    assert {group.box_size for group in read_particles(relion_1).optics} == {64}


def test_box_is_unknown_without_metadata_and_stack(relion_30):
    assert {group.box_size for group in read_particles(relion_30).optics} == {0}


def test_missing_stacks_are_counted_and_named(relion_30):
    table = read_particles(relion_30)
    with pytest.raises(ParticleFormatError, match=r"2 of 2 stacks not found.*Extract/a\.mrcs.*--datadir"):
        check_stacks(table)


def test_stack_of_no_selected_particle_is_not_asked_for(relion_1):
    table = read_particles(relion_1)
    (relion_1.parent / "Extract" / "b.mrcs").unlink()
    with pytest.raises(ParticleFormatError, match="1 of 2 stacks not found"):
        check_stacks(table)
    check_stacks(table.select(np.asarray([2, 0])))


def test_datadir_finds_moved_stacks(star, tmp_path):
    (tmp_path / "moved").mkdir()
    (tmp_path / "stack.mrcs").rename(tmp_path / "moved" / "stack.mrcs")
    with pytest.raises(ParticleFormatError, match="not found"):
        check_stacks(read_particles(star))
    check_stacks(read_particles(star, datadir=tmp_path / "moved"))


def test_row_past_the_end_of_its_stack_is_named(star, images, write_mrcs):
    write_mrcs(star.with_name("stack.mrcs"), images[:-2])
    with pytest.raises(
        ParticleFormatError,
        match=r"particles\.star, particle row 1: image 12 of .*stack\.mrcs, which holds 10 \(2 such",
    ):
        check_stacks(read_particles(star))


def test_row_number_of_a_selection_is_that_of_the_source(star, images, write_mrcs):
    write_mrcs(star.with_name("stack.mrcs"), images[:-2])
    with pytest.raises(ParticleFormatError, match="particle row 2: image 11"):
        check_stacks(read_particles(star).select(np.asarray([7, 1])))


def test_truncated_stack_is_named_with_both_sizes(star):
    stack = star.with_name("stack.mrcs")
    stack.write_bytes(stack.read_bytes()[:-1])
    with pytest.raises(ParticleFormatError, match=r"stack\.mrcs: truncated.* 4096 bytes .* has 4095"):
        check_stacks(read_particles(star))


def test_box_differing_from_the_optics_is_named(star, images, write_mrcs):
    write_mrcs(star.with_name("stack.mrcs"), images[:, :6, :6].copy())
    with pytest.raises(
        ParticleFormatError, match=r"box 6, but .*particles\.star says 8 for optics group first session"
    ):
        check_stacks(read_particles(star))


def test_odd_box_is_refused_with_the_even_ones(star, particle_table, images, write_mrcs):
    write_mrcs(star.with_name("stack.mrcs"), images[:, :7, :7].copy())
    table = replace(read_particles(star), optics=tuple(replace(group, box_size=7) for group in particle_table.optics))
    with pytest.raises(ParticleFormatError, match=r"odd box 7; only even boxes are used.* 6 or 8 pixels"):
        check_stacks(table)


def test_oblong_images_are_refused(star, images, write_mrcs):
    write_mrcs(star.with_name("stack.mrcs"), images[:, :6].copy())
    with pytest.raises(ParticleFormatError, match="6 x 8 pixels are not square"):
        check_stacks(read_particles(star))


def test_header_pixel_size_that_differs_is_warned_about_and_not_used(relion_1, rng, write_mrcs):
    write_mrcs(relion_1.parent / "Extract" / "b.mrcs", rng.normal(size=(3, 64, 64)).astype(np.float32), 1.6)
    table = read_particles(relion_1)
    with pytest.warns(PixelSizeConflictWarning, match=r"b\.mrcs: the header says 1\.6 A .* metadata 1\.5 A") as caught:
        check_stacks(table)
    assert len(caught) == 1
    assert table.optics[0].pixel_size_angstrom == pytest.approx(1.5)


def test_bare_stack_with_pickles_is_a_full_table(star, pickles):
    poses, ctf, rotation, _ = pickles
    table = read_particles(star.with_name("stack.mrcs"), poses=poses, ctf=ctf)
    np.testing.assert_array_equal(table.rotation, rotation)
    assert table.stack_index.tolist() == list(range(12))
    np.testing.assert_allclose(table.defocus_u_angstrom, 15000 + np.arange(12))
    np.testing.assert_allclose(table.phase_shift_deg, 90)
    check_stacks(table)


def test_pixel_size_of_ctf_pkl_follows_the_box_of_the_stack(star, pickles):
    poses, ctf, _, fraction = pickles
    table = read_particles(star.with_name("stack.mrcs"), poses=poses, ctf=ctf)
    assert table.optics == (OpticsGroup("opticsGroup1", 2.5, 8, 300.0, 2.7, 0.1),)
    np.testing.assert_allclose(table.shift_angstrom, fraction * 20, rtol=1e-6)


def test_txt_list_joins_its_stacks_in_order(tmp_path, images, pickles, write_mrcs):
    poses, ctf, *_ = pickles
    write_mrcs(tmp_path / "one.mrcs", images[:5])
    write_mrcs(tmp_path / "deep" / "two.mrcs", images[5:])
    listing = tmp_path / "stacks.txt"
    listing.write_text("# made by hand\none.mrcs\n\ndeep/two.mrcs\n")
    table = read_particles(listing, poses=poses, ctf=ctf)
    assert table.stack.tolist() == [0] * 5 + [1] * 7
    assert table.stack_index.tolist() == [*range(5), *range(7)]
    check_stacks(table)


def test_empty_txt_list_is_refused(tmp_path, pickles):
    listing = tmp_path / "stacks.txt"
    listing.write_text("\n# nothing\n")
    with pytest.raises(ParticleFormatError, match="lists no stack"):
        read_particles(listing, poses=pickles[0], ctf=pickles[1])


def test_txt_list_of_an_absent_stack_is_refused(tmp_path, pickles):
    listing = tmp_path / "stacks.txt"
    listing.write_text("absent.mrcs\n")
    with pytest.raises(ParticleFormatError, match=r"absent\.mrcs: no such file"):
        read_particles(listing, poses=pickles[0], ctf=pickles[1])


@pytest.mark.parametrize(
    ("given", "asked"), [((), "--poses and --ctf"), (("poses",), "give --ctf"), (("ctf",), "give --poses")]
)
def test_bare_stack_without_pickles_says_which(star, pickles, given, asked):
    options = {name: path for name, path in zip(("poses", "ctf"), pickles[:2], strict=True) if name in given}
    with pytest.raises(ParticleFormatError, match=asked):
        read_particles(star.with_name("stack.mrcs"), **options)


def test_pickles_replace_what_the_star_says(star, pickles):
    poses, ctf, rotation, fraction = pickles
    table = read_particles(star, poses=poses)
    np.testing.assert_array_equal(table.rotation, rotation)
    box_angstrom = np.where(table.optics_group == 0, 8 * 1.34, 8 * 1.05)
    np.testing.assert_allclose(table.shift_angstrom, fraction * box_angstrom[:, None], rtol=1e-5)
    assert [group.voltage_kv for group in table.optics] == [300, 200]
    both = read_particles(star, poses=poses, ctf=ctf)
    assert {group.voltage_kv for group in both.optics} == {300}
    assert both.stack_index.tolist() == table.stack_index.tolist()


def test_star_without_voltage_uses_the_ctf_pickle(star, pickles):
    star.write_text(star.read_text().replace("_rlnVoltage", "_rlnSomething"))
    with pytest.raises(ParticleFormatError, match="rlnVoltage"):
        read_particles(star)
    assert {group.voltage_kv for group in read_particles(star, ctf=pickles[1]).optics} == {300}


def test_ctf_pickle_does_not_hide_the_aberrations_of_the_star(star, pickles):
    text = star.read_text().replace("_rlnImageDimensionality #8", "_rlnImageDimensionality #8\n_rlnBeamTiltX #9")
    star.write_text(text.replace(" 8 2\n", " 8 2 0.5\n"))
    table = read_particles(star, ctf=pickles[1])
    assert [bool(group.imaging.odd_zernike) for group in read_particles(star).optics] == [True, False]
    assert sorted(bool(group.imaging.odd_zernike) for group in table.optics) == [False, True]


def test_indices_keep_the_named_rows_in_their_order(star, pickles, tmp_path):
    poses, _, rotation, _ = pickles
    chosen = save(tmp_path / "ind.pkl", np.asarray([9, 2, 4]))
    table = read_particles(star, indices=chosen)
    assert table.source_row.tolist() == [9, 2, 4]
    np.testing.assert_array_equal(table.defocus_u_angstrom, read_particles(star).defocus_u_angstrom[[9, 2, 4]])
    np.testing.assert_array_equal(read_particles(star, poses=poses, indices=chosen).rotation, rotation[[9, 2, 4]])


def test_pickle_of_the_selected_rows_alone_is_understood(star, pickles, tmp_path):
    _, _, rotation, fraction = pickles
    rows = np.asarray([9, 2, 4])
    short = save(tmp_path / "short.pkl", (rotation[rows], fraction[rows]))
    table = read_particles(star, poses=short, indices=save(tmp_path / "ind.pkl", rows))
    np.testing.assert_array_equal(table.rotation, rotation[rows])


def test_pickle_of_another_length_is_refused(star, pickles, tmp_path):
    _, _, rotation, fraction = pickles
    short = save(tmp_path / "short.pkl", (rotation[:5], fraction[:5]))
    with pytest.raises(ParticleFormatError, match=r"short\.pkl: 5 rows for the 12 particles"):
        read_particles(star, poses=short)


def test_indices_past_the_end_are_refused(star, tmp_path):
    with pytest.raises(ParticleFormatError, match=r"names row 12 \(from 0\).*has 12 particles"):
        read_particles(star, indices=save(tmp_path / "ind.pkl", [0, 12]))


def test_pose_pickle_needs_a_known_box(relion_30, tmp_path):
    poses = save(tmp_path / "poses.pkl", (np.tile(np.eye(3), (3, 1, 1)), np.zeros((3, 2))))
    with pytest.raises(ParticleFormatError, match=r"fractions of the box.*--datadir"):
        read_particles(relion_30, poses=poses)


def test_poses_may_be_absent_when_the_caller_allows(star):
    star.write_text(star.read_text().replace("_rlnAngleRot", "_rlnNothing"))
    with pytest.raises(ParticleFormatError, match="poses: rlnAngleRot"):
        read_particles(star)
    assert read_particles(star, require_poses=False).rotation is None


def test_passthrough_belongs_to_cs(star):
    with pytest.raises(ParticleFormatError, match=r"--passthrough belongs to cryoSPARC"):
        read_particles(star, passthrough=[star])


@pytest.mark.parametrize("name", ["particles.csv", "particles", "particles.txt.gz.zip"])
def test_unknown_kind_lists_the_known(tmp_path, name):
    with pytest.raises(ParticleFormatError, match=r"unknown kind .*\.star, \.cs, \.mrcs"):
        read_particles(tmp_path / name)


def test_a_stack_of_the_other_suffix_is_pointed_at(star):
    (star.parent / "stack.mrcs").rename(star.parent / "stack.mrc")
    with pytest.raises(ParticleFormatError, match=r"not found.*stack\.mrc is there: rename it"):
        check_stacks(read_particles(star))


def test_a_name_that_no_file_system_has_is_a_stack_that_is_not_found(star):
    star.write_text(star.read_text().replace("@stack.mrcs", "@" + "a" * 300 + ".mrcs"))
    with pytest.raises(ParticleFormatError, match="1 of 1 stacks not found"):
        check_stacks(read_particles(star))


def test_an_unreadable_stack_is_named_with_the_file_that_lists_it(star):
    (star.parent / "stack.mrcs").write_bytes(b"no image")
    with pytest.raises(ParticleFormatError, match=r"particles\.star: one of its stacks.*stack\.mrcs: not an MRC file"):
        check_stacks(read_particles(star))


def test_a_shift_beyond_the_box_is_refused(star, particle_table):
    far = replace(particle_table, shift_angstrom=particle_table.shift_angstrom * 100)
    write_star(star, far, [f"{index + 1:06d}@stack.mrcs" for index in far.stack_index])
    with pytest.raises(ParticleFormatError, match=r"rlnOriginX, rlnOriginY .* puts the centre outside the image"):
        read_particles(star)


CISTEM = """# Written by cisTEM Version 1.0.0-beta
data_

loop_
_cisTEMPositionInStack #1
_cisTEMAnglePsi #2
_cisTEMPixelSize #3
#    POS     PSI   PSIZE
        1  189.29 1.50000
"""
TILT_SERIES = """data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnTomoTiltSeriesPixelSize #3
1 300 1.35

data_particles

loop_
_rlnTomoName #1
_rlnTomoParticleName #2
_rlnOpticsGroup #3
_rlnImageName #4
_rlnTomoVisibleFrames #5
TS_01 TS_01/1 1 Subtomograms/TS_01/1_stack2d.mrcs [1,1,1]
"""
ALL_TILTS = """data_global

loop_
_rlnTomoName #1
_rlnVoltage #2
_rlnTomoTiltSeriesStarFile #3
TS_01 300 tilt_series/TS_01.star
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CISTEM, "a cisTEM file; export the refinement package from cisTEM as RELION"),
        (TILT_SERIES, "tilt-series particles .*single-particle files only"),
        (ALL_TILTS, "tomo"),
    ],
)
def test_what_is_near_a_particle_file_is_named_for_what_it_is(tmp_path, text, words):
    path = tmp_path / "near.star"
    path.write_text(text)
    with pytest.raises(ParticleFormatError, match=words):
        read_particles(path)


def test_a_stack_with_its_format_after_a_colon_is_read(tmp_path):
    table = write_particles(tmp_path, particles=4, box=16)
    path = tmp_path / "colon.star"
    stack = table.stack_paths[0]
    write_star(path, table, [f"{index + 1}@{stack.name}:mrcs" for index in table.stack_index])
    assert [found.resolve() for found in read_particles(path).stack_paths] == [stack.resolve()]
