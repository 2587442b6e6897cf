"""STAR files as text: rows counted, new blocks, and cells replaced in place so that every other byte stays."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError

_BLANK = re.compile(r"\s")
_CELL = re.compile(r"\"[^\"]*\"|'[^']*'|\S+")


def format_block(name: str, columns: Mapping[str, Sequence[str]]) -> str:
    """Spell a loop block, one column per label, cells aligned; a cell with a blank in it is quoted."""
    cells = [[_quoted(cell) for cell in column] for column in columns.values()]
    widths = [max(map(len, column), default=0) for column in cells]
    labels = [f"_{label} #{number}" for number, label in enumerate(columns, start=1)]
    rows = [
        " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in zip(*cells, strict=True)
    ]
    return "\n".join([f"data_{name}", "", "loop_", *labels, *rows, "", ""])


@dataclass(frozen=True, slots=True)
class LoopBlock:
    """Where a loop block stands in the lines of a file.

    Attributes
    ----------
    labels
        Its labels without the underscore, in order.
    last_label_line
        Line of the last label.
    row_lines
        ``(rows,)`` the lines that hold data.
    """

    labels: tuple[str, ...]
    last_label_line: int
    row_lines: np.ndarray


def find_loop(lines: Sequence[str], name: str) -> LoopBlock | None:
    """Locate the loop block ``data_<name>``; None when there is none."""
    start = next((number for number, line in enumerate(lines) if line.strip() == f"data_{name}"), None)
    if start is None:
        return None
    stop = next((n for n in range(start + 1, len(lines)) if lines[n].strip().startswith("data_")), len(lines))
    labels: list[str] = []
    label_line = start
    in_loop = False
    for number in range(start + 1, stop):
        line = lines[number].strip()
        if line == "loop_":
            in_loop = True
        elif in_loop and line.startswith("_"):
            labels.append(line.split()[0][1:])
            label_line = number
        elif line and not line.startswith("#"):
            break
    if not labels:
        return None
    rows = [n for n in range(label_line + 1, stop) if lines[n].strip() and not lines[n].strip().startswith("#")]
    return LoopBlock(tuple(labels), label_line, np.asarray(rows, dtype=np.int64))


def read_star_lines(path: Path) -> list[str]:
    """Lines of a file that is to be text.

    Raises
    ------
    ParticleFormatError
        If it is no UTF-8 text; names the line.
    """
    content = path.read_bytes()
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise ParticleFormatError(
            f"{path}, line {line}: holds NUL bytes, so it is no text file in UTF-8; copy the file again, or save it as "
            "UTF-8 text"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ParticleFormatError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8 text, perhaps Latin-1; convert the "
            "file with: iconv -f latin1 -t utf-8"
        ) from None
    return list(io.StringIO(text, newline=None))


def refuse_uneven_rows(path: Path, lines: Sequence[str], name: str, rows: int | None = None) -> None:
    """See that every row of a loop block has a cell for each label.

    Parameters
    ----------
    rows
        How many were read; no matter when None.

    Raises
    ------
    ParticleFormatError
        If a row has more or fewer, a label is there twice, or quotes swallow rows; names the row.
    """
    block = find_loop(lines, name)
    if block is None:
        return
    twice = next((label for label in block.labels if block.labels.count(label) > 1), None)
    if twice is not None:
        raise ParticleFormatError(f"{path}, data_{name}: the column {twice} is there twice; remove one")
    for row, number in enumerate(block.row_lines.tolist(), start=1):
        line = lines[number].partition("#")[0]
        cells = len(line.split())
        if cells != len(block.labels):
            cells = len(_CELL.findall(line))
        if cells != len(block.labels):
            raise ParticleFormatError(
                f"{path}, line {number + 1}, data_{name}: row {row} has {cells} of {len(block.labels)} cells; was a "
                "row broken over two lines, or a cell lost? Every row needs one cell per label, on one line"
            )
    if rows is not None and rows != len(block.row_lines):
        raise ParticleFormatError(
            f"{path}, data_{name}: {len(block.row_lines)} rows are written and {rows} can be read; a quote is not "
            "closed: correct or remove it"
        )


def replace_cells(
    lines: Sequence[str], block: LoopBlock, columns: Mapping[str, Sequence[str]], rows: np.ndarray
) -> list[str]:
    """Give some rows of a loop block new cells; nothing else changes.

    Parameters
    ----------
    lines
        The file, each line with its end.
    block
        The block within it.
    columns
        Label to new cells, one per entry of `rows`; a label that the block lacks becomes its last column.
    rows
        ``(k,)`` rows of the block, from 0.

    Returns
    -------
    lines
        The new file. Rows that are not named keep their cells; where a column is new they are left out,
        because a row without a value cannot be written.
    """
    known = {label: block.labels.index(label) for label in columns if label in block.labels}
    added = [label for label in columns if label not in known]
    result = list(lines)
    for position, row in enumerate(rows):
        number = int(block.row_lines[row])
        cells = {place: columns[label][position] for label, place in known.items()}
        result[number] = _with_cells(lines[number], cells, [columns[label][position] for label in added])
    if added:
        end = _line_end(lines[block.last_label_line])
        start = len(block.labels) + 1
        labels = "".join(f"_{label} #{number}{end}" for number, label in enumerate(added, start=start))
        result[block.last_label_line] = lines[block.last_label_line].rstrip("\r\n") + end + labels
        for number in np.delete(block.row_lines, rows):
            result[int(number)] = ""
    return result


def _with_cells(line: str, cells: Mapping[int, str], added: Sequence[str]) -> str:
    """Replace cells by position, right-aligned in the room of the old ones, and append new ones."""
    pieces: list[str] = []
    last = 0
    for place, match in enumerate(_CELL.finditer(line)):
        new = cells.get(place)
        if new is not None:
            pieces += [line[last : match.start()], new.rjust(len(match.group()))]
            last = match.end()
    text = "".join(pieces) + line[last:]
    if not added:
        return text
    return " ".join([text.rstrip(), *added]) + _line_end(line)


def _line_end(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :] or "\n"


def _quoted(cell: str) -> str:
    return f'"{cell}"' if not cell or _BLANK.search(cell) else cell
