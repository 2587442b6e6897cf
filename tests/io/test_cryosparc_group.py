from pathlib import Path

import numpy as np
import pytest
import yaml

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.cryosparc_group import select_passthrough, write_group

UIDS = np.asarray([2**64 - 1, 7, 3, 2**63], dtype=np.uint64)


def save(path: Path, uid: np.ndarray, *fields: str) -> Path:
    records = np.zeros(
        len(uid), dtype=[("uid", "<u8"), *((field, "<u4" if field == "blob/idx" else "<f4") for field in fields)]
    )
    records["uid"] = uid
    for number, field in enumerate(fields):
        records[field] = np.arange(len(uid)) + 10 * number
    with path.open("wb") as handle:
        np.save(handle, records, allow_pickle=False)
    return path


def test_passthrough_rows_follow_their_particles_in_their_own_order(tmp_path: Path) -> None:
    passthrough = save(tmp_path / "passthrough.cs", UIDS, "ctf/df1_A")
    particles = save(tmp_path / "particles.cs", UIDS[[3, 0]], "blob/idx")
    select_passthrough(passthrough, tmp_path / "out.cs", particles)
    np.testing.assert_array_equal(np.load(tmp_path / "out.cs"), np.load(passthrough)[[0, 3]])
    select_passthrough(passthrough, tmp_path / "all.cs", save(tmp_path / "turned.cs", UIDS[::-1], "blob/idx"))
    assert (tmp_path / "all.cs").read_bytes() == passthrough.read_bytes()


def test_a_passthrough_of_another_job_is_refused(tmp_path: Path) -> None:
    passthrough = save(tmp_path / "passthrough.cs", UIDS[:2], "ctf/df1_A")
    particles = save(tmp_path / "particles.cs", UIDS, "blob/idx")
    with pytest.raises(ParticleFormatError, match=r"passthrough\.cs: lacks 2 of the particles .* the same job"):
        select_passthrough(passthrough, tmp_path / "out.cs", particles)
    with (tmp_path / "anonymous.cs").open("wb") as handle:
        np.save(handle, np.zeros(2, dtype=[("blob/idx", "<u4")]))
    with pytest.raises(ParticleFormatError, match=r"anonymous\.cs: no field uid"):
        select_passthrough(passthrough, tmp_path / "out.cs", tmp_path / "anonymous.cs")
    assert not (tmp_path / "out.cs").exists()


def test_a_group_names_the_file_of_every_result_the_first_one_first(tmp_path: Path) -> None:
    particles = save(tmp_path / "a.cs", UIDS, "blob/idx", "blob/path_length", "alignments3D/shift_x")
    passthrough = save(tmp_path / "b.cs", UIDS, "ctf/df1_A", "blob/idx")
    write_group(tmp_path / "a.csg", [particles, passthrough])
    content = yaml.safe_load((tmp_path / "a.csg").read_text())
    assert content["group"]["type"] == "particle"
    assert {name: result["metafile"] for name, result in content["results"].items()} == {
        "alignments3D": ">a.cs",
        "blob": ">a.cs",
        "ctf": ">b.cs",
    }
    assert {result["num_items"] for result in content["results"].values()} == {4}
    assert content["results"]["ctf"]["type"] == "particle.ctf"
