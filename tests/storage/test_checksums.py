from pathlib import Path

import pytest

from cryoformer_dist.storage.checksums import find_change, sum_content, sum_file


def test_a_file_that_is_what_was_written_has_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    # Longer than the pieces that are read.
    file.write_bytes(bytes(range(256)) * 10_000)
    assert find_change(file, sum_file(file)) is None


@pytest.mark.parametrize(
    ("become", "words"),
    [(None, "is missing"), (b"abc", "has 3 bytes instead of 4"), (b"abce", "is not what was written")],
)
def test_any_change_is_told(tmp_path: Path, become: bytes | None, words: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abcd")
    written = sum_file(file)
    file.unlink() if become is None else file.write_bytes(become)
    assert words in str(find_change(file, written))


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abcd")
    written = sum_file(file)
    file.unlink()
    file.mkdir()
    assert find_change(file, written) == "cannot be read (Is a directory)"


def test_content_counts_and_its_layout_does_not() -> None:
    assert sum_content({"a": 1, "b": [2]}) == sum_content({"b": [2], "a": 1})
    assert sum_content({"a": 1}) != sum_content({"a": 2})
