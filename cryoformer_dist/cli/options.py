"""Options and arguments that several commands have in common, and those of particle files."""

from pathlib import Path
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
Datadir = Annotated[Path | None, typer.Option(help="Where the stacks lie, if not where the file says.")]
Passthrough = Annotated[list[Path] | None, typer.Option(help="cryoSPARC passthrough .cs. May be repeated.")]
Poses = Annotated[Path | None, typer.Option(help="cryoDRGN poses.pkl.")]
CTF = Annotated[Path | None, typer.Option(help="cryoDRGN ctf.pkl.")]
Voltage = Annotated[float | None, typer.Option(help="In kV, where the file lacks it.")]
SphericalAberration = Annotated[float | None, typer.Option(help="Spherical aberration where the file lacks it, mm.")]
AmplitudeContrast = Annotated[float | None, typer.Option(help="From 0 to 1, where the file lacks it.")]
PixelSize = Annotated[float | None, typer.Option(help="Of the images where the file lacks it, angstrom.")]
Centred = Annotated[bool, typer.Option("--centred", help="No shifts in the file: particles are centred.")]
ClassNumber = Annotated[
    int | None, typer.Option("--class", help="Take the poses of this class of a heterogeneous refinement (.cs).")
]
AllowDuplicates = Annotated[
    bool, typer.Option("--allow-duplicates", help="Images may be listed twice: symmetry expansion.")
]
Contrast = Annotated[Literal["auto", "light", "dark"], typer.Option(help="Is protein light or dark in the images?")]
ParticleDiameter = Annotated[float | None, typer.Option(help="Background is outside this diameter, angstrom.")]
Benchmark = Annotated[
    float,
    typer.Option(min=0, help="Seconds of training steps, to estimate how long training takes here; 0: no estimate."),
]
