import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from cryoformer_dist.cli.main import app
from cryoformer_dist.config.keys import describe_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TUTORIAL = ROOT / "docs" / "tutorial.md"


def told_commands(page: Path) -> Iterator[str]:
    """Commands of the program in a page's console blocks, comments left out."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s*&&\s*|\s*;\s+", line):
                if command.strip().startswith("cryoformer-dist"):
                    yield command.strip()


def parse(command: str) -> dict[str, Any]:
    """What the command line makes of a command, without doing it; ends the program for what it does not know."""
    arguments = shlex.split(command, comments=True)[1:]
    group: Any = typer.main.get_command(app)
    context = group.make_context("cryoformer-dist", arguments, resilient_parsing=False)
    while hasattr(group, "commands"):
        name, group, arguments = group.resolve_command(context, [*context._protected_args, *context.args])
        context = group.make_context(name, arguments, parent=context)
    return dict(context.params)


COMMANDS = [(page, command) for page in PAGES for command in told_commands(page)]


def test_there_are_commands_on_the_pages_for_newcomers() -> None:
    counts = {page.name: sum(told is page for told, _ in COMMANDS) for page in PAGES}
    assert all(counts[name] for name in ("README.md", "index.md", "tutorial.md", "from_relion.md", "from_cryosparc.md"))
    assert all(counts[name] for name in ("from_cryodrgn.md", "half_sets.md", "troubleshooting.md", "evaluation.md"))


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_every_command_that_is_told_is_one_that_the_program_understands(page: Path, command: str) -> None:
    parse(command)


def test_a_command_that_the_program_does_not_understand_would_be_found() -> None:
    assert parse("cryoformer-dist convert a.star -o b.zarr --box 64  # a comment")["box"] == 64
    assert parse("cryoformer-dist config schema training")["section"] == "training"
    for wrong in ("convert a.star --bocks 64", "konvert a.star", "convert a.star -o b.zarr --box many"):
        with pytest.raises(Exception, match=r"(?i)no such|valid integer|missing"):
            parse(f"cryoformer-dist {wrong}")


def test_every_key_that_is_set_or_named_on_the_new_pages_exists() -> None:
    keys = {key.name for section in describe_files() for key in section.keys}
    sections = {section.name.removeprefix("run.") for section in describe_files()}
    for name in ("tutorial", "from_relion", "from_cryosparc", "from_cryodrgn", "half_sets", "troubleshooting"):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        page = (ROOT / "docs" / "api.md").read_text()
    named = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", page, re.MULTILINE)
    assert len(named) > 10
    for name, members in named:
        module, _, last = name.rpartition(".")
        found = getattr(import_module(module), last)
        for each in (found, *(getattr(found, member) for member in members.split(", ") if member)):
            assert each.__doc__, name
