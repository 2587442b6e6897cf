import linecache
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoformer_dist.errors import AberrationsNotAppliedWarning, CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.physics.pose import rotation_from_relion_euler

PARTICLE_FIELDS = (
    *("stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom"),
    *("defocus_angle_deg", "phase_shift_deg", "half_set", "uid", "source_row"),
)


def edited(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    copy = path.with_name("edited.star")
    copy.write_text(text)
    return copy


def without(path, *labels):
    """A copy of a file without some columns of its first loop, labels unnumbered."""
    lines = path.read_text().splitlines()
    names = [line.split()[0][1:] for line in lines if line.startswith("_rln")]
    kept = [number for number, name in enumerate(names) if name not in labels]
    rows = [line.split() for line in lines if "@" in line]
    copy = path.with_name("without.star")
    body = [" ".join(row[number] for number in kept) for row in rows]
    copy.write_text("\n".join(["data_images", "loop_", *(f"_{names[number]}" for number in kept), *body, ""]))
    return copy


def test_every_number_of_a_30_file_is_read_in_our_units(relion_30):
    table = read_star(relion_30)
    assert [path.as_posix() for path in table.stack_paths] == ["Extract/a.mrcs", "Extract/b.mrcs"]
    assert table.stack.tolist() == [0, 1, 0]
    assert table.stack_index.tolist() == [0, 2, 1]
    assert (table.stack.dtype, table.stack_index.dtype) == (np.int32, np.int64)
    np.testing.assert_allclose(table.shift_angstrom, [[3.0, -1.5], [-4.5, 6.0], [0.75, 0.0]], atol=1e-6)
    np.testing.assert_allclose(table.defocus_u_angstrom, [12000, 22000, 12100])
    np.testing.assert_allclose(table.defocus_v_angstrom, [11500, 21500, 11600])
    np.testing.assert_allclose(table.defocus_angle_deg, [30, -40, 31])
    np.testing.assert_allclose(table.phase_shift_deg, [0, 5, 0])
    assert table.half_set.tolist() == [1, 2, 2]
    assert table.source_row.tolist() == [0, 1, 2]
    euler = torch.tensor([[10.0, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=torch.float64)
    np.testing.assert_allclose(table.rotation, rotation_from_relion_euler(euler).numpy(), atol=1e-6)
    first, second = table.optics
    assert (first.voltage_kv, first.spherical_aberration_mm, first.amplitude_contrast) == (300, 2.7, 0.1)
    assert (second.voltage_kv, second.spherical_aberration_mm) == (200, 0)
    assert first.pixel_size_angstrom == pytest.approx(1.5)
    assert first.box_size == 0
    assert table.optics_group.tolist() == [0, 1, 0]


def test_relion_30_and_31_give_the_same_table(relion_30, relion_31):
    old, new = read_star(relion_30), read_star(relion_31)
    for name in PARTICLE_FIELDS:
        np.testing.assert_allclose(getattr(old, name), getattr(new, name), atol=1e-6, err_msg=name)
    assert old.stack_paths == new.stack_paths
    for number in range(3):
        before, after = old.optics[old.optics_group[number]], new.optics[new.optics_group[number]]
        assert replace(before, name="", box_size=64) == replace(after, name="")


def test_optics_groups_keep_name_order_and_number_in_any_block_order(relion_31):
    table = read_star(relion_31)
    assert [group.name for group in table.optics] == ["old", "007"]
    assert [group.voltage_kv for group in table.optics] == [300, 200]
    assert table.optics[0].box_size == 64
    assert table.optics_group.tolist() == [0, 1, 0]


def test_optics_before_particles_is_the_same_table(relion_31):
    text = relion_31.read_text()
    particles, rest = text.split("data_general")
    turned = relion_31.with_name("turned.star")
    turned.write_text(f"data_general{rest}\n{particles}")
    one, two = read_star(relion_31), read_star(turned)
    assert one.optics == two.optics
    np.testing.assert_array_equal(one.rotation, two.rotation)


def test_labels_with_and_without_numbers_are_the_same(relion_30):
    numbered, plain = read_star(relion_30), read_star(without(relion_30))
    np.testing.assert_array_equal(numbered.rotation, plain.rotation)
    assert numbered.optics == plain.optics


def test_angstrom_origins_win_over_pixel_origins(relion_30):
    both = edited(
        relion_30,
        ("_rlnMicrographName #17", "_rlnMicrographName #17\n_rlnOriginXAngst #18\n_rlnOriginYAngst #19"),
        ("mic_007.mrc", "mic_007.mrc 8 9"),
        ("mic_008.mrc", "mic_008.mrc 8 9"),
    )
    np.testing.assert_allclose(read_star(both).shift_angstrom, [[8, 9]] * 3)


def test_single_row_optics_without_a_loop_is_read(relion_31):
    text = relion_31.read_text()
    particles = text.split("data_general")[0].replace(" 4 22000", " 7 22000")
    cells = {"OpticsGroup": 7, "OpticsGroupName": "scope", "Voltage": 300, "SphericalAberration": 2.7}
    cells |= {"AmplitudeContrast": 0.1, "ImagePixelSize": 1.5, "ImageSize": 64}
    optics = "".join(f"_rln{label} {cell}\n" for label, cell in cells.items())
    relion_31.write_text(f"data_optics\n\n{optics}\n{particles}")
    table = read_star(relion_31)
    assert [group.name for group in table.optics] == ["scope"]
    assert table.optics_group.tolist() == [0, 0, 0]


def test_pixel_size_without_magnification_is_warned_about(relion_30):
    with pytest.warns(CryoFormerWarning, match=r"magnification 10000.*7\.5 A"):
        table = read_star(without(relion_30, "rlnMagnification"))
    assert table.optics[0].pixel_size_angstrom == 7.5


def test_phase_shift_and_half_sets_may_be_absent(relion_30):
    table = read_star(without(relion_30, "rlnPhaseShift", "rlnRandomSubset"))
    assert not table.phase_shift_deg.any()
    assert not table.half_set.any()


def test_all_missing_columns_are_named_in_one_error(relion_30):
    path = without(relion_30, "rlnAnglePsi", "rlnOriginY", "rlnVoltage", "rlnDefocusV", "rlnDetectorPixelSize")
    with pytest.raises(ParticleFormatError) as caught:
        read_star(path)
    message = str(caught.value)
    for word in (
        "without.star",
        "rlnAnglePsi",
        "rlnOriginXAngst",
        "rlnVoltage",
        "rlnDefocusV",
        "rlnImagePixelSize",
    ):
        assert word in message
    assert "--poses" in message
    assert "--ctf" in message
    assert "rlnAngleRot" not in message
    assert "rlnDefocusU" not in message


def test_missing_poses_are_none_when_the_caller_allows(relion_30):
    path = without(relion_30, "rlnAngleRot")
    with pytest.raises(ParticleFormatError, match="missing columns in data_images: poses: rlnAngleRot"):
        read_star(path)
    table = read_star(path, require_poses=False)
    assert table.rotation is None
    assert not table.shift_angstrom.any()


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"])
def test_missing_microscope_number_is_named(relion_30, label):
    path = without(relion_30, label)
    with pytest.raises(ParticleFormatError, match=f"CTF: {label}\\..*--ctf"):
        read_star(path)
    assert len(read_star(path, require_ctf=False)) == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "000003@Extract/b.mrcs",
            "Extract/b.mrcs",
            r"particle row 2, column rlnImageName: 'Extract/b\.mrcs'",
        ),
        ("000003@Extract/b.mrcs", "000000@Extract/b.mrcs", "particle row 2, column rlnImageName"),
        ("000003@Extract/b.mrcs", "x@Extract/b.mrcs", "particle row 2, column rlnImageName"),
        (" 40 50 60 ", " 40 fifty 60 ", "row 2, column rlnAngleTilt: 'fifty' is not a number"),
        (" 40 50 60 ", " 40 nan 60 ", r"row 2 \(of 3\), column rlnAngleTilt.*not a finite number"),
        ("b.mrcs 200 ", "b.mrcs 0 ", r"row 2 \(of 3\), column rlnVoltage.*not within 20 to 1500 kV"),
        ("50000 7.5 22000", "0 7.5 22000", r"row 2 \(of 3\), column rlnMagnification"),
    ],
)
def test_bad_cell_is_named_by_file_row_and_column(relion_30, old, new, words):
    with pytest.raises(ParticleFormatError, match=r"edited\.star.*" + words):
        read_star(edited(relion_30, (old, new)))


def test_row_with_too_few_cells_is_refused(relion_30):
    with pytest.raises(ParticleFormatError, match=r"edited\.star.*row 2"):
        read_star(edited(relion_30, ("60 -3.0  4.0 2 mic_008.mrc", "60")))


def test_row_with_too_many_cells_is_refused(relion_30):
    with pytest.raises(ParticleFormatError, match=r"data_images: row 2 has 20 of 17 cells"):
        read_star(edited(relion_30, ("mic_008.mrc", "mic_008.mrc 1 2 3")))


def test_file_repaired_after_a_failure_is_read_anew(relion_30):
    good = relion_30.read_text()
    relion_30.write_text(good.replace("mic_008.mrc", "mic_008.mrc 1 2 3"))
    with pytest.raises(ParticleFormatError):
        read_star(relion_30)
    assert str(relion_30) not in linecache.cache
    relion_30.write_text(good)
    assert len(read_star(relion_30)) == 3


def test_unknown_optics_group_is_named(relion_31):
    with pytest.raises(ParticleFormatError, match=r"row 2, column rlnOpticsGroup: group 5 is not in data_optics"):
        read_star(edited(relion_31, ("b.mrcs 4 ", "b.mrcs 5 ")))


def test_optics_group_listed_twice_is_refused(relion_31):
    with pytest.raises(ParticleFormatError, match="listed twice"):
        read_star(edited(relion_31, ("007 4 200.0", "007 7 200.0")))


def test_subtomograms_are_refused(relion_31):
    with pytest.raises(ParticleFormatError, match=r"rlnImageDimensionality.*subtomograms"):
        read_star(edited(relion_31, ("1.5 64 2", "1.5 64 3")))


def test_tilt_series_are_refused(relion_31):
    with pytest.raises(ParticleFormatError, match="tilt-series"):
        read_star(edited(relion_31, ("_rlnJobTypeLabel relion.refine3d", "_rlnTomoSubTomosAre2DStacks 1")))


@pytest.mark.parametrize(
    "content",
    ["", "just text\n", "data_\n\nloop_\n_rlnCoordinateX #1\n", "data_general\n", "data_x\n_lone\n"],
)
def test_file_without_particles_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.star"
    path.write_text(content)
    with pytest.raises(ParticleFormatError, match=r"other\.star: not a"):
        read_star(path)


def test_file_with_no_rows_is_refused(tmp_path):
    path = tmp_path / "empty.star"
    path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n\n")
    with pytest.raises(ParticleFormatError, match="has no rows"):
        read_star(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ParticleFormatError, match="no such file"):
        read_star(tmp_path / "absent.star")


@pytest.mark.parametrize(
    ("column", "cell", "term"),
    [
        ("rlnMagMat01", "0.01", "anisotropic magnification"),
        ("rlnMagMat11", "1.01", "anisotropic magnification"),
    ],
)
def test_unapplied_term_is_named_and_kept_with_its_group(relion_31, column, cell, term):
    path = edited(
        relion_31,
        ("_rlnImageDimensionality", f"_rlnImageDimensionality\n_{column}"),
        ("300.0 2.7 0.1 1.5 64 2", f"300.0 2.7 0.1 1.5 64 2 {cell}"),
        ("200.0 0.0 0.1 1.5 64 2", "200.0 0.0 0.1 1.5 64 2 " + ("1" if column == "rlnMagMat11" else "0")),
    )
    with pytest.warns(AberrationsNotAppliedWarning, match=term) as caught:
        table = read_star(path)
    assert len(caught) == 1
    assert term in table.optics[0].unapplied_aberrations[0]
    assert table.optics[1].unapplied_aberrations == ()


def test_neutral_terms_are_silent(relion_31):
    labels = ("BeamTiltX", "OddZernike", "EvenZernike", "MagMat00", "MagMat01", "MagMat10", "MagMat11")
    path = edited(
        relion_31,
        (
            "_rlnImageDimensionality",
            "\n".join(["_rlnImageDimensionality", *(f"_rln{label}" for label in labels)]),
        ),
        (" 1.5 64 2", " 1.5 64 2 0 [0,0,0] [0.0,0e+00] 1.0 0 0 1.0"),
    )
    assert read_star(path).optics[0].unapplied_aberrations == ()


@pytest.mark.parametrize(
    ("label", "neutral", "present"), [("rlnCtfBfactor", "0", "-8"), ("rlnCtfScalefactor", "1", "0.9")]
)
def test_envelope_is_warned_about_only_when_there_is_one(relion_30, label, neutral, present):
    def path(cell):
        return edited(
            relion_30,
            ("_rlnMicrographName #17", f"_rlnMicrographName #17\n_{label} #18"),
            ("mic_007.mrc", f"mic_007.mrc {neutral}"),
            ("mic_008.mrc", f"mic_008.mrc {cell}"),
        )

    assert len(read_star(path(neutral)).optics) == 2
    with pytest.warns(AberrationsNotAppliedWarning, match=label):
        table = read_star(path(present))
    assert len(table.optics) == 2
    assert all(len(group.unapplied_aberrations) == 1 for group in table.optics)


@pytest.mark.parametrize(
    ("label", "correction"),
    [
        ("rlnCtfDataArePhaseFlipped", "phases flipped"),
        ("rlnCtfDataAreCtfPremultiplied", "multiplied by CTF"),
    ],
)
def test_a_correction_of_the_images_belongs_to_its_group_and_is_silent(relion_31, label, correction):
    path = edited(
        relion_31,
        ("_rlnImageDimensionality", f"_rlnImageDimensionality\n_{label}"),
        ("300.0 2.7 0.1 1.5 64 2", "300.0 2.7 0.1 1.5 64 2 1"),
        ("200.0 0.0 0.1 1.5 64 2", "200.0 0.0 0.1 1.5 64 2 0"),
    )
    assert [group.imaging.correction for group in read_star(path).optics] == [correction, "none"]


def test_images_both_flipped_and_multiplied_are_refused(relion_31):
    labels = "_rlnImageDimensionality\n_rlnCtfDataArePhaseFlipped\n_rlnCtfDataAreCtfPremultiplied"
    path = edited(relion_31, ("_rlnImageDimensionality", labels), (" 1.5 64 2", " 1.5 64 2 1 1"))
    with pytest.raises(ParticleFormatError, match=r"PhaseFlipped and rlnCtfDataAreCtfPremultiplied are both set"):
        read_star(path)


@pytest.mark.parametrize(
    ("column", "cell", "odd", "even"),
    [
        ("rlnOddZernike", "[0,0,1e-3,0]", (0, 0, 1e-3), ()),
        ("rlnEvenZernike", "[0.5,0]", (), (0.5,)),
        ("rlnBeamTiltX", "0.2", 5, ()),
        ("rlnBeamTiltY", "-0.2", 4, ()),
    ],
)
def test_aberrations_belong_to_their_group_and_are_silent(relion_31, column, cell, odd, even):
    path = edited(
        relion_31,
        ("_rlnImageDimensionality", f"_rlnImageDimensionality\n_{column}"),
        ("300.0 2.7 0.1 1.5 64 2", f"300.0 2.7 0.1 1.5 64 2 {cell}"),
        ("200.0 0.0 0.1 1.5 64 2", "200.0 0.0 0.1 1.5 64 2 0"),
    )
    first, second = (group.imaging for group in read_star(path).optics)
    assert first.even_zernike == even
    assert first.odd_zernike == odd or len(first.odd_zernike) == odd
    assert (second.odd_zernike, second.even_zernike) == ((), ())


def test_a_list_that_is_none_is_refused_by_name(relion_31):
    label = ("_rlnImageDimensionality", "_rlnImageDimensionality\n_rlnOddZernike")
    path = edited(relion_31, label, (" 1.5 64 2", " 1.5 64 2 [0,x]"))
    with pytest.raises(ParticleFormatError, match=r"row 1, column rlnOddZernike: '\[0,x\]' is not a list like"):
        read_star(path)
