"""Commands that compare maps, and make masks of them."""

from pathlib import Path
from typing import Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.runs.layout import HALVES

app = typer.Typer()


@app.command(epilog="Example: `cryoformer-dist fsc half1.mrc half2.mrc --mask mask.mrc --output fsc.csv`")
def fsc(
    first: Annotated[Path, typer.Argument(help="Map (.mrc) of any program.")],
    second: Annotated[Path, typer.Argument(help="Map on the same grid.")],
    mask: Annotated[Path | None, typer.Option(help="Mask (.mrc); adds the masked and the corrected curve.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table of the curves (.csv).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of the curves (.png, .svg or .pdf).")] = None,
) -> None:
    """Compare two maps: FSC unmasked, masked, and corrected for the mask by phase randomisation."""
    from cryoformer_dist.analysis.map_fsc import describe, read_and_compare, write_curves
    from cryoformer_dist.figures.fsc import draw_fsc

    comparison, volume = read_and_compare(first, second, mask)
    name = "none" if mask is None else str(mask)
    for line in describe(comparison, name):
        terminal.say(line)
    if output is not None:
        terminal.say(f"table       {write_curves(output, comparison.curves)}")
    if figure is not None:
        title = f"{first.name} and {second.name} · {volume.voxel_size_angstrom:.4g} Å per voxel · mask {name}"
        terminal.say(f"figure      {draw_fsc(figure, comparison.curves, title)}")


@app.command(epilog="Example: `cryoformer-dist mask runs/demo/consensus.mrc -o mask.mrc`")
def mask(
    volume: Annotated[Path, typer.Argument(metavar="MAP", help="Map (.mrc) of any program, protein bright.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Mask to write (.mrc).")],
    threshold: Annotated[float | None, typer.Option(help="Density of the smoothed map; chosen when left out.")] = None,
    lowpass: Annotated[float | None, typer.Option(help="Smooth to this resolution first, angstrom.")] = None,
    dilate: Annotated[float | None, typer.Option(help="Widen the region by so many angstrom.")] = None,
    soft_edge: Annotated[float | None, typer.Option(help="Width of the cosine edge beyond, angstrom.")] = None,
) -> None:
    """Make a solvent or focus mask from a map; what is left out is chosen from the map, and said."""
    from cryoformer_dist.analysis.masks import MaskChoice, make_mask
    from cryoformer_dist.io.mrc import read_volume, write_volume

    made = make_mask(read_volume(volume), MaskChoice(threshold, lowpass, dilate, soft_edge))
    write_volume(output, made.mask, [f"cryoformer-dist mask of {volume.name}"])
    for line in made.describe():
        terminal.say(line)
    terminal.say(f"written     {output}")
    terminal.say(f"next: cryoformer-dist train RUN.yaml --set training.mask={output.resolve()}")


@app.command(
    "local-resolution", epilog="Example: `cryoformer-dist local-resolution half1.mrc half2.mrc -o resolution.mrc`"
)
def local_resolution(
    first: Annotated[Path, typer.Argument(metavar="HALF1", help="Half map (.mrc) of any program, without a mask.")],
    second: Annotated[Path, typer.Argument(metavar="HALF2", help="The other one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Map of resolutions in angstrom (.mrc).")],
    mask: Annotated[
        Path | None, typer.Option(help="Mask (.mrc) of what is told; made from the maps when left out.")
    ] = None,
) -> None:
    """Measure how finely each place of a map is resolved, by its half maps."""
    from cryoformer_dist.exploration.local_resolution import measure_files
    from cryoformer_dist.io.mrc import write_volume

    with terminal.progress("local resolution") as progress:
        measured, told = measure_files(first, second, mask, progress)
    write_volume(output, measured, [f"cryoformer-dist local resolution of {first.name}, {second.name}, angstrom"])
    terminal.say(f"resolution  {told}")
    terminal.say(f"written     {output}")
    terminal.say(f"next: cryoformer-dist volumes RUN --particle 0 --local-resolution {output} -o maps")


@app.command(epilog="Example: `cryoformer-dist halves runs/half1 runs/half2`")
def halves(
    first: Annotated[str, typer.Argument(help="Run trained with --set dataset.half=1.")],
    second: Annotated[str, typer.Argument(help="Run trained with --set dataset.half=2.")],
    mask: Annotated[Path | None, typer.Option(help="Mask (.mrc); made from the maps when left out.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for table, picture and maps; RUN1/halves.")
    ] = None,
) -> None:
    """Compare two runs trained apart on the two half-sets: in their maps and their motion."""
    from cryoformer_dist.analysis.half_maps import compare_halves, describe_motion, write_half_maps
    from cryoformer_dist.analysis.map_fsc import describe
    from cryoformer_dist.analysis.results import open_results

    with open_results(first) as one, open_results(second) as other:
        found = compare_halves(one.folder, other.folder, mask)
        written = write_half_maps(output or one.folder / HALVES, found, (one.home, other.home))
        place = written if output else one.at_home(written)
    terminal.say(f"motion      {describe_motion(found.matched)}")
    for line in describe(found.average, found.mask_name, f"mean of {len(found.pairs)} pairs"):
        terminal.say(line)
    terminal.say(f"written     {place}")
