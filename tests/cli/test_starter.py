from pathlib import Path

import pytest

from cryoformer_dist.cli import starter
from cryoformer_dist.cli.starter import find_starter_folder, write_starter_files
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file

ROOT = Path(__file__).resolve().parents[2]


def test_starter_files_are_the_repository_s_own_byte_for_byte(tmp_path: Path) -> None:
    written = write_starter_files(tmp_path / "new" / "project")
    shipped = {path for name in ("cluster", "configs") for path in (ROOT / name).rglob("*.*")}
    # An image is built from a checkout.
    shipped -= set((ROOT / "cluster" / "image").rglob("*.*"))
    relative = {path.relative_to(tmp_path / "new" / "project") for path in written}
    assert relative == {path.relative_to(ROOT) for path in shipped}
    for path in written:
        assert path.read_bytes() == (ROOT / path.relative_to(tmp_path / "new" / "project")).read_bytes()


def test_the_local_cluster_file_finds_its_run_file_where_they_were_written(tmp_path: Path) -> None:
    write_starter_files(tmp_path)
    cluster, run = read_cluster_file(tmp_path / "cluster" / "local.yaml")
    assert run == tmp_path / "configs" / "demo.yaml"
    assert Path(cluster.storage) == tmp_path / "runs"
    store = Path(read_run_file(run, []).dataset.store)
    assert store.is_relative_to(tmp_path)


def test_a_file_that_is_there_is_kept_and_then_none_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "configs" / "demo.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"not overwritten: .*configs/demo\.yaml; choose another folder"):
        write_starter_files(tmp_path)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "cluster").exists()


def test_an_installed_package_brings_the_files_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site" / "cryoformer_dist"
    (installed / "starter_files" / "configs").mkdir(parents=True)
    (installed / "cli").mkdir()
    monkeypatch.setattr(starter, "__file__", str(installed / "cli" / "starter.py"))
    assert find_starter_folder("configs") == installed / "starter_files" / "configs"
    assert find_starter_folder("cluster") == tmp_path / "site" / "cluster"
