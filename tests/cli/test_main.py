import errno
import os
import re
import warnings
from pathlib import Path

import mrcfile
import pytest
import yaml
from support.command_line import refused, run_main
from support.tiny_runs import tiny_settings
from typer.testing import CliRunner

from cryoformer_dist import errors
from cryoformer_dist.cli import explorations, launches, maps, selections
from cryoformer_dist.cli import main as cli

COMMANDS = (
    "init",
    "doctor",
    "simulate",
    "convert",
    "check",
    "train",
    "launch",
    "resume",
    "status",
    "logs",
    "stop",
    "reconstruct",
    "evaluate",
    "fsc",
    "local-resolution",
    "mask",
    "halves",
    "report",
    "select",
    "volumes",
    "analyze",
    "path",
    "motion",
    "movie",
)
ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.CryoFormerError) and value is not errors.RunStopped
]


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_the_commands_are_those_documented() -> None:
    text = _help()
    visible = [
        info
        for app in (cli.app, launches.app, selections.app, maps.app, explorations.app)
        for info in app.registered_commands
        if not info.hidden
    ]
    assert {info.name or info.callback.__name__ for info in visible} == set(COMMANDS)
    for command in (*COMMANDS, "config"):
        assert command in text


@pytest.mark.parametrize("command", [*COMMANDS, "config schema"])
def test_every_command_explains_itself_with_an_example_and_every_option(command: str) -> None:
    text = _help(*command.split())
    assert f"cryoformer-dist {command} " in text.split("Example:")[1]
    for option in re.findall(r"^[│ ]+(?:\* +)?(--[a-z-]+)(.*)$", text, re.MULTILINE):
        assert re.search(r"[a-z]{2,}\S*[.?]", option[1]), f"{option[0]} has no help"


def test_without_arguments_there_is_help() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert "Usage" in result.output


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_what_a_user_can_mend_is_one_message_and_exit_code_2(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error("file.star: row 3 [column _rlnX]: is wrong; fix it")

    monkeypatch.setattr(cli, "app", fail)
    message = refused(monkeypatch, capsys)
    assert message == "error: file.star: row 3 [column _rlnX]: is wrong; fix it\n"


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_our_warnings_are_one_line_and_others_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk() -> None:
        warnings.warn("pixel size differs; the table wins", errors.PixelSizeConflictWarning, stacklevel=1)
        raise SystemExit(0)

    monkeypatch.setattr(cli, "app", talk)
    assert run_main(monkeypatch) == 0
    assert capsys.readouterr().err == "warning: pixel size differs; the table wins\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "absent.yaml", "-o", "out"), "absent.yaml: no such file"),
        (("simulate", "-o", "out", "--set", "snr"), "write dotted.key=value"),
        (("simulate", "-o", "out", "--set", "box_size=15"), "boxes are even"),
        (("convert", "absent.star", "-o", "s.zarr"), "absent.star"),
        (("check", "absent.zarr"), "absent.zarr: no such particle store"),
        (("train", "absent.yaml"), "absent.yaml: no such file"),
        (("launch", "absent.yaml"), "absent.yaml: no such file"),
        (("reconstruct", "absent"), "absent: not a run directory"),
        (("evaluate", "absent"), "absent: not a run directory"),
        (("fsc", "absent.mrc", "other.mrc"), "absent.mrc"),
        (("mask", "absent.mrc", "-o", "mask.mrc"), "absent.mrc"),
        (("halves", "absent", "other"), "absent: not a run directory"),
        (("report", "absent"), "absent: not a run directory"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_command_refuses_what_is_not_there_in_one_message(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_the_user_s_to_mend_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "train", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_simulate_and_convert_go_hand_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("--set", "particles=24", "--set", "box_size=16")
    assert run_main(monkeypatch, "simulate", "-o", "set", *settings) == 0
    next_command = capsys.readouterr().out.splitlines()[-1]
    assert next_command == "next: cryoformer-dist convert set/particles.star -o set/particles.zarr"
    arguments = next_command.split()[2:]
    assert run_main(monkeypatch, *arguments, "--local", "--contrast", "light", "--benchmark", 0) == 0
    assert "box 16" in capsys.readouterr().out
    assert "already there" in refused(monkeypatch, capsys, "simulate", "-o", "set", *settings)


def test_what_is_wrong_with_a_stack_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "simulate", "-o", "set", "--set", "particles=24", "--set", "box_size=16") == 0
    with mrcfile.open("set/particles.mrcs", mode="r+") as stack:
        stack.voxel_size = 1.25
    arguments = ("convert", "set/particles.star", "-o", "set.zarr", "--local", "--contrast", "light", "--benchmark", 0)
    assert run_main(monkeypatch, *arguments) == 0
    assert capsys.readouterr().err.count("the header says 1.25 A") == 1


def test_a_simulation_file_s_paths_start_at_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "settings"
    folder.mkdir()
    source = {"kind": "models", "path": "models/states.npz"}
    (folder / "sim.yaml").write_text(yaml.safe_dump({"source": source}))
    monkeypatch.chdir(tmp_path)
    message = refused(monkeypatch, capsys, "simulate", "settings/sim.yaml", "-o", "out")
    assert str(folder / "models" / "states.npz") in message


def test_a_launch_without_a_run_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster.yaml").write_text("provider: local\n")
    message = refused(monkeypatch, capsys, "launch", tmp_path / "cluster.yaml")
    assert "names no run file; add `run: FILE` or give --run FILE" in message


def test_a_store_that_is_absent_and_not_to_be_simulated_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(tiny_settings(Path("absent.zarr"))))
    message = refused(monkeypatch, capsys, "train", run, "--local", "--storage", tmp_path / "runs")
    # Where the run file lies, not where the command was given.
    assert f"{tmp_path / 'absent.zarr'}: no such particle store" in message


def test_workers_that_cannot_be_are_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
    options = ("--storage", tmp_path, "--workers", 2, "--gpus", 0.6)
    message = refused(monkeypatch, capsys, "train", run_file, *options)
    assert "workers: gpus: 0.6: workers of a run cannot share a GPU" in message
    assert list(tmp_path.iterdir()) == []


def test_tune_lists_its_trials_without_starting_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path(__file__).resolve().parents[2] / "configs" / "sweeps" / "grid.yaml"
    assert run_main(monkeypatch, "tune", sweep, "--dry-run", "--set", f"storage={tmp_path}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "finest_resolution_16-levels_3-seed0"
    assert lines[-1] == f"18 trials for {tmp_path / 'grid'}"
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_sweep_file_is_one_red_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path(__file__).resolve().parents[2] / "configs" / "sweeps" / "grid.yaml"
    message = refused(monkeypatch, capsys, "tune", sweep, "--set", "parameters={training.epoch: {grid: [1]}}")
    assert "training.epoch: no such key" in message


def test_what_is_wrong_with_a_store_makes_check_fail_after_it_was_told(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryoformer_dist.analysis import check

    arguments = ("check", tiny_store, "-o", tmp_path / "check", "--benchmark", 0)
    assert run_main(monkeypatch, *arguments) == 0
    assert "then cryoformer-dist launch" in capsys.readouterr().out
    monkeypatch.setattr(check, "_judge", lambda areas, z_score: (["the shifts look flipped"], []))
    assert run_main(monkeypatch, *arguments) == 1
    said = capsys.readouterr().out
    assert "LOOK BEFORE TRAINING" in said
    assert said.splitlines()[-1] == f"next: look at {tmp_path / 'check' / 'check.png'} and mend what is named above"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_storage_that_refuses_is_one_message_and_leaves_no_half_of_a_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("cryoformer_dist.simulation.particle_set.write_star", refuse)
    small = [word for setting in ("particles=4", "box_size=16") for word in ("--set", setting)]
    message = refused(monkeypatch, capsys, "simulate", "-o", tmp_path / "set", *small)
    assert os.strerror(number) in message
    assert "particles.star" in message
    assert f"{tmp_path / 'set'}: cannot be written" in message
    assert [path.name for path in (tmp_path / "set").rglob("*") if path.is_file()] == []


def test_storage_that_refuses_outside_of_what_is_written_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "app", refuse)
    assert "No space left on device: see that there is room" in refused(monkeypatch, capsys)


def test_an_error_that_has_nothing_to_do_with_storage_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main()
