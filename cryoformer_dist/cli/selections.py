"""Particles chosen by what a run found of them, handed to other programs."""

from pathlib import Path
from typing import Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import RunDirectory
from cryoformer_dist.errors import SelectionError

app = typer.Typer()

Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output", "-o", help=".star or .cs as the particles came, .pkl (cryoDRGN's ind), .json. May be repeated."
    ),
]
Cluster = Annotated[list[int] | None, typer.Option(help="Cluster, numbered as volumes/kmeans_*.mrc. May be repeated.")]
Where = Annotated[
    list[str] | None, typer.Option(help="Condition on columns, such as 'junk < .1 and pc1 > 0'. May be repeated.")
]
Selections = Annotated[
    list[Path] | None, typer.Option("--selection", help="Selection (.json) made before. May be repeated.")
]
Indices = Annotated[list[Path] | None, typer.Option("--ind", help="cryoDRGN ind.pkl. May be repeated.")]
Passthrough = Annotated[
    list[Path] | None, typer.Option(help="cryoSPARC passthrough .cs, to be written too. May be repeated.")
]
CryoDRGN = Annotated[
    Path | None, typer.Option("--cryodrgn", help="Folder for cryoDRGN's poses.pkl, ctf.pkl, ind.pkl and z.pkl.")
]
SelectionName = Annotated[
    str | None, typer.Option("--name", help="Of the selection in the run directory; as the first output.")
]


@app.command(epilog="Example: `cryoformer-dist select runs/demo --cluster 3 --where 'junk < .1' -o subset.star`")
def select(
    home: RunDirectory,
    output: Output = None,
    cluster: Cluster = None,
    where: Where = None,
    selection: Selections = None,
    indices: Indices = None,
    any_of_it: Annotated[bool, typer.Option("--any", help="What fulfils some of this, not all of it.")] = False,
    complement: Annotated[bool, typer.Option("--complement", help="All other particles of the run.")] = False,
    refined_poses: Annotated[bool, typer.Option("--refined-poses", help="Write poses as trained.")] = False,
    particles: Annotated[Path | None, typer.Option(help="The run's particle file, if it has moved.")] = None,
    passthrough: Passthrough = None,
    cryodrgn: CryoDRGN = None,
    name: SelectionName = None,
    show: Annotated[bool, typer.Option("--list", help="Name the columns, their ranges and meanings, and end.")] = False,
) -> None:
    """Choose particles by cluster, by columns or by earlier selections, and write them as they came."""
    from cryoformer_dist.runs.directory import open_run_directory
    from cryoformer_dist.selection.choice import Choice, choose
    from cryoformer_dist.selection.columns import describe_columns, read_columns
    from cryoformer_dist.selection.export import Export, export_selection, keep_selection

    parts = (tuple(cluster or ()), tuple(where or ()), tuple(selection or ()), tuple(indices or ()))
    outputs = tuple(output or ())
    with open_run_directory(home) as working:
        columns = read_columns(working.folder, str(working.home))
        if show:
            for line in describe_columns(columns):
                terminal.say(line)
            return
        kept_as = name or next((each.stem for each in (*outputs, cryodrgn) if each is not None), None)
        if kept_as is None:
            raise SelectionError("say where to with --output, or keep the selection in the run directory with --name")
        chosen = choose(columns, Choice(*parts, any_of_it, complement))
        export = Export(outputs, particles, tuple(passthrough or ()), refined_poses, cryodrgn)
        written = export_selection(chosen, export, columns)
        kept = keep_selection(working, kept_as, chosen)
    terminal.say(f"selected  {len(chosen)} of {len(columns)} particles: {chosen}")
    for path in written:
        terminal.say(f"written   {path}")
    terminal.say(f"kept      {kept}")
    terminal.say(f"next: cryoformer-dist train RUN.yaml --set dataset.selection={kept}")
