import json
from pathlib import Path

import pytest
from support.tiny_runs import tiny_config

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.manifest import RunManifest, read_manifest, write_manifest


@pytest.fixture
def manifest(store: ParticleStore, tmp_path: Path) -> RunManifest:
    """Written in a folder."""
    made = RunManifest.of(tiny_config(store.path), store, 60, on_gpu=False)
    write_manifest(tmp_path, made)
    return made


def test_a_manifest_comes_back_as_written(manifest: RunManifest, tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == manifest
    assert (manifest.particles, manifest.box_size) == (60, 16)


@pytest.mark.parametrize("version", [1, 99, "2"])
def test_a_run_directory_of_another_version_is_refused_by_name(
    manifest: RunManifest, tmp_path: Path, version: object
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    with pytest.raises(ConfigError, match=rf"manifest\.json: schema {version}, .* reads 2; use the version"):
        read_manifest(tmp_path)


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"schema_version": 2}', '{"schema_version": 2, "age": 1}'])
def test_a_damaged_manifest_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.json: .*start the run anew under another name"):
        read_manifest(tmp_path)


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize("value", [None, "x", 1.5, True, [], {}, {"a": 1}])
def test_a_value_of_another_type_is_refused_wherever_it_stands(tmp_path: Path, value: object) -> None:
    path = tmp_path / "manifest.json"
    whole = json.loads(path.read_text())
    for key, right in whole.items():
        if type(value) is type(right) and not isinstance(value, dict):
            continue
        path.write_text(json.dumps(whole | {key: value}))
        if key == "versions" and value == {}:
            continue
        with pytest.raises(ConfigError, match=r"manifest\.json: .*under another name"):
            read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run directory \(no manifest\.json\)"):
        read_manifest(tmp_path)
