import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.store_attributes import store_attributes

from cryoformer_dist.data.store_attributes import attributes_to_write, read_attributes
from cryoformer_dist.errors import StoreError

STORE = Path("s.zarr")


def _written() -> dict[str, Any]:
    return json.loads(json.dumps(attributes_to_write(store_attributes(8), 5)))


def test_what_is_written_is_read_back() -> None:
    assert read_attributes(_written(), STORE) == store_attributes(8)


def test_the_content_is_that_of_stores_written_before() -> None:
    written = _written()
    assert list(written) == [
        *("box_size", "contrast", "conversion", "fingerprint", "has_poses", "noise", "optics", "pixel_size_angstrom"),
        *("program", "schema_version", "source", "complete"),
    ]
    assert written["noise"][1]["power"] == [2 - shell / 8 for shell in range(9)]
    # Of the same attributes, computed by the program that first wrote this schema.
    assert written["fingerprint"] == "c636bc2daa1f53ed56d8fea673896b79323aeeb64160595217265223bb5eae14"


@pytest.mark.parametrize("version", [0, 2, 4, "3", None])
def test_another_schema_is_refused_by_name_with_the_remedy(version: object) -> None:
    content = _written() | {"schema_version": version}
    with pytest.raises(StoreError, match=rf"s\.zarr: store schema {version}, .* reads 6: convert the particles again"):
        read_attributes(content, STORE)


def test_a_store_that_names_no_schema_is_refused() -> None:
    with pytest.raises(StoreError, match=r"store schema None.*convert the particles again"):
        read_attributes({}, STORE)


def _without_optics(content: dict[str, Any]) -> None:
    del content["optics"]


def _with_more_in_a_stack(content: dict[str, Any]) -> None:
    content["source"]["stacks"][0]["colour"] = "blue"


def _with_less_in_the_contrast(content: dict[str, Any]) -> None:
    del content["contrast"]["sign"]


def _with_another_word_for_noise(content: dict[str, Any]) -> None:
    content["noise"][0]["loudness"] = 1.0


def _with_a_list_for_a_source(content: dict[str, Any]) -> None:
    content["source"] = []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_optics, "optics"),
        (_with_more_in_a_stack, "colour"),
        (_with_less_in_the_contrast, "sign"),
        (_with_another_word_for_noise, "loudness"),
        (_with_a_list_for_a_source, "list"),
    ],
)
def test_attributes_of_another_shape_are_refused_and_never_half_read(
    damage: Callable[[dict[str, Any]], None], named: str
) -> None:
    content = _written()
    damage(content)
    with pytest.raises(StoreError, match=rf"s\.zarr: its attributes are damaged .*{named}.*convert the particles"):
        read_attributes(content, STORE)


def test_the_fingerprint_ignores_places_and_nothing_else() -> None:
    attributes = store_attributes(8)
    source = attributes.source
    (stack,) = source.stacks
    moved = replace(source, path="/elsewhere", stacks=(replace(stack, path="/elsewhere.mrcs"),))
    changed = replace(source, stacks=(replace(stack, bytes=4),))
    assert replace(attributes, source=moved).fingerprint(5) == attributes.fingerprint(5)
    for other in (
        replace(attributes, source=changed).fingerprint(5),
        replace(attributes, has_poses=False).fingerprint(5),
        replace(attributes, optics=attributes.optics[:1]).fingerprint(5),
        attributes.fingerprint(6),
    ):
        assert other != attributes.fingerprint(5)
