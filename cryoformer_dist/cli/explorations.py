"""What a trained run's latents show: maps of chosen states, groups and landscape, paths, motion, films."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import RunDirectory
from cryoformer_dist.errors import ExplorationError, NoPathError

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
Gaussians = Annotated[int, typer.Option("--gaussians", min=1, help="Try mixtures of up to so many.")]
Umap = Annotated[bool, typer.Option("--umap", help="Embed the latents by UMAP too; needs cryoformer-dist[umap].")]
HalfMaps = Annotated[
    bool, typer.Option("--half-maps", help="Back-project the images of each cluster too, with half maps.")
]
Place = "Row of the particle file, from 0, or cluster:3 for the centre of that cluster."
Along = Annotated[
    Literal["straight", "neighbours", "barrier"],
    typer.Option(help="Straight on, the shortest way among particles, or the way that stays among the most."),
]
Points = Annotated[int, typer.Option(min=2, help="Maps along the path.")]
Resolutions = Annotated[
    Path | None,
    typer.Option(help="Map of resolutions (.mrc), by `local-resolution`: no place shows more than is resolved there."),
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
    local_resolution: Resolutions = None,
) -> None:
    """Decode the maps of particles, of given latents, of a selection or along a path."""
    from cryoformer_dist.analysis.results import open_results
    from cryoformer_dist.exploration.decoding import Request, write_requested

    request = Request(tuple(particle or ()), latent, selection, form, path, local_resolution)
    with open_results(home) as working, terminal.progress("decoding maps") as progress:
        written = write_requested(working, request, output, progress)
    for map_file in written:
        terminal.say(f"written   {map_file}")
    scripts = sorted({str(map_file.with_name(map_file.stem.rpartition("_")[0] + ".cxc")) for map_file in written})
    terminal.say(f"next: chimerax {' '.join(scripts)}")


@app.command(epilog="Example: `cryoformer-dist analyze runs/demo`")
def analyze(home: RunDirectory, gaussians: Gaussians = 8, umap: Umap = False, half_maps: HalfMaps = False) -> None:
    """Find groups among the latents, how crowded each conformation is, wells, and how the molecule moves."""
    from cryoformer_dist.analysis.results import open_results_alone
    from cryoformer_dist.exploration.analysis import analyze_latents, describe_findings, write_findings
    from cryoformer_dist.exploration.cluster_maps import back_project_clusters, tell_evidence
    from cryoformer_dist.exploration.motion import tell_imbalance, tell_motion
    from cryoformer_dist.exploration.series import describe_axes
    from cryoformer_dist.runs.layout import ANALYSIS, EMBEDDING_FIGURE, LANDSCAPE_FIGURE
    from cryoformer_dist.selection.columns import read_columns

    with open_results_alone(home) as working:
        columns = read_columns(working.folder, str(working.home))
        with terminal.staged_progress() as progress:
            findings = analyze_latents(columns, gaussians, umap, progress)
            evidence = back_project_clusters(working.folder, columns, progress) if half_maps else ()
        motions = describe_axes(working.folder)
        summary = write_findings(working.folder, columns, findings, motions, evidence)
        names = (ANALYSIS, LANDSCAPE_FIGURE, EMBEDDING_FIGURE)
        written, picture, embedded = (working.at_home(working.folder / name) for name in names)
    for line in describe_findings(summary):
        terminal.say(line)
    for axis in motions:
        terminal.say(f"along {axis.series}, from its first map to its last:")
        for line in (*tell_motion(axis.parts), *tell_imbalance(axis.imbalance)):
            terminal.say(f"  {line}")
    for line in tell_evidence(evidence):
        terminal.say(line)
    if umap:
        terminal.say(f"picture     {embedded}")
    terminal.say(f"written     {written}")
    terminal.say(f"next: look at {picture}, then cryoformer-dist path {home} cluster:0 cluster:1 -o path.json")


@app.command(epilog="Example: `cryoformer-dist motion runs/demo/volumes/pc1_*.mrc`")
def motion(
    maps: Annotated[list[Path], typer.Argument(help="Maps (.mrc) of any program: first, those between, last.")],
) -> None:
    """Tell how a molecule moves from the first map to the last: which part, how far, about which hinge."""
    from cryoformer_dist.exploration.motion import describe_motion, measure_imbalance, tell_imbalance, tell_motion
    from cryoformer_dist.exploration.series import read_series

    if len(maps) < 2:
        raise ExplorationError("give two maps or more: the first, those between, the last")
    volumes, voxel_size_angstrom = read_series(maps)
    moving = tell_motion(describe_motion(volumes, voxel_size_angstrom))
    for line in (*moving, *tell_imbalance(measure_imbalance(volumes))):
        terminal.say(line)


@app.command(epilog="Example: `cryoformer-dist path runs/demo 17 cluster:3 -o path.json`")
def path(
    home: RunDirectory,
    start: Annotated[str, typer.Argument(help=Place)],
    end: Annotated[str, typer.Argument(help=Place)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Path to write (.json), for `volumes --path`.")],
    along: Along = "barrier",
    points: Points = 9,
) -> None:
    """Find a way through the latents between two particles or clusters, and how many particles lie along it."""
    from cryoformer_dist.exploration.path import write_path
    from cryoformer_dist.exploration.pathfinding import find_path
    from cryoformer_dist.runs.directory import open_run_directory
    from cryoformer_dist.selection.columns import read_columns

    with open_run_directory(home) as working:
        columns = read_columns(working.folder, str(working.home))
        try:
            found = find_path(columns, start, end, along, points)
        except NoPathError as error:
            raise NoPathError(f"{error}; `--along straight` goes through the void") from error
    write_path(output, found)
    terminal.say(f"path      from {found.start} to {found.end}, {along}: barrier {found.barrier:.2f} kT")
    terminal.say(f"particles {' '.join(map(str, found.particles))}")
    terminal.say(f"written   {output}")
    terminal.say(f"next: cryoformer-dist volumes {home} --path {output} -o {output.with_suffix('')}")


@app.command(epilog="Example: `cryoformer-dist movie runs/demo pc1 -o pc1.gif`")
def movie(
    home: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or a folder that `volumes` wrote.")],
    series: Annotated[str, typer.Argument(help="Series of maps: pc1, kmeans, path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Film to write: .gif, or .mp4.")],
    height: Annotated[int, typer.Option(min=120, max=2160, help="Of the picture, pixels.")] = 480,
    turntable: Annotated[bool, typer.Option("--turntable", help="Let the molecule turn once meanwhile.")] = False,
) -> None:
    """Film a series of maps as a surface that morphs forth and back, with scale bar and contour named."""
    from cryoformer_dist.exploration.filming import film_series
    from cryoformer_dist.runs.directory import open_run_directory

    with open_run_directory(home) as working:
        written = film_series(working.folder, series, output, height - height % 2, turntable)
    terminal.say(f"written   {written}")
