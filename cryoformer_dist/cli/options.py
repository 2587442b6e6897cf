"""Options and arguments that several commands have in common, and those of `convert` that need more words."""

from typing import Annotated, Literal

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
StoreOutput = Annotated[
    str, typer.Option("--output", "-o", help="Particle store to write (.zarr): a folder, or s3://bucket/prefix.")
]
ClassNumber = Annotated[
    int | None, typer.Option("--class", help="Take the poses of this class of a heterogeneous refinement (.cs).")
]
AllowDuplicates = Annotated[
    bool, typer.Option("--allow-duplicates", help="Images may be listed twice: symmetry expansion.")
]
Contrast = Annotated[Literal["auto", "light", "dark"], typer.Option(help="Is protein light or dark in the images?")]
ParticleDiameter = Annotated[float | None, typer.Option(help="Background is outside this diameter, angstrom.")]
