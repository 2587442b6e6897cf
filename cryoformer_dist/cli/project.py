"""`init`: the files to begin with, for the user's own particles or as they are shipped."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import (
    CTF,
    AmplitudeContrast,
    Centred,
    ClassNumber,
    Datadir,
    Passthrough,
    PixelSize,
    Poses,
    SphericalAberration,
    Voltage,
)
from cryoformer_dist.cli.starter import CLUSTER_FILE, STORE, OwnRun, write_own_files, write_starter_files

if TYPE_CHECKING:
    from cryoformer_dist.io.particles import ParticleTable
    from cryoformer_dist.io.stated import StatedValues
    from cryoformer_dist.storage.places import Place

_QUESTION = "Your particles (.star or .cs; empty for the demonstration)"


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the files.")],
    particles: Annotated[
        Path | None, typer.Option(help="Your particles, RELION .star or cryoSPARC .cs: the files are made for them.")
    ] = None,
    datadir: Datadir = None,
    passthrough: Passthrough = None,
    poses: Poses = None,
    ctf: CTF = None,
    voltage: Voltage = None,
    cs: SphericalAberration = None,
    amplitude_contrast: AmplitudeContrast = None,
    pixel_size: PixelSize = None,
    centred: Centred = False,
    class_number: ClassNumber = None,
) -> None:
    """Write cluster and run file, for your particles or, without any, those of the demonstration and all others.

    Box, epochs and workers are chosen by the particles and by this machine. What the particle file lacks is given here
    as to `convert`, whose command is printed.
    """
    if particles is None and sys.stdin.isatty():
        answer = typer.prompt(_QUESTION, default="", show_default=False)
        particles = Path(answer).expanduser() if answer else None
    if particles is None:
        for path in write_starter_files(folder):
            terminal.say(f"wrote {path}")
        terminal.say(f"next: cryoformer-dist launch {shlex.quote(str(folder / 'cluster' / 'local.yaml'))}")
        return
    from cryoformer_dist.io.reading import read_particles
    from cryoformer_dist.io.stated import StatedValues

    stated = StatedValues(voltage, cs, amplitude_contrast, pixel_size, centred, class_number)
    table = read_particles(
        particles, datadir=datadir, passthrough=passthrough or (), poses=poses, ctf=ctf, stated=stated
    )
    run = _choose_run(table, particles)
    for path in write_own_files(folder, run):
        terminal.say(f"wrote {path}")
    terminal.say(run.describe())
    given = {"--datadir": datadir, "--poses": poses, "--ctf": ctf} | _stated_options(stated)
    terminal.say(f"next: {_convert_command(particles, folder, run.box, passthrough or [], given)}")


def launch_command(store: "Place") -> str:
    """What trains on a store: its project's cluster file, where `init` wrote one beside it."""
    own = store.parent / CLUSTER_FILE
    if isinstance(own, Path) and own.is_file():
        return f"cryoformer-dist launch {shlex.quote(str(own))}"
    return "cryoformer-dist launch cluster/local.yaml --run RUN.yaml"


def _choose_run(table: "ParticleTable", particles: Path) -> OwnRun:
    """Box, epochs and workers for these particles on this machine."""
    import torch

    from cryoformer_dist.data.image_normalisation import stored_pixel_size_angstrom
    from cryoformer_dist.machine import usable_cores
    from cryoformer_dist.orchestration.advice import advise_box, advise_epochs, training_device

    device = training_device()
    box = advise_box(min(group.box_size for group in table.optics), device)
    return OwnRun(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", particles.stem).strip("-._") or "particles",
        source=particles.resolve(),
        particles=len(table),
        source_box=min(group.box_size for group in table.optics),
        box=box,
        pixel_size_angstrom=stored_pixel_size_angstrom(table, box)[0],
        epochs=advise_epochs(len(table), device),
        gpus=torch.cuda.device_count() if device == "cuda" else 0,
        cores=usable_cores(),
    )


def _stated_options(stated: "StatedValues") -> dict[str, object]:
    """The options that say again what was stated."""
    from cryoformer_dist.io.stated import OPTIONS

    numbers: dict[str, object] = {OPTIONS[name][0]: f"{value:g}" for name, value in stated.numbers().items()}
    return numbers | {"--class": stated.class_number, "--centred": stated.centred or None}


def _convert_command(
    particles: Path, folder: Path, box: int, passthrough: list[Path], given: Mapping[str, object]
) -> str:
    words = ["cryoformer-dist", "convert", str(particles), "-o", str(folder / STORE), "--box", str(box)]
    for path in passthrough:
        words += ["--passthrough", str(path)]
    for option, value in given.items():
        words += [] if value is None else [option] if value is True else [option, str(value)]
    return shlex.join(words)
