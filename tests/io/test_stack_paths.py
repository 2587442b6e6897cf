from pathlib import Path

import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.stack_paths import resolve_stacks


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def star(tmp_path: Path) -> Path:
    return touch(tmp_path / "project" / "Refine3D" / "job012" / "run_data.star")


def test_absolute_path_is_taken_as_written(tmp_path, star):
    stack = touch(tmp_path / "elsewhere" / "a.mrcs")
    assert resolve_stacks([str(stack)], star) == (stack,)


def test_path_from_the_working_folder_is_taken_as_written(tmp_path, star, monkeypatch):
    stack = touch(tmp_path / "here" / "sub" / "a.mrcs")
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_stacks(["sub/a.mrcs"], star)[0].resolve() == stack


def test_path_beside_the_metadata_file_is_found(star):
    touch(star.parent / "a.mrcs")
    assert resolve_stacks(["a.mrcs"], star) == (star.parent / "a.mrcs",)


@pytest.mark.parametrize("written", ["a.mrc:mrcs", "a.mrc:mrc", ">a.mrc:mrcs"])
def test_a_format_after_a_colon_is_no_part_of_the_path(star, written):
    stack = touch(star.parent / "a.mrc")
    assert resolve_stacks([written], star) == (stack,)


@pytest.mark.parametrize("written", ["Extract/job007/a.mrcs", ">Extract/job007/a.mrcs"])
def test_project_relative_path_is_found_by_walking_up(tmp_path, star, written):
    stack = touch(tmp_path / "project" / "Extract" / "job007" / "a.mrcs")
    assert resolve_stacks([written], star) == (stack,)


@pytest.mark.parametrize("written", ["J1/extract/a.mrcs", "/old/disk/J1/extract/a.mrcs", ">J1/extract/a.mrcs"])
def test_datadir_is_searched_by_bare_name(tmp_path, star, written):
    stack = touch(tmp_path / "moved" / "a.mrcs")
    assert resolve_stacks([written], star, tmp_path / "moved") == (stack,)


@pytest.mark.parametrize("written", ["J1/extract/a.mrcs", "/J1/extract/a.mrcs"])
def test_datadir_prefers_the_whole_path(tmp_path, star, written):
    touch(tmp_path / "moved" / "a.mrcs")
    stack = touch(tmp_path / "moved" / "J1" / "extract" / "a.mrcs")
    assert resolve_stacks([written], star, tmp_path / "moved") == (stack,)


def test_datadir_goes_before_the_path_as_written(tmp_path, star):
    old, new = touch(tmp_path / "old" / "a.mrcs"), touch(tmp_path / "scratch" / "a.mrcs")
    assert resolve_stacks([str(old)], star, new.parent) == (new,)


def test_stack_found_nowhere_keeps_its_path(star):
    assert resolve_stacks([">J1/a.mrcs", "b.mrcs"], star) == (Path("J1/a.mrcs"), Path("b.mrcs"))


def test_two_stacks_of_one_name_are_not_confused(tmp_path, star):
    touch(tmp_path / "moved" / "a.mrcs")
    with pytest.raises(ParticleFormatError, match=r"J1/a\.mrcs and J2/a\.mrcs both lead to"):
        resolve_stacks(["J1/a.mrcs", "J2/a.mrcs"], star, tmp_path / "moved")


def test_order_of_the_paths_is_kept(tmp_path, star):
    names = ["c.mrcs", "a.mrcs", "b.mrcs"]
    for name in names:
        touch(star.parent / name)
    assert [path.name for path in resolve_stacks(names, star)] == names
