"""Commands that bring runs to clusters and ask after them."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import Detach, LaunchName, Name, Overrides, Resume
from cryoformer_dist.cli.sweeps import make_sweep
from cryoformer_dist.errors import ClusterError, ConfigError, RunStopped
from cryoformer_dist.orchestration.stopping import EXIT_CODE

if TYPE_CHECKING:
    from cryoformer_dist.orchestration.launch_record import Launch
    from cryoformer_dist.orchestration.providers.provider import Provider
    from cryoformer_dist.orchestration.request import RunRequest

app = typer.Typer()


@app.command(epilog="Example: `cryoformer-dist launch cluster/local.yaml`")
def launch(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.")],
    run_file: Annotated[
        Path | None, typer.Option("--run", help="Run file; the one the cluster file names when left out.")
    ] = None,
    name: Name = None,
    resume: Resume = False,
    detach: Detach = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written and run; start nothing.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train where a cluster file says, and follow it to its report."""
    from cryoformer_dist.orchestration.launch import choose_provider
    from cryoformer_dist.orchestration.request import ClusterSweep, read_request

    request = read_request(cluster, run_file, name, resume, overrides or [])
    if isinstance(request, ClusterSweep):
        if name or detach or overrides:
            told = f"a sweep says all in {request.file}"
            raise ConfigError(f"{cluster}: --name, --detach and --set are for runs; {told}")
        make_sweep(request.file, [], request.cluster, resume, retry_failed=False, dry_run=dry_run)
    elif dry_run:
        terminal.say(choose_provider(request.cluster).preview(request))
    else:
        _carry_out(request, detach)


@app.command("resume", epilog="Example: `cryoformer-dist resume demo`")
def resume_launch(name: LaunchName, detach: Detach = False) -> None:
    """Launch a run again as it was launched, to go on from its last checkpoint."""
    from cryoformer_dist.orchestration.launch import make_resume_request
    from cryoformer_dist.orchestration.launch_record import read_launch

    _carry_out(make_resume_request(read_launch(name)), detach)


@app.command(epilog="Example: `cryoformer-dist status demo`")
def status(
    name: Annotated[
        str | None, typer.Argument(help="Name of a run; all that were launched from here when left out.")
    ] = None,
) -> None:
    """How launched runs are doing."""
    from cryoformer_dist.orchestration.launch_record import read_launch, read_launches

    for launched in [read_launch(name)] if name else read_launches():
        terminal.say(f"{launched.name}  {_describe_state(launched)}  launched {launched.started}  {launched.home}")


@app.command(epilog="Example: `cryoformer-dist logs demo`")
def logs(name: LaunchName) -> None:
    """Follow what a launched run prints, from the start to its end."""
    from cryoformer_dist.orchestration.launch import find_provider
    from cryoformer_dist.orchestration.launch_record import read_launch

    launched = read_launch(name)
    _follow(launched, find_provider(launched))


@app.command(epilog="Example: `cryoformer-dist stop demo`")
def stop(name: LaunchName) -> None:
    """End a launched run after the step under way, with a checkpoint that `reconstruct` makes maps of."""
    from cryoformer_dist.orchestration import launch
    from cryoformer_dist.orchestration.launch_record import read_launch

    launched = read_launch(name)
    if launch.stop(launched):
        terminal.say(f"stopped        {name}")
        terminal.say(f"next: cryoformer-dist resume {name}, or cryoformer-dist reconstruct {launched.home}")
    else:
        terminal.say(f"ending         {name}, which takes longer than a minute\nnext: cryoformer-dist status {name}")


@app.command(hidden=True)
def drive(
    cluster: Annotated[Path, typer.Argument(help="Cluster file, as sent.")],
    run_file: Annotated[Path, typer.Argument(help="Run file, as sent.")],
    name: Annotated[str, typer.Option(help="Name of the run directory.")],
    resume: Resume = False,
) -> None:
    """On the cluster: the whole way, from particles to report."""
    from cryoformer_dist.machine import set_threads, usable_cores
    from cryoformer_dist.orchestration.pipeline import run_pipeline
    from cryoformer_dist.orchestration.request import RunRequest, read_request

    # Ray starts what it runs with one thread; the maps and pictures of the results would take long.
    set_threads(usable_cores())
    request = read_request(cluster, run_file, name, resume, [])
    assert isinstance(request, RunRequest)
    with ending_in_order():
        run_pipeline(request, terminal.make_display())


def _carry_out(request: "RunRequest", detach: bool) -> None:
    """Make a run in this process where it can drive it, else send it to its cluster."""
    from cryoformer_dist.orchestration.launch import choose_provider, record_launch, submit
    from cryoformer_dist.orchestration.pipeline import run_pipeline
    from cryoformer_dist.orchestration.request import drives_here

    if drives_here(request.cluster) and not detach:
        with record_launch(request), ending_in_order():
            run_pipeline(request, terminal.make_display())
        return
    provider = choose_provider(request.cluster)
    launched = submit(request, provider)
    terminal.say(f"launched       {launched.name} on {request.cluster.provider}")
    terminal.say(f"run directory  {launched.home}")
    if detach:
        terminal.say(f"next: cryoformer-dist logs {launched.name}")
    else:
        _follow(launched, provider)


def _follow(launched: "Launch", provider: "Provider") -> None:
    """Print a launch's log to its end, and end as it did."""
    try:
        terminal.follow(provider.follow(launched.handle))
    except KeyboardInterrupt:
        terminal.say(f"\n{launched.name} goes on. `cryoformer-dist logs {launched.name}` follows it, `stop` ends it.")
        raise typer.Exit(130) from None
    state = provider.ask_state(launched.handle)
    if state.word == "stopped":
        terminal.say(f"{launched.name} was stopped; `cryoformer-dist resume {launched.name}` goes on")
        raise typer.Exit(state.exit_code or EXIT_CODE)
    if state.word != "succeeded":
        terminal.fail(
            f"{launched.name} {state.word}; `cryoformer-dist resume {launched.name}` goes on from its last checkpoint"
        )
        raise typer.Exit(state.exit_code or 1)


def _describe_state(launched: "Launch") -> str:
    from cryoformer_dist.orchestration.launch import find_provider

    try:
        state = find_provider(launched).ask_state(launched.handle)
    except ClusterError as error:
        return f"unknown ({error})"
    if state.word == "running" and (waiting := _read_waiting(launched)):
        return f"running, but {waiting}"
    return state.word if state.exit_code is None else f"{state.word} (exit code {state.exit_code})"


def _read_waiting(launched: "Launch") -> str:
    """What a run waits for, where its run directory is seen from here."""
    from cryoformer_dist.runs.waiting import read_waiting
    from cryoformer_dist.storage.places import client_errors, place_at

    with contextlib.suppress(OSError, *client_errors()):
        return read_waiting(place_at(launched.home))
    return ""


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let Ctrl-C and `stop`'s signal unwind the stack, so that Ray and its workers end with the driver."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise RunStopped("stopped at once; --resume goes on from the last checkpoint, if there is one") from None
    finally:
        signal.signal(signal.SIGTERM, before)
