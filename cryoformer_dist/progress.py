"""How work that takes a while says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told (done, in all)."""
StagedProgress = Callable[[str, int, int], None]
"""Told (stage, done, in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
