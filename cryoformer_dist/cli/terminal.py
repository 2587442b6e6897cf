"""What the terminal shows: one bar for the driver's own work, one line per report of training."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from cryoformer_dist.orchestration.display import Display
    from cryoformer_dist.runs.training_log import TrainingRecord

_LINE_EVERY_SECONDS = 10.0
_STATE_STYLES = {"ok": "green", "absent": "yellow", "broken": "red"}

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line as it is."""
    console.print(text, markup=False)


def show_findings(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """A table of what was looked at, its state (ok, absent or broken) and the details."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, state, detail in rows:
        table.add_row(escape(name), f"[{_STATE_STYLES[state]}]{state}[/]", escape(detail))
    if rows:
        console.print(table)
        console.print()


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere; yields a callback (done, in all)."""
    with staged_progress() as update:
        # Shown, and timed, from here on.
        update(title, 0, 1)
        yield lambda done, total: update(title, done, total)


@contextmanager
def staged_progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar for work in stages, with the time that each still takes; yields a callback (stage, done, in all)."""
    if not sys.stdout.isatty():
        yield _LineProgress().update
        return
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("eta"), TimeRemainingColumn(), console=console) as bar:
        task, shown = bar.add_task("", total=None), ""

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown
            if stage != shown:
                bar.reset(task)
            shown = stage
            bar.update(task, description=stage, completed=done, total=total)

        yield update


class _LineProgress:
    """Progress for logs: a line when a stage ends, and now and then before."""

    def __init__(self) -> None:
        self._stage = ""
        self._start = self._last = time.monotonic()
        self._ended = False

    def update(self, stage: str, done: int, total: int) -> None:
        from cryoformer_dist.runs.training_log import format_duration

        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._start, self._last, self._ended = stage, now, now, False
        if done >= total and not self._ended:
            self._ended = True
            say(f"{stage}  {done}/{total}  {now - self._start:.1f} s")
        elif not self._ended and now - self._last > _LINE_EVERY_SECONDS:
            self._last = now
            left = f"  eta {format_duration((now - self._start) * (total - done) / done)}" if done else ""
            say(f"{stage}  {done}/{total}{left}")


def make_display() -> "Display":
    """How whoever drives a run or a sweep speaks on this terminal; words are explained where they first come."""
    from cryoformer_dist.orchestration.display import Display
    from cryoformer_dist.runs.glossary import Explainer
    from cryoformer_dist.runs.training_log import describe

    explainer = Explainer()

    def explain(line: str) -> None:
        for words in explainer.explain(line):
            say(words)

    @contextmanager
    def stages() -> Iterator[Callable[[str, int, int], None]]:
        with staged_progress() as update:

            def update_and_explain(stage: str, done: int, total: int) -> None:
                explain(stage)
                update(stage, done, total)

            yield update_and_explain

    def tell(record: "TrainingRecord") -> None:
        line = describe(record)
        say(line)
        explain(line)

    return Display(say, progress, stages, tell)


def follow(lines: Iterable[str]) -> None:
    """Print lines of a log as they come; on a terminal, reports of training are one line, kept up to date."""
    if not sys.stdout.isatty():
        for line in lines:
            say(line)
        return
    from cryoformer_dist.runs.training_log import is_described

    with console.status("") as latest:
        for line in lines:
            if is_described(line):
                latest.update(escape(line))
            else:
                say(line)


def fail(message: str) -> None:
    """One message in red on the error stream."""
    errors.print(f"error: {message}", style="red", markup=False)


def warn(message: str) -> None:
    """One warning in yellow on the error stream."""
    errors.print(f"warning: {message}", style="yellow", markup=False)
