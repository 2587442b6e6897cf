"""Commands of sweeps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import Overrides, Resume
from cryoformer_dist.runs.layout import SWEEP_BEST

if TYPE_CHECKING:
    from cryoformer_dist.config.cluster import ClusterConfig

app = typer.Typer()


@app.command(epilog="Example: `cryoformer-dist tune configs/sweeps/ablation_table2.yaml`")
def tune(
    sweep: Annotated[Path, typer.Argument(help="Sweep file.")],
    resume: Resume = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: have failed trials go on, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the files and list the trials.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train one run file many times with other values, and rank what comes of it."""
    make_sweep(sweep, overrides or [], None, resume, retry_failed, dry_run)


def make_sweep(
    file: Path,
    overrides: list[str],
    cluster: "ClusterConfig | None",
    resume: bool,
    retry_failed: bool,
    dry_run: bool,
) -> None:
    """Make the sweep of a file, on this machine or on the cluster that named it."""
    from cryoformer_dist.orchestration.sweep import read_sweep_request

    request = read_sweep_request(file, overrides, cluster, resume=resume, retry_failed=retry_failed)
    if dry_run:
        for trial in request.trials:
            terminal.say(trial.name)
        terminal.say(f"{len(request.trials) or request.sweep.samples} trials for {request.folder}")
        return
    from cryoformer_dist.orchestration.sweep import carry_out_sweep

    terminal.say(f"sweep          {request.folder}")
    report = carry_out_sweep(request, terminal.make_display())
    terminal.say(f"report         {report}")
    best = request.folder / SWEEP_BEST
    if best.is_file():
        terminal.say(f"next: cryoformer-dist launch cluster/local.yaml --run {best}")
