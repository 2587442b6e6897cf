"""From a trained run to maps of chosen states, its landscape and a path through it, as typed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.cli import main as cli
from cryoformer_dist.exploration.path import read_path
from cryoformer_dist.runs.results import read_latent_table


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Type a command; what it says, or what it is refused for."""

    def type_in(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["cryoformer-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == (2 if said.err.startswith("error: ") else 0), said.err
        return said.err if end.value.code else said.out

    return type_in


def test_a_path_leads_from_the_landscape_to_maps(finished_run: Path, tmp_path: Path, command) -> None:
    said = command("analyze", finished_run, "--gaussians", 2)
    assert "Gaussians: 0: " in said
    assert json.loads((finished_run / "analysis" / "analysis.json").read_text())["particles"] == 64
    said = command("path", finished_run, "cluster:0", "17", "--points", 3, "-o", tmp_path / "p.json")
    path = read_path(tmp_path / "p.json")
    assert f"particles {' '.join(map(str, path.particles))}" in said
    said = command("volumes", finished_run, "--path", tmp_path / "p.json", "-o", tmp_path / "maps")
    assert f"next: chimerax {tmp_path / 'maps' / 'path.cxc'}" in said
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == [
        "path.cxc", "path_000.mrc", "path_001.mrc", "path_002.mrc",
    ]  # fmt: skip


def test_groups_of_the_mixture_may_be_selected_and_decoded(finished_run: Path, tmp_path: Path, command) -> None:
    command("analyze", finished_run, "--gaussians", 1)
    chosen = finished_run / "selections" / "all.json"
    command("select", finished_run, "--where", "mixture == 0", "--name", "all")
    said = command("volumes", finished_run, "--selection", chosen, "--form", "centre", "-o", tmp_path)
    assert "selection_000.mrc" in said
    latents = read_latent_table(finished_run)["latent"]
    assert len(json.loads(chosen.read_text())["source_row"]) == len(latents)


def test_nothing_is_written_for_what_is_refused(finished_run: Path, tmp_path: Path, command) -> None:
    np.savetxt(tmp_path / "z.txt", np.zeros((2, 5)))
    assert "latents of 5 numbers" in command(
        "volumes", finished_run, "--latent", tmp_path / "z.txt", "-o", tmp_path / "m"
    )
    assert "no cluster 9" in command("path", finished_run, "cluster:9", "17", "-o", tmp_path / "p.json")
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "p.json").exists()


def test_motion_is_told_of_any_maps_and_a_series_is_filmed(finished_run: Path, tmp_path: Path, command) -> None:
    first, last = (finished_run / "volumes" / f"pc1_{number:03d}.mrc" for number in range(2))
    assert "part" in command("motion", first, last)
    assert "two maps or more" in command("motion", first)
    said = command("movie", finished_run, "pc1", "-o", tmp_path / "pc1.gif", "--height", 120)
    assert f"written   {tmp_path / 'pc1.gif'}" in said
    assert "there are kmeans, pc1" in command("movie", finished_run, "pc7", "-o", tmp_path / "b.gif")
