"""Laws of every reader over inputs that nobody thought of: read as meant, or refused in our words, never otherwise.

Some tens of examples in the normal run; 10,000 of each, none over 2 s or 256 MiB, with ``-m slow``
(``CRYOFORMER_TEST_EXAMPLES`` asks for another number).
"""

import contextlib
import io
import os
import pickle
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from support.simulated_particles import write_particles

from cryoformer_dist.config.loading import dump_config, load_cluster, load_config, parse_config, parse_yaml
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.errors import CryoFormerError, CryoFormerWarning
from cryoformer_dist.io.atoms import read_structure, read_trajectory
from cryoformer_dist.io.cryodrgn import read_ctf_pkl, read_indices_pkl, read_poses_pkl
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.storage.array_files import read_array

ROOT = Path(__file__).resolve().parents[2]
FEW = 25
MANY = pytest.param(int(os.environ.get("CRYOFORMER_TEST_EXAMPLES", "10000")), marks=pytest.mark.slow)
MOST_BYTES = 256 * 2**20
LONGEST_MESSAGE = 12_000
# Of this process: a busy machine is no fault.
LONGEST_SECONDS = 2.0

numbers = some.floats(allow_nan=True, allow_infinity=True) | some.sampled_from([0.0, -1.0, 1e5, 1e30, 1e39, -1e39])
cells = numbers.map(repr) | some.integers().map(str) | some.text(max_size=12) | some.just("9" * 5000)
# Where bytes are changed, as a fraction of the file, and what to.
damages = some.lists(some.tuples(some.floats(0, 1, exclude_max=True), some.binary(min_size=1, max_size=8)), max_size=3)


def holds(examples: int, law: Callable[..., None], *strategies: some.SearchStrategy) -> None:
    """Try a law on as many examples, the same ones each time; slow ones count as failures."""

    def in_time(values: tuple[Any, ...]) -> None:
        began = time.process_time()
        law(*values)
        assert time.process_time() - began < LONGEST_SECONDS

    chosen = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with contextlib.nullcontext() if examples == FEW else no_memory_beyond(MOST_BYTES):
        chosen(given(some.tuples(*strategies))(in_time))()


@contextlib.contextmanager
def no_memory_beyond(allowance: int) -> Iterator[None]:
    """Give this process so many bytes more than it has; who asks for others is refused them."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + allowance, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it refuses in our words; anything else fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryoFormerWarning)
            return read()
    except CryoFormerError as error:
        message = str(error)
    assert 0 < len(message) < LONGEST_MESSAGE
    return None


def damaged(content: bytes, damage: list[tuple[float, bytes]]) -> bytes:
    changed = bytearray(content)
    for place, piece in damage:
        start = int(place * len(content))
        changed[start : start + len(piece)] = piece
    return bytes(changed)


def refuse_impossible(table: ParticleTable | None) -> None:
    """Fail where a table that was read holds what cannot be."""
    if table is None:
        return
    assert table.rotation is not None
    shift, defocus = table.shift_angstrom, np.stack([table.defocus_u_angstrom, table.defocus_v_angstrom])
    assert np.allclose(table.rotation @ table.rotation.transpose(0, 2, 1), np.eye(3), atol=0.05)
    assert np.isfinite(shift).all()
    assert (np.abs(defocus) <= 1e5).all()
    assert np.isfinite(table.defocus_angle_deg).all()
    assert np.isfinite(table.phase_shift_deg).all()
    for group in table.optics:
        assert 20 <= group.voltage_kv <= 1500
        assert 0 <= group.spherical_aberration_mm <= 20
        assert 0 <= group.amplitude_contrast < 1
        assert 0.05 <= group.pixel_size_angstrom <= 50


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """Any number is to come: commands that other tests have run in this process round the smallest ones to zero."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("any"), particles=12, box=16)


def names(table: ParticleTable) -> list[str]:
    stacks = [table.stack_paths[stack].name for stack in table.stack]
    return [f"{index + 1}@{name}" for index, name in zip(table.stack_index, stacks, strict=True)]


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_star_file_with_any_cell_in_it(table, examples):
    path = table.source.with_name("any.star")
    write_star(path, table, names(table))
    lines = path.read_text().splitlines()
    rows = [number for number, line in enumerate(lines) if len(line.split()) > 3 and not line.startswith("#")]

    def law(row: int, place: int, cell: str) -> None:
        words = lines[rows[row % len(rows)]].split()
        words[place % len(words)] = cell
        changed = [*lines]
        changed[rows[row % len(rows)]] = " ".join(words)
        path.write_text("\n".join([*changed, ""]), encoding="utf-8", errors="surrogatepass")
        refuse_impossible(read_or_refused(lambda: read_particles(path)))

    holds(examples, law, some.integers(0, 99), some.integers(0, 99), cells)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_star_file_with_any_bytes_in_it(table, examples):
    path = table.source.with_name("bytes.star")
    write_star(path, table, names(table))
    whole = path.read_bytes()

    def law(damage: list[tuple[float, bytes]]) -> None:
        path.write_bytes(damaged(whole, damage))
        refuse_impossible(read_or_refused(lambda: read_particles(path)))

    holds(examples, law, damages)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_what_is_written_as_star_is_read_back(table, examples):
    path = table.source.with_name("round.star")

    def law(rows: list[int]) -> None:
        chosen = table.select(np.asarray(rows))
        write_star(path, chosen, names(chosen))
        back = read_particles(path)
        np.testing.assert_allclose(back.rotation, chosen.rotation, atol=1e-5)
        np.testing.assert_allclose(back.shift_angstrom, chosen.shift_angstrom, atol=1e-5)
        np.testing.assert_allclose(back.defocus_u_angstrom, chosen.defocus_u_angstrom, rtol=1e-6)
        assert back.half_set.tolist() == chosen.half_set.tolist()
        assert back.stack_index.tolist() == chosen.stack_index.tolist()

    holds(examples, law, some.lists(some.integers(0, 11), min_size=1, max_size=12))


def cs_bytes() -> bytes:
    fields = [
        *[("uid", "<u8"), ("blob/path", "S16"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))],
        *[("blob/psize_A", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4")],
        *[("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4")],
        *[("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/split", "<u4")],
        ("alignments3D/psize_A", "<f4"),
    ]
    records = np.zeros(6, dtype=fields)
    records["uid"], records["blob/path"], records["blob/idx"] = np.arange(6), b">a.mrc", np.arange(6)
    records["blob/shape"], records["blob/psize_A"], records["alignments3D/psize_A"] = 16, 1.5, 1.5
    records["ctf/accel_kv"], records["ctf/cs_mm"], records["ctf/amp_contrast"] = 300, 2.7, 0.1
    records["ctf/df1_A"] = records["ctf/df2_A"] = 15000
    handle = io.BytesIO()
    np.save(handle, records)
    return handle.getvalue()


def pickle_bytes() -> dict[str, bytes]:
    ctf = np.tile([16, 1.5, 15000, 14000, 30, 300, 2.7, 0.1, 0], (6, 1))
    arrays = {"poses": (np.tile(np.eye(3), (6, 1, 1)), np.zeros((6, 2))), "ctf": ctf, "ind": np.arange(6)}
    return {name: pickle.dumps(content) for name, content in arrays.items()}


def map_bytes(folder: Path) -> bytes:
    with mrcfile.new(folder / "whole.mrc", np.ones((4, 4, 4), np.float32), overwrite=True) as made:
        made.voxel_size = 2.0
    return (folder / "whole.mrc").read_bytes()


def npz_bytes() -> bytes:
    handle = io.BytesIO()
    np.savez_compressed(handle, coords=np.zeros((2, 3, 3)), element=np.asarray(["C", "N", "O"]))
    return handle.getvalue()


def npy_bytes() -> bytes:
    handle = io.BytesIO()
    np.save(handle, np.ones((40, 3), np.float32))
    return handle.getvalue()


PDB = b"".join(
    b"ATOM  %5d  CA  ALA A%4d      11.000  12.000  13.000  1.00  0.00           C  \n" % (row, row)
    for row in range(1, 9)
)


@pytest.mark.parametrize("within_bytes", [10**9, 160], ids=["anywhere", "header"])
@pytest.mark.parametrize("kind", ["cs", "poses", "ctf", "ind", "map", "npz", "npy", "pdb"])
@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_file_with_any_bytes_in_it(tmp_path, kind, within_bytes, examples):
    pickles = {"poses": read_poses_pkl, "ctf": read_ctf_pkl, "ind": read_indices_pkl}
    whole, read, suffix = {
        "cs": (cs_bytes(), lambda path: refuse_impossible(read_particles(path)), "cs"),
        **{name: (pickle_bytes()[name], read, "pkl") for name, read in pickles.items()},
        "map": (map_bytes(tmp_path), read_volume, "mrc"),
        "npz": (npz_bytes(), read_trajectory, "npz"),
        "npy": (npy_bytes(), lambda path: read_array(path, "make it again"), "npy"),
        "pdb": (PDB, read_structure, "pdb"),
    }[kind]
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(whole)
    read(path)

    def law(damage: list[tuple[float, bytes]], kept: float) -> None:
        reach = min(1.0, within_bytes / len(whole))
        near = [(place * reach, piece) for place, piece in damage]
        path.write_bytes(damaged(whole, near)[: int(len(whole) * kept) + 1])
        read_or_refused(lambda: read(path))

    holds(examples, law, damages, some.just(1.0) | some.floats(0, 1))


SIMULATION = parse_config({"particles": 60, "nuisances": {"junk": {"empty": 0.05}}}, SimulationConfig, "simulation")
CONFIGS = {
    "run": ((ROOT / "configs/demo.yaml").read_bytes(), lambda path: load_config(path, RunConfig)),
    "cluster": ((ROOT / "cluster/local.yaml").read_bytes(), load_cluster),
    "simulate": (dump_config(SIMULATION).encode(), lambda path: load_config(path, SimulationConfig)),
    "sweep": ((ROOT / "configs/sweeps/queries.yaml").read_bytes(), lambda path: load_config(path, SweepConfig)),
}
values = cells | some.sampled_from(
    ["!!int ''", "2020-13-45", "0x_", "&a [*a]", "*b", "[" * 3000, "{a: 1}", ".nan", "'"]
)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_configuration_with_any_value_or_bytes_in_it(tmp_path, kind, examples):
    whole, read = CONFIGS[kind]
    path = tmp_path / "any.yaml"
    lines = [line for line in whole.decode().splitlines() if ": " in line and not line.lstrip().startswith("#")]

    def law(number: int, value: str, damage: list[tuple[float, bytes]]) -> None:
        line = lines[number % len(lines)]
        changed = whole.replace(line.encode(), f"{line.partition(': ')[0]}: {value}".encode("utf-8", "replace"))
        path.write_bytes(damaged(changed, damage))
        read_or_refused(lambda: read(path))

    holds(examples, law, some.integers(0, 99), values, damages)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_configuration_is_read_back_from_what_is_written_of_it(examples):
    def law(seed: int, batch: int, name: str) -> None:
        text = {"name": name, "training": {"seed": seed, "global_batch_size": batch}}
        config = read_or_refused(lambda: parse_config(text, RunConfig, "any"))
        if config is not None:
            assert parse_config(parse_yaml(dump_config(config), "any"), RunConfig, "any") == config

    holds(examples, law, some.integers(0, 2**31), some.integers(1, 4096), some.text(max_size=20))
