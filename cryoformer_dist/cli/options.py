"""Options and arguments that several commands have in common."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the file: dotted.key=value. May be repeated."),
]
Name = Annotated[str | None, typer.Option(help="Name of the run directory; the run file's name when left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run, or sweep, that is there.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return at once; `logs` follows, `status` asks, `stop` ends it.")
]
LaunchName = Annotated[str, typer.Argument(help="Name of the run, as launched.")]
RunDirectory = Annotated[str, typer.Argument(metavar="RUN", help="Run directory, as printed by train or launch.")]
