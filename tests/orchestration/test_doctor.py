from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cryoformer_dist.cli import main as cli
from cryoformer_dist.orchestration import doctor
from cryoformer_dist.orchestration.devices import Finding

BACKENDS = (
    "hash grid: torch",
    "hash grid: triton",
    "hash grid: tinycudann",
    "engine: torch",
    "engine: deepspeed",
    "cluster: ray",
)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, and without importing anything."""
    monkeypatch.setattr(doctor, "_try_import", lambda module: f"ImportError: no {module}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("nothing_loads")
def test_every_backend_is_listed_and_each_that_does_not_load_says_why() -> None:
    found = {finding.name: finding for finding in doctor.examine_backends()}
    assert tuple(found) == BACKENDS
    states = [finding.state for finding in found.values()]
    assert states == ["ok", "absent", "absent", "ok", "broken", "broken"]
    assert "no triton" in found["hash grid: triton"].detail
    assert "pip install" in found["engine: deepspeed"].detail
    for part in (
        "no tinycudann",
        "needs a GPU",
        '"setuptools<82"',
        "TCNN_CUDA_ARCHITECTURES=90",
        "--no-build-isolation",
    ):
        assert part in found["hash grid: tinycudann"].detail


def test_the_reason_is_the_last_line_of_a_failed_import() -> None:
    assert doctor._try_import("json") is None
    assert doctor._try_import("no_such_package") == "ModuleNotFoundError: No module named 'no_such_package'"


def test_storage_is_written_read_back_and_left_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_STORAGE_BYTES", 2**20)
    assert doctor.examine_storage(tmp_path / "not" / "there").state == "ok"
    assert list(tmp_path.iterdir()) == []

    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    finding = doctor.examine_storage(tmp_path)
    assert finding.state == "broken"
    assert "read-only" in finding.detail
    assert "--storage" in finding.detail


def test_a_benchmark_that_fails_is_told_and_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*arguments: object) -> None:
        raise RuntimeError("out of memory\nlong story")

    monkeypatch.setattr(doctor.StepBenchmark, "of", of)
    found = list(doctor.benchmark_training(1.0))
    assert [finding.state for finding in found] == ["broken"] * len(found)
    assert found[0].detail.endswith("out of memory")


def _findings(*states: str) -> Iterator[Finding]:
    return iter([Finding(f"thing {number}", state, "reason [with brackets]") for number, state in enumerate(states)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("states", "code"), [(("ok", "absent"), 0), (("ok", "broken"), 1)])
def test_the_command_prints_every_finding_and_fails_only_for_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, states: tuple[str, ...], code: int
) -> None:
    monkeypatch.setattr(doctor, "examine_backends", lambda: _findings(*states))
    monkeypatch.setattr(doctor, "_STORAGE_BYTES", 2**10)
    result = CliRunner().invoke(cli.app, ["doctor", "--seconds", "0", "--storage", str(tmp_path)])
    assert result.exit_code == code, result.output
    for part in ("CPU", "torch", "zarr", str(tmp_path)[:20], "thing 0", "thing 1", "[with brackets]", "next: "):
        assert part in result.output
    assert ("fix first: thing 1" in result.output) == bool(code)
