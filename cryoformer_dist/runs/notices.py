"""What those who follow a run are to be told besides its training log: lines of a small file."""

from pathlib import Path

from cryoformer_dist.runs.layout import NOTICES
from cryoformer_dist.storage.places import Place, write_whole


def add_notice(home: Place, text: str) -> None:
    """Tell one thing, in one line; of two told at the very same moment one may be lost."""
    file = home / NOTICES
    before = file.read_text() if file.exists() else ""
    write_whole(file, f"{before}{text}\n")


def read_notices(run: Path) -> list[str]:
    """All that was told, the oldest first."""
    file = run / NOTICES
    return file.read_text().splitlines() if file.is_file() else []
