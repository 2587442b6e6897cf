import io
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.cs_fields import load_records, number_stacks


def save(path: Path, kinds: list, rows: int = 2) -> Path:
    with path.open("wb") as handle:
        np.save(handle, np.zeros(rows, dtype=kinds))
    return path


@pytest.mark.parametrize(
    "kinds",
    [
        [("alignments3D/pose", "<i8")],
        [("ctf/accel_kv", "V4")],
        [("alignments3D/shift", "S8", (2,))],
        [("blob/path", "<f4")],
        [("blob/shape", "<u4", (3,))],
        [("blob/idx", "<f4")],
        [("uid", "<c8")],
    ],
)
def test_a_field_of_another_form_is_named(tmp_path, kinds):
    with pytest.raises(ParticleFormatError, match=rf"a\.cs: field {kinds[0][0]} holds .* and should hold"):
        load_records(save(tmp_path / "a.cs", kinds))


def test_a_field_that_is_not_read_may_have_any_form(tmp_path):
    assert len(load_records(save(tmp_path / "a.cs", [("uid", "<u8"), ("other/thing", "V4")]))) == 2


@pytest.mark.parametrize("damage", [b"'''", b"(((((((((", b"{1:2}", b"\xff\xfe", b"10**99999", b"-" * 40])
def test_a_damaged_header_is_refused(tmp_path, damage):
    content = bytearray(save(tmp_path / "a.cs", [("uid", "<u8")]).read_bytes())
    content[10 : 10 + len(damage)] = damage
    (tmp_path / "b.cs").write_bytes(content)
    with pytest.raises(ParticleFormatError, match=r"b\.cs: truncated or damaged"):
        load_records(tmp_path / "b.cs")


def test_rows_that_are_not_there_are_refused_without_room_for_them(tmp_path):
    made = io.BytesIO()
    header = {"descr": [("uid", "<u8")], "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(made, header)
    (tmp_path / "a.cs").write_bytes(made.getvalue() + bytes(64))
    with pytest.raises(ParticleFormatError, match=r"a\.cs: truncated or damaged"):
        load_records(tmp_path / "a.cs")


def test_stacks_are_numbered_as_they_appear(tmp_path):
    names, stack = number_stacks(tmp_path, np.asarray([b">b.mrc", b">a.mrc", b">b.mrc"]))
    assert names == [">b.mrc", ">a.mrc"]
    assert stack.tolist() == [0, 1, 0]
    with pytest.raises(ParticleFormatError, match=r"particle row 2 .*blob/path: .* not UTF-8"):
        number_stacks(tmp_path, np.asarray([b">b.mrc", b">\xf2\x8f-"]))
