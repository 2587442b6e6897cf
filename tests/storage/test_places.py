import errno
import os
import sys
from pathlib import Path

import pytest

from cryoformer_dist.errors import BackendUnavailableError, ConfigError, StorageError
from cryoformer_dist.storage.places import in_reach, place_at, placed_from, remove_folder, replaced, write_whole


def test_a_path_stays_a_path_and_a_url_keeps_its_slashes(tmp_path: Path) -> None:
    assert place_at("runs/x") == Path("runs/x")
    assert place_at(tmp_path) is tmp_path
    assert str(place_at("s3://bucket/runs/") / "x") == "s3://bucket/runs/x"


def test_only_paths_start_at_a_folder(tmp_path: Path) -> None:
    assert placed_from(tmp_path, "data/x.zarr") == str(tmp_path / "data" / "x.zarr")
    assert placed_from(tmp_path, "/data/x.zarr") == "/data/x.zarr"
    assert placed_from(tmp_path, "s3://bucket/x.zarr") == "s3://bucket/x.zarr"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs://bucket/x", "gs:// is not supported"),
        ("s3:/bucket/x", "not of the form s3://bucket/prefix"),
        ("s3://", "not of the form"),
        ("s3://bucket//x", "not of the form"),
    ],
)
def test_other_urls_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        place_at(text)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="environment") as error:
        place_at("s3://KEY:SECRET@bucket/x")
    assert "SECRET" not in str(error.value)


def test_without_s3fs_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'cryoformer-dist\[s3\]'"):
        place_at("s3://bucket/x")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def write(cut_short: bool) -> None:
        with replaced(path) as beside:
            beside.write_text("new")
            assert path.read_text() == "old"
            assert beside.parent == path.parent
            if cut_short:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(cut_short=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write(cut_short=False)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mark_of_a_whole_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    for name in ("a", "manifest.json"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).touch()

    def cut_short(folder: Path) -> None:
        raise OSError("cut short")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(OSError, match="cut short"):
            remove_folder(tmp_path / "x", first="manifest.json")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]
    remove_folder(tmp_path / "x", first="manifest.json")
    remove_folder(tmp_path / "x", first="manifest.json")
    assert not (tmp_path / "x").exists()


def test_an_object_store_that_cannot_be_reached_says_what_to_look_at() -> None:
    from botocore.exceptions import EndpointConnectionError

    place = place_at("s3://bucket/x")
    with pytest.raises(StorageError, match=r"s3://bucket/x: .*http://nowhere.*AWS_ENDPOINT_URL"), in_reach(place):
        raise EndpointConnectionError(endpoint_url="http://nowhere")


def test_a_file_that_cannot_be_written_to_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with replaced(tmp_path / "map.png") as beside:
            beside.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: .*map\.png"):
        write_half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ExpiredToken", "have expired: renew them in AWS_SHARED_CREDENTIALS_FILE"),
        ("SlowDown", "takes no more requests now: repeat the command later"),
        ("AccessDenied", "check AWS_ENDPOINT_URL, the credentials in the environment"),
    ],
)
def test_a_refusal_of_the_object_store_says_what_to_do(code: str, said: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject"))
    with pytest.raises(StorageError, match=rf"^s3://bucket/x: .*no; .*{said}"), in_reach(place_at("s3://bucket/x")):
        raise error


def test_what_is_missing_or_of_this_machine_stays_what_it_is_amid_work_on_an_object_store() -> None:
    for error in (FileNotFoundError("x"), OSError(errno.ENOSPC, "full", "/tmp/x")):
        with pytest.raises(type(error)), in_reach(place_at("s3://bucket/x")):
            raise error
