import shlex
from pathlib import Path

import pytest
from support.command_line import refused, run_main

from cryoformer_dist.cli import project
from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file


def test_init_writes_files_says_what_to_do_next_and_writes_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    assert run_main(monkeypatch, "init", project) == 0
    said = capsys.readouterr().out
    assert f"wrote {project / 'cluster' / 'local.yaml'}" in said
    assert said.splitlines()[-1] == f"next: cryoformer-dist launch {project / 'cluster' / 'local.yaml'}"
    before = {path: path.read_bytes() for path in project.rglob("*.yaml")}
    (project / "configs" / "demo.yaml").write_text("mine")
    assert "not overwritten" in refused(monkeypatch, capsys, "init", project)
    assert {path: path.read_bytes() for path in project.rglob("*.yaml")} == before | {
        project / "configs" / "demo.yaml": b"mine"
    }


def test_init_writes_two_files_for_my_particles_and_the_commands_it_leads_to_run_as_they_stand(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (star,) = tiny_store.parent.rglob("particles.star")
    own = tmp_path / "my project"
    assert run_main(monkeypatch, "init", own, "--particles", star) == 0
    said = capsys.readouterr().out.splitlines()
    assert "64 particles of 16 px, converted to 16 px" in said[2]
    cluster, run_file = read_cluster_file(own / "cluster.yaml")
    assert run_file == own / "run.yaml"
    run = read_run_file(run_file, [])
    assert Path(run.dataset.store) == own / "particles.zarr"
    assert Path(cluster.storage) == own / "runs"
    assert (run.name, run.training.epochs, run.training.global_batch_size) == ("particles", 20, "auto")
    assert said[-1] == f"next: cryoformer-dist convert {star} -o '{own / 'particles.zarr'}' --box 16"
    convert = shlex.split(said[-1])[2:]
    assert run_main(monkeypatch, *convert, "--local", "--contrast", "light", "--benchmark", 0) == 0
    check = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert check[:3] == ["next:", "cryoformer-dist", "check"]
    assert run_main(monkeypatch, *check[2:], "--benchmark", 0) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"cryoformer-dist launch '{own / 'cluster.yaml'}'")
    assert "not overwritten" in refused(monkeypatch, capsys, "init", own, "--particles", star)


def test_init_asks_for_particles_where_somebody_can_answer(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (star,) = tiny_store.parent.rglob("particles.star")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter([str(star), ""])
    monkeypatch.setattr(project.typer, "prompt", lambda *question, **named: next(answers))
    assert run_main(monkeypatch, "init", tmp_path / "mine") == 0
    assert (tmp_path / "mine" / "run.yaml").is_file()
    assert run_main(monkeypatch, "init", tmp_path / "shipped") == 0
    assert (tmp_path / "shipped" / "cluster" / "local.yaml").is_file()


def test_what_init_is_told_of_the_particles_is_told_to_convert() -> None:
    from cryoformer_dist.io.stated import StatedValues

    options = project._stated_options(StatedValues(voltage_kv=300, centred=True, class_number=0))
    given = {"--datadir": Path("my stacks"), "--poses": None} | options
    command = project._convert_command(Path("a.cs"), Path("p"), 64, [Path("b.cs")], given)
    assert command == (
        "cryoformer-dist convert a.cs -o p/particles.zarr --box 64 --passthrough b.cs --datadir 'my stacks' "
        "--voltage 300 --class 0 --centred"
    )


def test_particles_that_cannot_be_used_are_refused_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.star").write_text("data_\n\nloop_\n_rlnImageName\n1@a.mrcs\n")
    assert "mine.star" in refused(monkeypatch, capsys, "init", tmp_path / "new", "--particles", tmp_path / "mine.star")
    assert not (tmp_path / "new").exists()
