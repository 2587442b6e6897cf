"""Commands that bring runs to clusters and ask after them."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.errors import ClusterError, ConfigError, CryoFormerError

if TYPE_CHECKING:
    from cryoformer_dist.orchestration.launch_registry import Launch
    from cryoformer_dist.orchestration.launch_spec import JobState, LaunchSpec, Provider

app = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the run file: dotted.key=value. May be repeated."),
]
Name = Annotated[str | None, typer.Option(help="Name of the run directory; the run file's name when left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return at once; `logs` follows, `status` asks, `stop` ends it.")
]
LaunchName = Annotated[str, typer.Argument(help="Name of the run, as launched.")]

# What a shell reports of a program ended by SIGTERM.
_TERMINATED = 128 + signal.SIGTERM


@app.command(epilog="Example: `cryoformer-dist launch cluster/local.yaml`")
def launch(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.")],
    run: Annotated[Path | None, typer.Option(help="Run file; the one the cluster file names when left out.")] = None,
    name: Name = None,
    resume: Resume = False,
    detach: Detach = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written and run; start nothing.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train where a cluster file says, and follow it to its report."""
    from cryoformer_dist.orchestration.dispatch import provider_of, read_launch_spec, sweep_of

    if run is None and (sweep := sweep_of(cluster)) is not None:
        from cryoformer_dist.cli.sweeps import make_sweep

        if name or detach or overrides:
            raise ConfigError(f"{cluster}: --name, --detach and --set are for runs; a sweep says all in {sweep.file}")
        make_sweep(sweep.file, [], sweep.cluster, resume, retry_failed=False, dry_run=dry_run)
        return
    spec = read_launch_spec(cluster, run, name, resume, overrides or [])
    if dry_run:
        terminal.say(provider_of(spec.cluster).preview(spec))
        return
    _send(spec, detach)


@app.command("resume", epilog="Example: `cryoformer-dist resume demo`")
def resume_launch(name: LaunchName, detach: Detach = False) -> None:
    """Launch a run again as it was launched, to go on from its last checkpoint."""
    from cryoformer_dist.orchestration.dispatch import relaunch_spec
    from cryoformer_dist.orchestration.launch_registry import find_launch

    _send(relaunch_spec(find_launch(name)), detach)


@app.command(epilog="Example: `cryoformer-dist status demo`")
def status(
    name: Annotated[
        str | None, typer.Argument(help="Name of a run; all that were launched from here when left out.")
    ] = None,
) -> None:
    """How launched runs are doing."""
    from cryoformer_dist.orchestration.launch_registry import all_launches, find_launch

    for launched in [find_launch(name)] if name else all_launches():
        terminal.say(f"{launched.name}  {_state(launched)}  launched {launched.started}  {_run_directory(launched)}")


@app.command(epilog="Example: `cryoformer-dist logs demo`")
def logs(name: LaunchName) -> None:
    """Follow what a launched run prints, from the start to its end."""
    from cryoformer_dist.orchestration.launch_registry import find_launch

    _follow(find_launch(name))


@app.command(epilog="Example: `cryoformer-dist stop demo`")
def stop(name: LaunchName) -> None:
    """End a launched run; what it has learned up to its last checkpoint stays."""
    from cryoformer_dist.orchestration import dispatch
    from cryoformer_dist.orchestration.launch_registry import find_launch

    if dispatch.stop(find_launch(name)):
        terminal.say(f"stopped        {name}\nnext: cryoformer-dist resume {name}")
    else:
        terminal.say(f"ending         {name}, which takes longer than a minute\nnext: cryoformer-dist status {name}")


@app.command(hidden=True)
def drive(
    cluster: Annotated[Path, typer.Argument(help="Cluster file, as sent.")],
    run: Annotated[Path, typer.Argument(help="Run file, as sent.")],
    name: Annotated[str, typer.Option(help="Name of the run directory.")],
    resume: Resume = False,
) -> None:
    """On the cluster: the whole way, from particles to report."""
    from cryoformer_dist.orchestration.dispatch import read_launch_spec
    from cryoformer_dist.training.machine import set_threads, usable_cores

    # Ray starts what it runs with one thread; the first maps and poses of a large run would take hours.
    set_threads(usable_cores())
    with _ending_in_order():
        _run_pipeline(read_launch_spec(cluster, run, name, resume, []))


def _send(spec: "LaunchSpec", detach: bool) -> None:
    from cryoformer_dist.orchestration.dispatch import begin_here, drives_here, submit

    if drives_here(spec.cluster) and not detach:
        _drive_here(begin_here(spec), spec)
        return
    launched = submit(spec)
    terminal.say(f"launched       {spec.name} on {spec.cluster.provider}")
    terminal.say(f"run directory  {_run_directory(launched)}")
    if detach:
        terminal.say(f"next: cryoformer-dist logs {spec.name}")
        return
    _follow(launched)


def _drive_here(launched: "Launch", spec: "LaunchSpec") -> None:
    """Carry a launch out in this process, and write down how it ended."""
    from cryoformer_dist.orchestration.providers.process import keep_exit_code

    code = 1
    try:
        with _ending_in_order():
            _run_pipeline(spec)
        code = 0
    except CryoFormerError:
        code = 2
        raise
    except SystemExit as ended:
        code = int(ended.code or 0)
        raise
    finally:
        keep_exit_code(launched.handle, code)


def _run_pipeline(spec: "LaunchSpec") -> None:
    from cryoformer_dist.orchestration.pipeline import run_pipeline
    from cryoformer_dist.orchestration.request import Console, Request
    from cryoformer_dist.storage.places import place_at

    run = place_at(spec.cluster.storage) / spec.name
    terminal.say(f"run directory  {run}")
    console = Console(terminal.say, terminal.progress, terminal.staged_progress, terminal.record_line)
    report = run_pipeline(Request(spec.run, spec.cluster, run, spec.resume), console)
    terminal.say(f"report         {report}")


def _follow(launched: "Launch") -> None:
    """Print a launch's log to its end, and end as it did."""
    provider = _provider(launched)
    try:
        terminal.follow(provider.follow(launched.handle))
    except KeyboardInterrupt:
        terminal.say(f"\n{launched.name} goes on. `cryoformer-dist logs {launched.name}` follows it, `stop` ends it.")
        raise typer.Exit(130) from None
    state = provider.state(launched.handle)
    if state.word != "succeeded":
        terminal.fail(
            f"{launched.name} {state.word}; `cryoformer-dist resume {launched.name}` goes on from its last checkpoint"
        )
        raise typer.Exit(_code(state))


def _state(launched: "Launch") -> str:
    try:
        state = _provider(launched).state(launched.handle)
    except ClusterError as error:
        return f"unknown ({error})"
    return state.word if state.exit_code is None else f"{state.word} (exit code {state.exit_code})"


def _code(state: "JobState") -> int:
    return state.exit_code or 1


def _provider(launched: "Launch") -> "Provider":
    from cryoformer_dist.orchestration.dispatch import cluster_of, provider_of

    return provider_of(cluster_of(launched))


def _run_directory(launched: "Launch") -> str:
    return f"{launched.storage.rstrip('/')}/{launched.name}"


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let `stop`'s signal unwind the stack, so that Ray and its workers end with the driver."""

    def end(*_: object) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
