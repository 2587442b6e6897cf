"""What other programs wrote comes back from a selection as they wrote it: every real file there is."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.selection import ParticleFile, RowFile, RunState, Selection, read_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.cryosparc import read_cs
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.io.relion import read_blocks, read_star
from cryoformer_dist.selection.choice import choose_all, choose_where
from cryoformer_dist.selection.columns import columns_of
from cryoformer_dist.selection.export import Export, export_selection

pytestmark = pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.CryoFormerWarning")

PARTICLE_FILES = (
    "edge/star/rln3.1_data_style.star",
    "edge/star/single_line_end_of_multiblock.star",
    "edge/star/single_line_middle_of_multiblock.star",
    "metadata/empiar10017_relion1_images.star",
    "metadata/esrf_input_particles.star",
    "metadata/isecc_aberrations.star",
    "metadata/t20s_empiar10025_J209_000_particles.cs",
    *(
        f"oracle_relion_project/rln_proj_{name}.star"
        for name in ("64_centered", "64_shifted", "65_centered", "65_shifted")
    ),
    "particles/aspire/sample_incomplete_ctf_params.star",
    "particles/aspire/sample_particles_relion30.star",
    "particles/aspire/sample_particles_relion31.star",
    "particles/aspire/sample_relion_symmetry_group_D4.star",
    "particles/tomodrgn_2class/10076_both_32_sim.star",
)
PER_PARTICLE = (
    *("stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom"),
    *("defocus_angle_deg", "phase_shift_deg", "half_set", "uid"),
)


def read(path: Path) -> ParticleTable:
    """Whatever a file says of its particles."""
    return (read_cs if path.suffix == ".cs" else read_star)(path, require_poses=False, require_ctf=False)


def choose(rows: np.ndarray, source: Path) -> Selection:
    return Selection.of(ParticleFile.at(source), rows, RowFile(path="ind.pkl"))


def assert_same_particles(part: ParticleTable, whole: ParticleTable) -> None:
    """Row by row: image, pose, CTF and optics, in the units they are used in."""
    for name in PER_PARTICLE:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name), err_msg=name)
    assert [part.stack_paths[row].name for row in part.stack] == [whole.stack_paths[row].name for row in whole.stack]
    # Groups that have no name are numbered anew.
    for group, other in {*zip(part.optics_group.tolist(), whole.optics_group.tolist(), strict=True)}:
        assert replace(part.optics[group], name="") == replace(whole.optics[other], name="")


def test_every_particle_file_is_covered(shared_data: Path) -> None:
    found = set()
    for path in (*shared_data.rglob("*.star"), *shared_data.rglob("*.cs")):
        try:
            found.add(read(path).source.relative_to(shared_data).as_posix())
        except ParticleFormatError:
            continue
    assert found == set(PARTICLE_FILES)


@pytest.mark.parametrize("name", PARTICLE_FILES)
def test_a_selection_of_everything_is_the_file_itself(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / name
    output = tmp_path / f"all{source.suffix}"
    export_selection(choose(np.arange(len(read(source))), source), Export((output,)))
    assert output.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", PARTICLE_FILES)
def test_a_part_keeps_identity_order_every_column_and_units(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / name
    whole, output = read(source), tmp_path / f"part{source.suffix}"
    rows = np.sort(np.random.default_rng(4).choice(len(whole), max(1, len(whole) // 3), replace=False))
    export_selection(
        choose(rows, source),
        Export(
            (
                output,
                tmp_path / "ind.pkl",
                tmp_path / "part.json",
            )
        ),
    )
    assert_same_particles(read(output), whole.select(rows))
    assert_every_cell_is_kept(source, output, rows)
    by_index = read_particles(source, indices=tmp_path / "ind.pkl") if can_be_used(source) else whole.select(rows)
    np.testing.assert_array_equal(by_index.source_row, rows)
    assert read_selection(tmp_path / "part.json").source_row.tolist() == rows.tolist()


def can_be_used(source: Path) -> bool:
    try:
        read_particles(source)
    except ParticleFormatError:
        return False
    return True


def assert_every_cell_is_kept(source: Path, output: Path, rows: np.ndarray) -> None:
    """All columns of the particles, only the optics groups in use, other blocks as they are."""
    if source.suffix == ".cs":
        assert np.load(output).dtype == np.load(source).dtype
        np.testing.assert_array_equal(np.load(output), np.load(source)[rows])
        return
    before, after = (read_blocks(path) for path in (source, output))
    assert list(before) == list(after)
    particles = next(name for name, block in before.items() if "rlnImageName" in block)
    for name, block in before.items():
        kept = slice(None)
        if name == particles:
            kept = rows
        elif name == "optics":
            kept = np.isin(block["rlnOpticsGroup"], after[particles].get("rlnOpticsGroup", block["rlnOpticsGroup"]))
        assert list(block) == list(after[name])
        for label, column in block.items():
            assert column[kept].astype(str).tolist() == after[name][label].astype(str).tolist(), label


@pytest.mark.parametrize("name", PARTICLE_FILES)
def test_parts_of_parts_and_unions_of_parts_are_those_of_the_whole(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / name
    rng, count = np.random.default_rng(9), len(read(source))
    first, second = (choose(rng.choice(count, -(-count // 2), replace=False), source) for _ in range(2))
    whole, part = tmp_path / f"whole{source.suffix}", tmp_path / f"part{source.suffix}"
    export_selection(first | second, Export((whole,)))
    again = choose(np.searchsorted((first | second).source_row, first.source_row), whole)
    export_selection(again, Export((part,)))
    direct = tmp_path / f"direct{source.suffix}"
    export_selection(first, Export((direct,)))
    assert part.read_bytes() == direct.read_bytes()
    assert_same_particles(read(part), read(source).select(first.source_row))


@pytest.fixture(scope="module")
def aspire(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    """A store of real images of two optics groups, the second one's pixel size as its owner edited it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryoFormerWarning)
        table = read_particles(shared_data / "particles" / "aspire" / "sample_particles_relion31.star")
        output = tmp_path_factory.mktemp("aspire") / "particles.zarr"
        return convert_serially(plan_conversion(table, output, ConversionOptions(box_size=32, contrast="light")))


def test_from_star_through_a_store_and_back(aspire: ParticleStore, tmp_path: Path) -> None:
    particles, source = aspire.particles(), Path(aspire.attributes.source.path)
    columns = columns_of({"source_row": particles.source_row}, aspire, RunState("runs/demo", 1))
    everything = choose_all(columns)
    export_selection(everything, Export((tmp_path / "all.star",)))
    assert (tmp_path / "all.star").read_bytes() == source.read_bytes()
    for group, voltage in ((1, 300), (2, 200)):
        one = choose_where(columns, f"optics_group == {group}")
        output = tmp_path / f"group{group}.star"
        export_selection(one, Export((output,)))
        assert 0 < len(one) < len(everything)
        table = read_star(output)
        assert [(each.name, each.voltage_kv) for each in table.optics] == [(f"opticsGroup{group}", voltage)]
        of_store = np.argsort(particles.source_row)[one.source_row]
        np.testing.assert_array_equal(table.rotation, particles.rotation[of_store])
        np.testing.assert_array_equal(table.shift_angstrom, particles.shift_angstrom[of_store])
        np.testing.assert_array_equal(table.defocus_u_angstrom, particles.defocus_u_angstrom[of_store])
        np.testing.assert_array_equal(table.per_particle(lambda each: each.voltage_kv), particles.voltage_kv[of_store])
        assert re.findall(r"^opticsGroup\d", output.read_text(), re.MULTILINE) == [f"opticsGroup{group}"]
