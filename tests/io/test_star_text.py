import numpy as np
import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.star_text import (
    find_loop,
    format_block,
    read_star_lines,
    refuse_uneven_rows,
    replace_cells,
)

TEXT = """# a comment
data_optics
loop_
_group #1
1

data_particles

loop_
_name #1
_angle #2
_note #3
# between
first   1.0 "two words"
second  2.0 'it has'

third   3.0 end
data_after
loop_
_angle
9
"""


@pytest.fixture
def lines() -> list[str]:
    return TEXT.splitlines(keepends=True)


def test_loop_is_found_with_its_labels_and_rows(lines):
    block = find_loop(lines, "particles")
    assert block.labels == ("name", "angle", "note")
    assert [lines[number].split()[0] for number in block.row_lines] == ["first", "second", "third"]


def test_absent_or_plain_block_is_none(lines):
    assert find_loop(lines, "nothing") is None
    assert find_loop(["data_general\n", "_key value\n"], "general") is None


def test_only_the_named_cells_change(lines):
    block = find_loop(lines, "particles")
    result = replace_cells(lines, block, {"angle": ["7.25", "8.5"]}, np.asarray([2, 1]))
    assert "".join(result) == TEXT.replace("3.0 end", "7.25 end").replace("2.0 'it", "8.5 'it")


def test_no_rows_is_the_same_text(lines):
    block = find_loop(lines, "particles")
    assert replace_cells(lines, block, {"angle": []}, np.zeros(0, dtype=np.int64)) == lines


def test_short_number_keeps_the_columns_aligned():
    lines = ["data_\n", "loop_\n", "_a\n", "_b\n", "  123.456789 x\n"]
    assert replace_cells(lines, find_loop(lines, ""), {"a": ["1.5"]}, np.asarray([0]))[-1] == "         1.5 x\n"


def test_new_column_goes_last_and_drops_rows_without_a_value(lines):
    block = find_loop(lines, "particles")
    result = "".join(replace_cells(lines, block, {"psi": ["5", "6"]}, np.asarray([0, 2])))
    again = result.splitlines(keepends=True)
    new = find_loop(again, "particles")
    assert new.labels == ("name", "angle", "note", "psi")
    assert [again[number].split()[-1] for number in new.row_lines] == ["5", "6"]
    assert "second" not in result
    assert result.endswith("data_after\nloop_\n_angle\n9\n")


def test_line_ends_of_the_source_are_kept():
    lines = ["data_\r\n", "loop_\r\n", "_a #1\r\n", "1\r\n", "2"]
    result = replace_cells(lines, find_loop(lines, ""), {"a": ["3", "4"], "b": ["5", "6"]}, np.arange(2))
    assert "".join(result) == "data_\r\nloop_\r\n_a #1\r\n_b #2\r\n3 5\r\n4 6\n"


def test_written_block_is_found_again_with_quoted_cells():
    text = format_block("optics", {"name": ["my group", "b", ""], "number": ["1", "22", "3"]})
    lines = text.splitlines(keepends=True)
    block = find_loop(lines, "optics")
    assert block.labels == ("name", "number")
    cells = [lines[number].split() for number in block.row_lines]
    assert cells == [['"my', 'group"', "1"], ["b", "22"], ['""', "3"]]


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        format_block("optics", {"a": ["1", "2"], "b": ["1"]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data_\n# caf\u00e9\n".encode("latin1"), "line 2: byte 0xe9 is not UTF-8 text, perhaps Latin-1"),
        (b"data_\n\nloop_\0\n", "line 3: holds NUL bytes"),
        ("data_\n".encode("utf-16"), "line 1: holds NUL bytes"),
    ],
)
def test_what_is_no_text_is_named_by_its_line(tmp_path, content, words):
    path = tmp_path / "a.star"
    path.write_bytes(content)
    with pytest.raises(ParticleFormatError, match=rf"a\.star, {words}"):
        read_star_lines(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"two words"', "", "line 14, data_particles: row 1 has 2 of 3 cells"),
        ("2.0 'it has'", "2.0\n'it has'", "line 15, data_particles: row 2 has 2 of 3 cells"),
        ("third ", "third third ", "line 17, data_particles: row 3 has 4 of 3 cells"),
        ("_note", "_angle", "data_particles: the column angle is there twice"),
    ],
)
def test_a_row_with_other_than_one_cell_for_each_label_is_named(tmp_path, old, new, words):
    lines = TEXT.replace(old, new).splitlines(keepends=True)
    refuse_uneven_rows(tmp_path, TEXT.splitlines(keepends=True), "particles", rows=3)
    with pytest.raises(ParticleFormatError, match=words):
        refuse_uneven_rows(tmp_path, lines, "particles")


def test_rows_that_a_quote_swallows_are_missed(tmp_path, lines):
    with pytest.raises(ParticleFormatError, match="3 rows are written and 2 can be read; a quote is not closed"):
        refuse_uneven_rows(tmp_path, lines, "particles", rows=2)
