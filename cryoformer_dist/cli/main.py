"""Commands: options to configuration, one call, its result printed.

Heavy imports happen inside commands, so that help appears at once.
"""

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoformer_dist.cli import configuration, explorations, maps, project, selections, sweeps, terminal, viewing
from cryoformer_dist.cli import launches as launches
from cryoformer_dist.cli.options import (
    CTF,
    AllowDuplicates,
    AmplitudeContrast,
    Benchmark,
    Centred,
    ClassNumber,
    Contrast,
    Datadir,
    Name,
    Overrides,
    ParticleDiameter,
    Passthrough,
    PixelSize,
    Poses,
    Resume,
    RunDirectory,
    SphericalAberration,
    StoreOutput,
    Voltage,
)
from cryoformer_dist.errors import CryoFormerError, CryoFormerWarning, RunStopped
from cryoformer_dist.orchestration.environment import prepare_environment
from cryoformer_dist.orchestration.stopping import EXIT_CODE
from cryoformer_dist.storage.retry import explain_refusal

if TYPE_CHECKING:
    from cryoformer_dist.data.convert import ConversionPlan
    from cryoformer_dist.data.store import ParticleStore
    from cryoformer_dist.io.particles import ParticleTable

app = typer.Typer(
    name="cryoformer-dist",
    help="Continuous heterogeneous cryo-EM reconstruction with CryoFormer, on one machine or many.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)


app.command(epilog="Example: `cryoformer-dist init my-project --particles run_data.star`")(project.init)


@app.command(epilog="Example: `cryoformer-dist doctor`")
def doctor(
    storage: Annotated[Path, typer.Option(help="Where run directories are to go.")] = Path("runs"),
    seconds: Annotated[float, typer.Option(min=0, help="Length of the benchmark; 0 leaves it out.")] = 20.0,
) -> None:
    """See what this machine has, which backends load and why others do not, and how fast it trains."""
    from cryoformer_dist.orchestration.devices import Finding
    from cryoformer_dist.orchestration.doctor import advise, examine

    findings: list[Finding] = []
    for title, found in examine(storage, seconds):
        terminal.show_findings(title, [(finding.name, finding.state, finding.detail) for finding in found])
        findings += found
    terminal.say(f"next: {advise(findings)}")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: `cryoformer-dist simulate --output set --set particles=1000 --set snr=0.1`")
def simulate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for stacks, particles.star and truth/.")],
    config: Annotated[Path | None, typer.Argument(help="Simulation file; the built-in molecule when left out.")] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set that is already there.")] = False,
) -> None:
    """Make particle images with known states, poses and volumes: ideal ones, or with what real particles have.

    `--set nuisances.junk.empty=0.05` and the like: coloured and ice noise, contrast, background, junk, errors of the
    CTF, uneven views and states, optics groups. `--set perturbation.rotation_sd_deg=2`: errors of the given poses.
    `cryoformer-dist config schema simulation` lists every key.
    """
    from cryoformer_dist.config.loading import load_config, parse_overrides
    from cryoformer_dist.config.simulation import SimulationConfig
    from cryoformer_dist.simulation.particle_set import simulate as make

    if config is None:
        settings = parse_overrides(overrides or [], SimulationConfig, "simulate")
    else:
        settings = load_config(config, SimulationConfig, overrides or []).with_paths_from(config.resolve().parent)
    with terminal.progress("simulating particles") as progress:
        made = make(settings, output, progress, overwrite=overwrite)
    terminal.say(f"particles  {made.star}")
    terminal.say(f"truth      {made.truth}")
    terminal.say(f"next: cryoformer-dist convert {made.star} -o {output / 'particles.zarr'}")


@app.command(epilog="Example: `cryoformer-dist convert run_data.star -o particles.zarr --box 128`")
def convert(
    particles: Annotated[Path, typer.Argument(help="RELION .star, cryoSPARC .cs, or a stack with --poses and --ctf.")],
    output: StoreOutput,
    box: Annotated[int | None, typer.Option(help="Fourier-crop to this even box, pixels.")] = None,
    datadir: Datadir = None,
    passthrough: Passthrough = None,
    poses: Poses = None,
    ctf: CTF = None,
    indices: Annotated[Path | None, typer.Option("--ind", help="cryoDRGN ind.pkl: keep these rows.")] = None,
    voltage: Voltage = None,
    cs: SphericalAberration = None,
    amplitude_contrast: AmplitudeContrast = None,
    pixel_size: PixelSize = None,
    centred: Centred = False,
    class_number: ClassNumber = None,
    allow_duplicates: AllowDuplicates = False,
    from_selection: Annotated[Path | None, typer.Option(help="Selection (.json) of this file: keep its rows.")] = None,
    contrast: Contrast = "auto",
    particle_diameter: ParticleDiameter = None,
    seed: Annotated[int, typer.Option(help="Of the order of particles in the store.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Shards converted at a time; all CPUs when left out.")] = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store that is there.")] = False,
    benchmark: Benchmark = 3.0,
) -> None:
    """Convert particles to a checked, sharded Zarr store. Interrupted? Run the same command again."""
    from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
    from cryoformer_dist.data.selection import keep_selected, read_selection
    from cryoformer_dist.io.reading import read_particles
    from cryoformer_dist.io.stated import StatedValues

    stated = StatedValues(voltage, cs, amplitude_contrast, pixel_size, centred, class_number)
    options = ConversionOptions(
        box_size=box,
        contrast=contrast,
        particle_diameter_angstrom=particle_diameter,
        seed=seed,
        overwrite=overwrite,
        stated=stated,
        allow_duplicates=allow_duplicates,
    )
    files = passthrough or ()
    table = read_particles(
        particles, datadir=datadir, passthrough=files, poses=poses, ctf=ctf, indices=indices, stated=stated
    )
    if from_selection is not None:
        table = keep_selected(table, read_selection(from_selection))
    plan = plan_conversion(table, output, options)
    _tell_plan(table, plan)
    with terminal.progress("converting to Zarr") as progress:
        if local:
            store = convert_serially(plan, progress)
        else:
            from cryoformer_dist.orchestration.conversion import convert_particles

            store = convert_particles(plan, workers, progress)
    terminal.say(f"store      {store.path}: box {store.box_size} at {store.pixel_size_angstrom:.4g} A")
    _tell_advice(store, benchmark)
    terminal.say(f"next: cryoformer-dist check {shlex.quote(output)}")


def _tell_advice(store: "ParticleStore", benchmark: float) -> None:
    """Which box and epochs, and how long that takes here."""
    if benchmark:
        from cryoformer_dist.orchestration.advice import advise_on

        for line in advise_on(store.box_size, store.pixel_size_angstrom, len(store), benchmark):
            terminal.say(line)


def _tell_plan(table: "ParticleTable", plan: "ConversionPlan") -> None:
    """Say what was found of the particles, before their images are converted."""
    from cryoformer_dist.data.noise_measurement import summarise_noise
    from cryoformer_dist.data.source_images import describe_corrections

    terminal.say(f"particles  {len(table)} in {len(table.stack_paths)} stacks")
    for line in describe_corrections(table.optics):
        terminal.say(f"undone     {line}")
    terminal.say(f"contrast   {plan.contrast}")
    terminal.say(f"noise      {summarise_noise(plan.normalisation.noise)}")


@app.command(epilog="Example: `cryoformer-dist check particles.zarr`")
def check(
    store: Annotated[str, typer.Argument(help="Particle store (.zarr): a folder, or s3://bucket/prefix.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder for maps and picture; <store>.check when left out."),
    ] = None,
    sample: Annotated[int, typer.Option(min=2, help="Particles to back-project.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    benchmark: Benchmark = 3.0,
) -> None:
    """Verify every chunk, then back-project a sample to see whether signs, shifts and rotations are right.

    Exit code 1 where something should be looked at before training.
    """
    from cryoformer_dist.analysis.check import check_store
    from cryoformer_dist.data.store import ParticleStore
    from cryoformer_dist.storage.places import place_at
    from cryoformer_dist.storage.working_folder import open_working_folder

    place = place_at(output) if output else place_at(store).with_suffix(".check")
    opened = ParticleStore.open(store)
    with open_working_folder(place) as working:
        with terminal.staged_progress() as progress:
            report = check_store(opened, working.folder, sample, seed, progress)
        working.send_changes()
    terminal.say(str(report))
    if not report.healthy:
        terminal.say(f"next: look at {place / 'check.png'} and mend what is named above")
        raise typer.Exit(1)
    _tell_advice(opened, benchmark)
    terminal.say(f"next: look at {place / 'check.png'}, then {project.launch_command(place_at(store))}")


@app.command(epilog="Example: `cryoformer-dist train configs/demo.yaml --local`")
def train(
    run_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run file.")],
    storage: Annotated[str, typer.Option(help="Where run directories go: a folder, or s3://bucket/prefix.")] = "runs",
    name: Name = None,
    resume: Resume = False,
    workers: Annotated[int, typer.Option(min=1, help="Training processes.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs per training process.")] = 0,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train on this machine and write volumes, latents, verdict and report."""
    from cryoformer_dist.config.cluster import LocalCluster
    from cryoformer_dist.config.loading import parse_config
    from cryoformer_dist.orchestration.config_files import read_run_file
    from cryoformer_dist.orchestration.pipeline import run_pipeline
    from cryoformer_dist.orchestration.request import RunRequest
    from cryoformer_dist.storage.places import placed_from

    config = read_run_file(run_file, overrides or [])
    where = {"storage": placed_from(Path.cwd(), storage)}
    cluster = parse_config({**where, "workers": {"count": workers, "gpus": gpus}}, LocalCluster, "train")
    with launches.ending_in_order():
        run_pipeline(RunRequest(name or config.name, config, cluster, resume, local), terminal.make_display())


app.add_typer(launches.app)
app.add_typer(sweeps.app)
app.add_typer(selections.app)
app.add_typer(maps.app)
app.add_typer(configuration.app, name="config")
app.add_typer(explorations.app)
app.add_typer(viewing.app)


@app.command(epilog="Example: `cryoformer-dist reconstruct runs/demo`")
def reconstruct(home: RunDirectory) -> None:
    """Write volumes at cluster centres and along the principal axes, the latent table and refined poses."""
    from cryoformer_dist.analysis.results import open_results_alone, reconstruct_alone

    with open_results_alone(home) as working:
        written = reconstruct_alone(working)
    terminal.say(f"{len(written)} files in {home}")
    terminal.say(f"next: cryoformer-dist evaluate {home}")


@app.command(epilog="Example: `cryoformer-dist evaluate runs/demo --truth runs/demo-data/particles/truth`")
def evaluate(
    home: RunDirectory,
    truth: Annotated[
        Path | None,
        typer.Option(help="Truth folder of a simulation; the one beside its particles when left out."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Region (.mrc) in which to judge the motion; where the truth moves when left out."),
    ] = None,
    solvent_mask: Annotated[
        Path | None,
        typer.Option(help="Mask (.mrc) of the per-image FSC; round the true maps when left out."),
    ] = None,
) -> None:
    """Judge a run: against the truth where there is one, with the consensus map as the floor."""
    from cryoformer_dist.analysis.report_tables import summarise
    from cryoformer_dist.analysis.results import MaskFiles, evaluate_run, open_results_alone
    from cryoformer_dist.runs.scores import read_scores

    with open_results_alone(home) as working:
        path = evaluate_run(working.folder, truth, masks=MaskFiles(mask, solvent_mask))
        scores = read_scores(working.folder)
        assert scores is not None
        for line in summarise(scores):
            terminal.say(line)
        terminal.say(f"all measures  {working.at_home(path)}")


@app.command(epilog="Example: `cryoformer-dist report runs/demo`")
def report(home: RunDirectory) -> None:
    """Write report.html anew from the files of a run or a sweep."""
    from cryoformer_dist.analysis.results import open_results, report_run

    with open_results(home) as working:
        terminal.say(f"report  {working.at_home(report_run(working.folder))}")


def main() -> None:
    """Run the command line: one red line and exit code 2 for what a user can fix, a traceback for what we must."""
    prepare_environment()
    with _showing_warnings():
        try:
            app()
        except RunStopped as end:
            terminal.say(str(end))
            sys.exit(EXIT_CODE)
        except CryoFormerError as error:
            terminal.fail(str(error))
            sys.exit(2)
        except (OSError, RuntimeError) as error:
            refused = explain_refusal(error)
            if refused is None:
                raise
            terminal.fail(refused)
            sys.exit(2)


@contextmanager
def _showing_warnings() -> Iterator[None]:
    """Our own warnings as one line each, without the place in the source that raised them."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, *rest, **named):  # type: ignore[no-untyped-def]
            if issubclass(category, CryoFormerWarning):
                terminal.warn(str(message))
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        warnings.simplefilter("always", CryoFormerWarning)
        yield


if __name__ == "__main__":
    main()
