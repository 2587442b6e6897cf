"""What the report shows as files: pictures for slides, and the numbers as tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryoformer_dist.runs.layout import REPORT_FILES, REPORT_PICTURE, REPORT_TABLE
from cryoformer_dist.storage.places import replaced, write_whole


def write_report_files(run: Path, pictures: Mapping[str, bytes], tables: Mapping[str, Sequence[Any]]) -> list[Path]:
    """Write pictures and tables of a report, in place of those of an earlier one.

    Parameters
    ----------
    run
        Run directory.
    pictures
        PNG by name.
    tables
        Rows by name, instances of one dataclass each; empty ones are left out.
    """
    (run / REPORT_FILES).mkdir(exist_ok=True)
    for pattern in (REPORT_PICTURE, REPORT_TABLE):
        for stale in run.glob(pattern.format(name="*")):
            stale.unlink()
    written = []
    for name, png in pictures.items():
        written.append(run / REPORT_PICTURE.format(name=name))
        with replaced(written[-1]) as beside:
            beside.write_bytes(png)
    for name, rows in tables.items():
        if rows:
            written.append(run / REPORT_TABLE.format(name=name))
            write_whole(written[-1], _to_csv(rows))
    return written


def _to_csv(rows: Sequence[Any]) -> str:
    """A heading and a line per row; what an entry lacks is empty."""
    values = [asdict(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue()
