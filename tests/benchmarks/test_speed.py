"""The speed benchmark runs, and on a machine that has torch, triton and numpy only."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("speed.py")
ALLOWED = ("torch", "triton", "numpy")


def needed(names: tuple[str, ...]) -> set[str]:
    """Installed distributions that the named ones bring with them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            waiting += [re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text]
    return found


@pytest.fixture
def bare_site(tmp_path: Path) -> Path:
    """A folder of packages with nothing but the allowed ones and theirs."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in needed(ALLOWED):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(distribution(name).locate_file(top))
    return folder


def test_it_runs_with_torch_triton_and_numpy_alone(bare_site: Path, tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    command = [sys.executable, "-S", SCRIPT, "--quick", "--device", "cpu", "--output", output]
    # Two workers are two more starts of Python.
    command += [word for part in ("kernels", "steps", "data") for word in ("--only", part)]
    environment = {**os.environ, "PYTHONPATH": str(bare_site), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["circumstances"]["stand_ins"] == ["jaxtyping", "pydantic", "zarr"]
    peaks, kernels, steps, data = result["tables"]
    assert peaks["rows"][0]["copy GB/s"] > 0
    assert {row["kernel"] for row in kernels["rows"]} == {"encode", "fold-attend 16/32", "fold-attend 64/64", "splat"}
    assert all(float(row["error"]) < 1e-5 for row in kernels["rows"])
    assert {row["where"] for row in steps["rows"]} == {"10 %", "rays"}
    assert all(row["images/s"] > 0 for row in steps["rows"])
    assert data["notes"] == ["Skipped: zarr is not installed."]
    assert "| ours, small |" in done.stdout
