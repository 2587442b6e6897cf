"""What a trained run's latents show: maps of chosen states."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import RunDirectory

app = typer.Typer()

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for maps and ChimeraX scripts.")]
Particles = Annotated[
    list[int] | None, typer.Option("--particle", help="Row of the particle file, from 0. May be repeated.")
]
LatentFile = Annotated[Path | None, typer.Option("--latent", help="Text file of latents, one a line.")]
SelectionFile = Annotated[Path | None, typer.Option("--selection", help="Chosen particles (.json), by `select`.")]
Form = Annotated[
    Literal["mean", "centre", "each"],
    typer.Option(help="Of a selection: mean of its maps, the particle in its midst, or all of them."),
]
PathFile = Annotated[Path | None, typer.Option("--path", help="Path through the latents (.json).")]


@app.command(epilog="Example: `cryoformer-dist volumes runs/demo --particle 17 -o maps`")
def volumes(
    home: RunDirectory,
    output: Folder,
    particle: Particles = None,
    latent: LatentFile = None,
    selection: SelectionFile = None,
    form: Form = "mean",
    path: PathFile = None,
) -> None:
    """Decode the maps of particles, of given latents, of a selection or along a path."""
    from cryoformer_dist.analysis.results import open_results
    from cryoformer_dist.exploration.decoding import Request, write_requested

    request = Request(tuple(particle or ()), latent, selection, form, path)
    with open_results(home) as working, terminal.progress("decoding maps") as progress:
        written = write_requested(working, request, output, progress)
    for map_file in written:
        terminal.say(f"written   {map_file}")
    scripts = sorted({str(map_file.with_name(map_file.stem.rpartition("_")[0] + ".cxc")) for map_file in written})
    terminal.say(f"next: chimerax {' '.join(scripts)}")
