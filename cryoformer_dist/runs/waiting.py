"""What a run waits for before it can train on: one line of a file that is there for as long as it waits."""

from cryoformer_dist.runs.layout import WAITING
from cryoformer_dist.storage.places import Place, write_whole


def write_waiting(home: Place, text: str) -> None:
    """Say what a run waits for."""
    write_whole(home / WAITING, f"{text}\n")


def withdraw_waiting(home: Place) -> None:
    """Say that a run does not wait."""
    (home / WAITING).unlink(missing_ok=True)


def read_waiting(home: Place) -> str:
    """What a run waits for; empty when it does not."""
    file = home / WAITING
    return file.read_text().strip() if file.exists() else ""
