"""What the terminal shows: one bar for the driver's own work, one line per report of training."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY_SECONDS = 10.0

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line as it is."""
    console.print(text, markup=False)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere; yields a callback (done, in all)."""
    if not sys.stdout.isatty():
        with _lines(title) as update:
            yield update
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(title: str) -> Iterator[Callable[[int, int], None]]:
    start = last = time.monotonic()
    finished = False

    def update(done: int, total: int) -> None:
        nonlocal last, finished
        now = time.monotonic()
        if done >= total and not finished:
            finished = True
            say(f"{title}  {done}/{total}  {now - start:.1f} s")
        elif now - last > _LINE_EVERY_SECONDS:
            last = now
            say(f"{title}  {done}/{total}")

    yield update


def record_line(record: dict[str, Any]) -> None:
    """One report of training."""
    from cryoformer_dist.training.progress import describe

    say(describe(record))


def fail(message: str) -> None:
    """One message in red on the error stream."""
    errors.print(f"error: {message}", style="red", markup=False)


def warn(message: str) -> None:
    """One warning in yellow on the error stream."""
    errors.print(f"warning: {message}", style="yellow", markup=False)
