import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from support.command_line import run_main
from support.foreign_projects import lay_out_cryodrgn, lay_out_cryosparc, lay_out_relion
from support.tiny_runs import tiny_config, train

from cryoformer_dist.analysis.results import reconstruct_alone
from cryoformer_dist.cli.main import app
from cryoformer_dist.config.keys import describe_files
from cryoformer_dist.runs.results import read_latent_table
from cryoformer_dist.storage.working_folder import WorkingFolder

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
    pages = ("tutorial", "from_relion", "from_cryosparc", "from_cryodrgn", "half_sets", "troubleshooting", "theory")
    for name in pages:
        text = (ROOT / "docs" / f"{name}.md").read_text()
        named = re.findall(r"\b((?:training|model|dataset|results)\.[a-z_.]+[a-z_])\b", text)
        assert [key for key in named if key not in keys | sections and not key.endswith((".json", ".zarr"))] == []
        assert re.findall(r"--set ([a-z_]+)=", text) in ([], ["particles"])


def test_formulas_become_mathml_inside_a_line_and_by_themselves() -> None:
    pytest.importorskip("latex2mathml", reason="no latex2mathml here, which the site is built with")
    convert = runpy.run_path(str(ROOT / "docs" / "mathml.py"))["on_page_content"]
    inline, block = (
        r'<span class="arithmatex">\(a &lt; \hat b\)</span>',
        '<div class="arithmatex">\n\\[\n\\frac{1}{n}\n\\]</div>',
    )
    found = convert(f"<p>of {inline}, as</p>{block}", page=None)
    assert found.startswith("<p>of <math")
    assert found.count("<math") == 2
    assert 'display="block"' in found
    assert "arithmatex" not in found
    assert "\\" not in found


def test_every_page_is_in_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert set(re.findall(r"[a-z_]+\.md", str(site["nav"]))) == {
        page.name for page in PAGES if page.name != "README.md"
    }


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site" / "tutorial.html").read_text()
    assert not re.search(r"""(?:src|<link[^>]+href)=["']?https?:""", page)
    theory, python = ((tmp_path / "site" / f"{name}.html").read_text() for name in ("theory", "api"))
    assert theory.count("<math") > 40
    assert "arithmatex" not in theory
    assert "Read a run&#39;s newest whole checkpoint" in python or "Read a run's newest whole checkpoint" in python


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    for command in told_commands(TUTORIAL):
        run_in(tmp_path, command)
    assert (tmp_path / "project" / "group_0.star").is_file()
    for run in ("particles", "group_0"):
        assert (tmp_path / "project" / "runs" / run / "report.html").is_file()


def run_in(folder: Path, command: str) -> str:
    """Run a command of a page in a shell, as it stands, by this checkout's program; what it says."""
    program = folder / "bin" / "cryoformer-dist"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cryoformer_dist.cli "$@"\n')
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


# What these images need: their own box and contrast, one epoch, a folder that is there.
SMALLER = (
    ("--box 128", "--box 32"),
    ("/data/P1", "P1"),
    ("/data/project", "."),
    ("--contrast light", "--contrast dark"),
)
OTHER_PROGRAMS = {
    "from_relion": (lay_out_relion, "good.star"),
    "from_cryosparc": (lay_out_cryosparc, "subset.csg"),
    "from_cryodrgn": (lay_out_cryodrgn, "for_cryodrgn/z.pkl"),
}


def shorten(command: str) -> str:
    """The command for 1,296 images of 32 pixels, trained for one epoch."""
    for told, here in SMALLER:
        command = command.replace(told, here)
    trains = re.match(r"cryoformer-dist (train|launch) ", command) and "training.epochs" not in command
    return f"{command} --set training.epochs=1" if trains else command


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHER_PROGRAMS)
def test_the_way_from_another_program_runs_on_its_files(page: str, shared_data: Path, tmp_path: Path) -> None:
    lay_out, last = OTHER_PROGRAMS[page]
    lay_out(tmp_path, shared_data / "particles" / "tomodrgn_2class")
    for command in told_commands(ROOT / "docs" / f"{page}.md"):
        run_in(tmp_path, shorten(command))
    assert (tmp_path / last).is_file()


@pytest.fixture
def refinement(shared_data: Path, tmp_path: Path) -> Path:
    """A folder with the files of a refinement, the project that `init` makes of them, and its store."""
    lay_out_relion(tmp_path, shared_data / "particles" / "tomodrgn_2class")
    for command in [*told_commands(ROOT / "docs" / "from_relion.md")][:2]:
        run_in(tmp_path, shorten(command))
    return tmp_path


@pytest.mark.slow
def test_half_sets_are_run_on_the_files_of_a_refinement(refinement: Path) -> None:
    for command in [*told_commands(ROOT / "docs" / "half_sets.md")][:3]:
        run_in(refinement, shorten(command))
    assert (refinement / "my-project" / "runs" / "half1" / "halves" / "half_maps.json").is_file()


@pytest.mark.slow
def test_half_sets_are_compared_with_a_run_of_all_particles(refinement: Path) -> None:
    run_in(refinement, shorten("cryoformer-dist launch my-project/cluster.yaml"))
    for command in [*told_commands(ROOT / "docs" / "half_sets.md")][3:]:
        run_in(refinement, shorten(command))
    assert (refinement / "group_3.star").is_file()
    assert (refinement / "my-project" / "runs" / "given_poses" / "report.html").is_file()


@pytest.mark.slow
def test_troubles_are_run_on_the_files_of_a_refinement(refinement: Path) -> None:
    # The page's short names for what is there.
    run_file = (refinement / "my-project" / "run.yaml").read_text()
    (refinement / "run.yaml").write_text(run_file.replace("name: run_data", "name: particles"))
    for command in told_commands(ROOT / "docs" / "troubleshooting.md"):
        run_in(refinement, shorten(command).replace("training.epochs=30", "training.epochs=2"))
    assert (refinement / "runs" / "focused" / "report.html").is_file()


@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.CryoFormerWarning")
def test_what_the_page_of_results_tells_is_run_on_a_finished_run(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process; what needs an optional package that is not there is done without it."""
    run = tmp_path / "runs" / "demo"
    train(tiny_config(tiny_store, SEARCHED), run)
    reconstruct_alone(WorkingFolder.on_disk(run))
    np.savetxt(tmp_path / "z.txt", read_latent_table(run)["latent"][:2])
    monkeypatch.chdir(tmp_path)
    for command in told_commands(ROOT / "docs" / "exploring.md"):
        arguments = [word for told in shlex.split(fit_to_tiny(command))[1:] for word in sorted(glob(told)) or [told]]
        assert run_main(monkeypatch, *arguments) == 0, command
    assert Path("filtered/particle_000.mrc").is_file()
    assert Path("groups.gif").is_file()


# So that all columns are there.
SEARCHED = {"model.latent.refinement": "search", "model.latent.start": "linear", "training.epochs": 1}


def fit_to_tiny(command: str) -> str:
    """A command for a run of two clusters, as far as optional packages are installed."""
    command = command.replace("cluster:3", "cluster:1").replace("--particle 230", "--particle 23")
    command = command.replace("confidence > .3", "confidence >= 0")
    command = command.replace(" --height 1080", "").replace(" movie ", " movie --height 120 ")
    if find_spec("umap") is None:
        command = command.replace(" --umap", "").replace(" and umap1 > 0", "")
    return command if find_spec("imageio_ffmpeg") else command.replace(".mp4", ".gif")


def test_the_python_page_runs_as_it_stands(
    finished_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "runs" / "demo")
    (tmp_path / "runs" / "demo" / "particles.zarr").symlink_to(tiny_store)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/api.md", "exec"), {})
    assert Path("middle.mrc").is_file()


def test_all_that_the_python_page_names_exists_and_says_what_it_does() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    told = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.MULTILINE)
    assert len(told) > 10
    for name, members in told:
        module, _, last = name.rpartition(".")
        found = getattr(import_module(module), last)
        for each in (found, *(getattr(found, member) for member in members.split(", ") if member)):
            assert each.__doc__, name
