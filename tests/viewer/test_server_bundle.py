"""The page's script in the wheel is what its sources make."""

import filecmp
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import cryoformer_dist.viewer

ROOM = Path(cryoformer_dist.viewer.__file__).parent
MADE = ("viewer.js", "viewer.css", "index.html", "LICENSES.txt")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's sources with what its lock file names."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here, which the page is built with")
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOM / "page", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    here = ROOM / "page" / "node_modules"
    if here.is_dir():
        (folder / "node_modules").symlink_to(here)
    elif subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, timeout=250
    ).returncode:
        pytest.skip("npm cannot bring what the page is built with: no network, or no registry")
    return folder


@pytest.mark.slow
def test_the_bundle_is_made_of_its_sources(sources: Path, tmp_path: Path) -> None:
    subprocess.run(["node", "build.mjs", str(tmp_path)], cwd=sources, check=True, timeout=100, env=dict(os.environ))
    assert filecmp.cmpfiles(tmp_path, ROOM / "static", MADE, shallow=False) == (list(MADE), [], [])


@pytest.mark.slow
def test_the_sources_have_no_error_of_types(sources: Path) -> None:
    found = subprocess.run(
        ["node", "node_modules/typescript/bin/tsc", "--noEmit"],
        cwd=sources,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.stdout == ""
    assert found.returncode == 0


def test_every_package_in_the_bundle_has_its_licence_beside_it() -> None:
    text = (ROOM / "static" / "LICENSES.txt").read_text()
    for name in ("@kitware/vtk.js", "regl-scatterplot", "regl", "gl-matrix", "pub-sub-es"):
        assert f"\n{name} " in text
