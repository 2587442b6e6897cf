import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.data.selection import (
    Combined,
    Condition,
    Everything,
    Lasso,
    OfClusters,
    ParticleFile,
    RowFile,
    RunState,
    Selection,
    read_selection,
    write_selection,
)
from cryoformer_dist.errors import SelectionError

SOURCE = ParticleFile("run_data.star", "ab" * 32)
RUN = RunState("runs/demo", 400)
ORIGINS = (
    Everything(run=RUN),
    OfClusters(run=RUN, numbers=(3, 5)),
    Condition(run=RUN, expression="junk < .1"),
    Lasso(run=RUN, axes=("pc1", "pc2"), polygon=((0.0, 0.5), (1.0, -2.0), (3.25, 1.0))),
    RowFile(path="ind.pkl"),
)


def selection_of(rows: object, origin: object = ORIGINS[2], source: ParticleFile = SOURCE) -> Selection:
    return Selection.of(source, rows, origin)


def random_selections(seed: int) -> list[Selection]:
    rng = np.random.default_rng(seed)
    return [selection_of(rng.integers(0, 30, size), origin) for size, origin in zip((0, 9, 40), ORIGINS, strict=False)]


@pytest.mark.parametrize("seed", range(4))
def test_taken_together_selections_behave_like_sets(seed: int) -> None:
    for first, second in product(random_selections(seed), repeat=2):
        one, other = set(first.source_row.tolist()), set(second.source_row.tolist())
        assert (first | second).source_row.tolist() == sorted(one | other)
        assert (first & second).source_row.tolist() == sorted(one & other)
        assert (first - second).source_row.tolist() == sorted(one - other)


def test_it_says_how_it_was_made() -> None:
    a, b, c = random_selections(0)
    assert (a | b).origin == Combined(kind="union", first=a.origin, second=b.origin)
    assert str((a | b) - c) == "((all particles or clusters 3, 5) but not where junk < .1)"


def test_rows_of_different_files_are_never_mixed() -> None:
    other = selection_of([1], source=ParticleFile("run_data.star", "cd" * 32))
    for combine in (Selection.__or__, Selection.__and__, Selection.__sub__):
        with pytest.raises(SelectionError, match="another content"):
            combine(selection_of([1]), other)
    moved = selection_of([2], source=ParticleFile("elsewhere/run_data.star", SOURCE.sha256))
    assert (selection_of([1]) | moved).source_row.tolist() == [1, 2]


@pytest.mark.parametrize("origin", [*ORIGINS, Combined(kind="difference", first=ORIGINS[0], second=ORIGINS[3])])
@pytest.mark.parametrize("rows", [[], [0], [7, 3, 2**40, 3]])
def test_what_is_written_is_read(origin: object, rows: list[int], tmp_path: Path) -> None:
    selection = selection_of(rows, origin)
    back = read_selection(write_selection(tmp_path / "selections" / "picked.json", selection))
    assert (back.source, back.origin) == (selection.source, selection.origin)
    assert back.source_row.dtype == np.int64
    assert back.source_row.tolist() == sorted(set(rows))


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    content = json.loads(write_selection(tmp_path / "picked.json", selection_of([5, 2])).read_text())
    assert content == {
        "schema_version": 1,
        "source": {"path": "run_data.star", "sha256": SOURCE.sha256},
        "origin": {"kind": "where", "run": {"home": "runs/demo", "checkpoint_step": 400}, "expression": "junk < .1"},
        "source_row": [2, 5],
    }


@pytest.mark.parametrize(
    "damage",
    [
        {"source_row": [1, 1]},
        {"source_row": [3, 2]},
        {"source_row": [-1]},
        {"source_row": [0.5]},
        {"source_row": ["a"]},
        {"source_row": [[1]]},
        {"source_row": [2**70]},
        {"source": {"path": "a.star"}},
        {"origin": {"kind": "witchcraft"}},
        {"origin": "where"},
        {"schema_version": 2},
    ],
    ids=str,
)
def test_a_damaged_file_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    path = write_selection(tmp_path / "picked.json", selection_of([1, 2]))
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(SelectionError, match=r"picked\.json: .*make the selection again"):
        read_selection(path)


def test_an_absent_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="no such selection"):
        read_selection(tmp_path / "absent.json")
    for text in ("", "[]", "{}", "not JSON"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(SelectionError, match="damaged, or no selection"):
            read_selection(tmp_path / "other.json")


def test_rows_out_of_order_are_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Selection(SOURCE, np.asarray([2, 1]), ORIGINS[0])
