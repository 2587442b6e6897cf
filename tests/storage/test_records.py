from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.records import as_json, inline, read_record, write_record


@dataclass(frozen=True, slots=True)
class Part:
    size: float
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    count: int
    ends: tuple[float, float]
    parts: tuple[Part, ...]
    plain: Part = field(metadata=inline())
    other: Part | None = field(metadata=inline("other_"))
    named: Mapping[str, Mapping[str, float]]
    kind: Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Left:
    side: Literal["left"]
    steps: int


@dataclass(frozen=True, slots=True)
class Right:
    side: Literal["right"]
    turns: int


WHOLE = Whole(3, (0.0, 1.5), (Part(1.0), Part(2.0, "x")), Part(4.0), Part(5.0, "y"), {"one": {"0.5": 3.0}}, "a")
REMEDY = "make it again"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_record(tmp_path / "whole.json", WHOLE, 7)
    assert read_record(path, Whole, 7, REMEDY) == WHOLE


def test_fields_stand_among_those_of_their_owner_and_absent_ones_nowhere() -> None:
    assert as_json(Whole(1, (0.0, 1.0), (), Part(4.0), None, {}, "b")) == {
        "count": 1, "ends": [0.0, 1.0], "parts": [], "size": 4.0, "named": {}, "kind": "b",
    }  # fmt: skip
    assert as_json(WHOLE)["other_note"] == "y"


@pytest.mark.parametrize("record", [Left("left", 2), Right("right", 3)])
def test_of_two_kinds_the_one_that_says_so_is_read(record: Left | Right, tmp_path: Path) -> None:
    path = write_record(tmp_path / "side.json", record, 1)
    found: Left | Right = read_record(path, Left | Right, 1, REMEDY)
    assert found == record


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"schema_version": 6}', "schema 6, .* reads schema 7"),
        ("{}", "damaged"),
        ("[]", "damaged"),
        ("{", "damaged"),
        ('{"schema_version": 7, "size": 1.0, "more": 2}', "unknown keys: more"),
        ('{"schema_version": 7, "size": true}', "True where .*float"),
        ('{"schema_version": 7, "size": null}', "None where .*float"),
        ('{"schema_version": 7}', "'size'"),
        ('{"schema_version": 7, "size": 1.0, "note": 3}', "3 where .*str"),
    ],
)
def test_what_is_not_just_that_record_of_this_version_is_refused_with_the_remedy(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "part.json"
    path.write_text(text)
    with pytest.raises(CryoFormerError, match=rf"part\.json: .*{told}.*; make it again"):
        read_record(path, Part, 7, REMEDY)


def test_a_record_of_no_kind_that_is_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "side.json"
    path.write_text('{"schema_version": 1, "side": "up", "steps": 1}')
    with pytest.raises(CryoFormerError, match="no kind that is known"):
        read_record(path, Left | Right, 1, REMEDY)


def test_a_number_written_whole_is_read_as_the_fraction_it_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    path.write_text('{"schema_version": 7, "size": 2}')
    assert type(read_record(path, Part, 7, REMEDY).size) is float
