from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.selection import ParticleFile, RunState, Selection, read_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CryoFormerWarning, SelectionError
from cryoformer_dist.io.cryodrgn import read_indices_pkl
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.physics.pose import Pose, axis_angle_from_rotation, random_rotations
from cryoformer_dist.selection.choice import choose_all, choose_where
from cryoformer_dist.selection.columns import ParticleColumns, columns_of
from cryoformer_dist.selection.export import Export, export_selection

RUN = RunState("runs/demo", 7)
CS_FIELDS = [
    *(("uid", "<u8"), ("blob/path", "S200"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4")),
    *(("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4")),
]
CTF_FIELDS = ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad", "phase_shift_rad")


def columns_of_store(store: ParticleStore, **more: np.ndarray) -> ParticleColumns:
    return columns_of({"source_row": store.particles().source_row, **more}, store, RUN)


@pytest.fixture
def columns(store: ParticleStore) -> ParticleColumns:
    return columns_of_store(store)


def source_of(columns: ParticleColumns) -> Path:
    return Path(columns.source.path)


def write(
    selection: Selection, outputs: list[Path], columns: ParticleColumns | None = None, **more: object
) -> list[Path]:
    return export_selection(selection, Export(tuple(outputs), **more), columns)  # type: ignore[arg-type]


def first(columns: ParticleColumns, count: int) -> Selection:
    return choose_where(columns, f"source_row < {count}")


def test_each_kind_of_output_names_the_same_particles(columns: ParticleColumns, tmp_path: Path) -> None:
    outputs = [tmp_path / "new" / name for name in ("part.star", "ind.pkl", "part.json")]
    chosen = first(columns, 5)
    assert write(chosen, outputs) == outputs
    assert read_star(outputs[0]).stack_index.tolist() == read_star(source_of(columns)).stack_index[:5].tolist()
    assert read_indices_pkl(outputs[1]).tolist() == list(range(5))
    assert read_selection(outputs[2]).origin == chosen.origin


def write_cs(folder: Path, star: Path) -> tuple[Path, Path]:
    """The particles of a star file as a cryoSPARC job: images and poses, and the CTF in a passthrough file, turned."""
    table = read_particles(star)
    count = len(table)
    records = np.zeros(count, CS_FIELDS)
    records["uid"] = np.random.default_rng(3).permutation(1000)[:count].astype(np.uint64) + np.uint64(2**63)
    records["blob/path"] = [str(table.stack_paths[number].resolve()) for number in table.stack]
    records["blob/idx"], records["blob/shape"] = table.stack_index, table.optics[0].box_size
    records["blob/psize_A"] = records["alignments3D/psize_A"] = table.optics[0].pixel_size_angstrom
    records["alignments3D/pose"] = axis_angle_from_rotation(torch.from_numpy(table.rotation)).numpy()
    records["alignments3D/shift"] = table.shift_angstrom / table.optics[0].pixel_size_angstrom
    passed = np.zeros(count, [("uid", "<u8"), *((f"ctf/{name}", "<f4") for name in CTF_FIELDS), ("note/seen", "S4")])
    passed["uid"], passed["note/seen"] = records["uid"][::-1], b"yes"
    parameters = table.ctf_params()
    for name, field in zip(
        ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "defocus_u_angstrom", "defocus_v_angstrom"),
        CTF_FIELDS,
        strict=False,
    ):
        passed[f"ctf/{field}"] = getattr(parameters, name).numpy()[::-1]
    for path, content in ((folder / "job.cs", records), (folder / "passed.cs", passed)):
        with path.open("wb") as handle:
            np.save(handle, content, allow_pickle=False)
    return folder / "job.cs", folder / "passed.cs"


def test_from_cs_through_a_store_and_back_with_what_was_passed_through(
    columns: ParticleColumns, tmp_path: Path
) -> None:
    source, passed = write_cs(tmp_path, source_of(columns))
    table = read_particles(source, passthrough=[passed])
    options = ConversionOptions(contrast="light", shard_rows=64, chunk_rows=64)
    store = convert_serially(plan_conversion(table, tmp_path / "particles.zarr", options))
    everything = choose_all(columns_of_store(store))
    written = write(everything, [tmp_path / "all.cs"], passthrough=(passed,))
    assert [path.name for path in written] == ["all.cs", "all_passthrough.cs", "all.csg"]
    assert [path.read_bytes() for path in written[:2]] == [source.read_bytes(), passed.read_bytes()]

    some = choose_where(columns_of_store(store), "defocus_angstrom < 15000")
    assert 0 < len(some) < len(store)
    written = write(some, [tmp_path / "some.cs"], passthrough=(passed,))
    np.testing.assert_array_equal(np.load(written[0]), np.load(source)[some.source_row])
    again = read_particles(written[0], passthrough=[written[1]])
    particles, of_store = store.particles(), np.argsort(store.particles().source_row)[some.source_row]
    for name in ("uid", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom"):
        np.testing.assert_array_equal(getattr(again, name), getattr(particles, name)[of_store], err_msg=name)
    results = yaml.safe_load(written[2].read_text())["results"]
    assert {name: result["metafile"] for name, result in results.items()} == {
        **dict.fromkeys(("blob", "alignments3D"), ">some.cs"),
        **dict.fromkeys(("ctf", "note"), ">some_passthrough.cs"),
    }
    assert {result["num_items"] for result in results.values()} == {len(some)}


def test_refined_poses_are_written_for_those_that_were_trained(store: ParticleStore, tmp_path: Path) -> None:
    given, rows = store.particles(), np.arange(0, 64, 2)
    rotation = random_rotations(len(rows), torch.Generator().manual_seed(0)).numpy()
    shift = np.linspace(-9, 9, 2 * len(rows), dtype=np.float32).reshape(-1, 2)
    table = {"source_row": given.source_row[rows], "rotation": rotation, "shift_angstrom": shift}
    trained = columns_of(table, store, RUN)
    whole = choose_all(columns_of_store(store))
    with pytest.warns(CryoFormerWarning, match="32 of 64 selected particles were not trained on by runs/demo"):
        write(whole, [tmp_path / "all.star"], trained, refined_poses=True)
    read = read_star(tmp_path / "all.star")
    expected = store.with_pose(rows, Pose(torch.from_numpy(rotation), torch.from_numpy(shift))).particles()
    order = np.argsort(expected.source_row)
    np.testing.assert_allclose(read.rotation, expected.rotation[order], atol=3e-6)
    np.testing.assert_allclose(read.shift_angstrom, expected.shift_angstrom[order], atol=1e-5)
    mine = choose_all(trained)
    write(mine, [tmp_path / "mine.star"], trained, refined_poses=True)
    np.testing.assert_allclose(read_star(tmp_path / "mine.star").rotation, read.rotation[mine.source_row], atol=1e-6)
    with pytest.raises(SelectionError, match="training kept the given poses; leave --refined-poses out"):
        write(mine, [tmp_path / "not.star"], columns_of_store(store), refined_poses=True)
    with pytest.raises(ValueError, match="need the columns of the run"):
        write(mine, [tmp_path / "not.star"], refined_poses=True)
    assert not (tmp_path / "not.star").exists()


def test_the_particle_file_may_have_moved_but_not_changed(columns: ParticleColumns, tmp_path: Path) -> None:
    source, chosen = source_of(columns), first(columns, 5)
    moved = tmp_path / "moved.star"
    moved.write_bytes(source.read_bytes())
    elsewhere = replace(chosen, source=ParticleFile(str(tmp_path / "gone.star"), chosen.source.sha256))
    with pytest.raises(SelectionError, match=r"gone\.star: no such particle file any more; say where it lies"):
        write(elsewhere, [tmp_path / "part.star"])
    write(elsewhere, [tmp_path / "part.star"], particles=moved)
    assert len(read_star(tmp_path / "part.star")) == 5
    moved.write_text(moved.read_text() + "\n")
    with pytest.raises(SelectionError, match="has changed since its particles were converted"):
        write(elsewhere, [tmp_path / "other.star"], particles=moved)
    # Row numbers need no file.
    write(elsewhere, [tmp_path / "ind.pkl"])


def test_nothing_is_written_unless_all_can_be(columns: ParticleColumns, tmp_path: Path) -> None:
    chosen, good = first(columns, 5), tmp_path / "good.star"
    for other, why in (
        (tmp_path / "part.cs", r"the particles came from .*particles\.star, .*; write \.star"),
        (tmp_path / "part.csv", r"unknown kind '\.csv'; write \.star, \.cs, \.pkl, \.json"),
        (source_of(columns), "is the particle file itself"),
    ):
        with pytest.raises(SelectionError, match=why):
            write(chosen, [good, other])
    with pytest.raises(SelectionError, match="holds no particle"):
        write(chosen - chosen, [good])
    stack = replace(chosen, source=ParticleFile("stack.mrcs", chosen.source.sha256))
    with pytest.raises(SelectionError, match=r"write \.pkl \(row numbers\)"):
        write(stack, [good])
    assert list(tmp_path.iterdir()) == []
