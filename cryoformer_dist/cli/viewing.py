"""A trained run, in a browser."""

from typing import Annotated

import typer

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.options import RunDirectory

app = typer.Typer()


@app.command(epilog="Example: `cryoformer-dist view runs/demo`")
def view(
    home: RunDirectory,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the address; 8765 or the next free one when left out.")
    ] = None,
) -> None:
    """Show a run in a browser: latent map, lasso, maps of particles and paths, images; also while it trains."""
    import asyncio
    from contextlib import suppress
    from platform import node

    from cryoformer_dist.runs.directory import open_run_directory
    from cryoformer_dist.viewer.desk import Desk
    from cryoformer_dist.viewer.guard import new_token
    from cryoformer_dist.viewer.server import LOOPBACK, find_port, make_app, serve
    from cryoformer_dist.viewer.snapshot import take_snapshot

    with open_run_directory(home) as working:
        with terminal.staged_progress() as progress:
            snapshot = take_snapshot(working, progress)
        token, at = new_token(), find_port(port)

        def tell() -> None:
            terminal.say(f"particles  {len(snapshot.columns)} at step {snapshot.step}")
            terminal.say(f"open       http://{LOOPBACK}:{at}/{token}/")
            terminal.say(
                f"elsewhere  the same address, once `ssh -N -L {at}:{LOOPBACK}:{at} {node()}` runs on that machine"
            )
            terminal.say("Ctrl-C ends the viewer.")

        app = make_app(Desk(working, snapshot, take_snapshot), token)
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(app, at, tell))
