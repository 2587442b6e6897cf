"""Commands about the files that runs are made of."""

from typing import Annotated

import typer

from cryoformer_dist.cli import terminal

app = typer.Typer(help="What the files that runs are made of may say.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """What the files that runs are made of may say."""


@app.command(epilog="Example: `cryoformer-dist config schema training`")
def schema(
    section: Annotated[
        str | None,
        typer.Argument(help="Such as training, model.latent, simulation or cluster.slurm; all when left out."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them, as the page of the docs.")] = False,
) -> None:
    """List every key with its type, its default and what it does."""
    from cryoformer_dist.config.keys import find_sections, to_markdown

    if markdown:
        terminal.say(to_markdown().rstrip("\n"))
        return
    for found in find_sections(section):
        terminal.say(f"{found.name.removeprefix('run.')}: {found.meaning}")
        for key in found.keys:
            default = key.default if key.default == "required" else f"default {key.default}"
            terminal.say(f"  {key.name}    {key.type}; {default}")
            terminal.say(f"      {key.meaning}")
        terminal.say("")
