"""Every part of a store is in its place, and is read as what was written, or refused in our words."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.small_store import BOX, CHUNK, ROWS, small_columns, small_images, write_small_store
from support.store_attributes import store_attributes

from cryoformer_dist.data.store import ParticleStore, complete_store, create_store
from cryoformer_dist.data.stored_particles import StoreLayout
from cryoformer_dist.errors import StoreError


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("whole") / "particles.zarr")


@pytest.fixture
def store_path(whole_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_store, tmp_path / "particles.zarr"))


@pytest.mark.parametrize("name", [".", "images", "particles"])
def test_any_damage_of_what_a_store_says_of_itself_is_refused_or_changes_nothing(store_path: Path, name: str) -> None:
    file = store_path / name / "zarr.json"
    whole, random = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(whole), 150):
        length = int(random.choice([0, 1, 1, 1, 4, 40]))
        piece = random.bytes(length) if place % 2 else bytes(random.integers(32, 127, length).astype(np.uint8))
        # Of length 0: cut there.
        file.write_bytes(whole[:place] + (piece + whole[place + length :] if length else b""))
        try:
            store = ParticleStore.open(store_path)
        except StoreError as error:
            refused += str(store_path) in str(error)
            continue
        np.testing.assert_array_equal(store.read_images(np.arange(ROWS)), small_images())
        np.testing.assert_array_equal(store.particles().source_row, small_columns()["source_row"])
    assert refused > 100


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", "[" * 100_000, '{"attributes": 3}', '{"attributes": []}', "\0"]
)
def test_a_store_file_that_is_none_is_refused(store_path: Path, text: str) -> None:
    for name in ("zarr.json", "images/zarr.json", "particles/zarr.json"):
        whole = (store_path / name).read_text()
        (store_path / name).write_text(text)
        with pytest.raises(StoreError, match=str(store_path)):
            ParticleStore.open(store_path)
        (store_path / name).write_text(whole)


def _swap(file: Path, other: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_a_shard_in_another_s_place_is_named_and_never_read(store_path: Path) -> None:
    _swap(store_path / "images" / "c" / "0" / "0" / "0", store_path / "images" / "c" / "1" / "0" / "0")
    store = ParticleStore.open(store_path)
    np.testing.assert_array_equal(store.read_images(np.array([20])), small_images()[[20]])
    for row, named in ((0, r"chunk 0 \(rows 0 \.\. 3\)"), (9, r"chunk 2 \(rows 8 \.\. 11\)")):
        with pytest.raises(StoreError, match=rf"array 'images', {named} is not the one that was written there, file"):
            store.read_images(np.array([row]))
    with pytest.raises(StoreError, match="not the one that was written"):
        store.verify()


def test_a_chunk_in_another_s_place_is_named(store_path: Path) -> None:
    file, length = store_path / "images" / "c" / "1" / "0" / "0", CHUNK * BOX * BOX * 2 + 4
    content = file.read_bytes()
    file.write_bytes(content[length : 2 * length] + content[:length] + content[2 * length :])
    with pytest.raises(StoreError, match=r"chunk 2 \(rows 8 \.\. 11\) is not the one"):
        ParticleStore.open(store_path).read_images(np.array([9]))


def test_the_particles_of_another_store_of_the_same_size_are_refused(store_path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store_path, tmp_path / "other.zarr"))
    columns = small_columns()
    columns["defocus_u_angstrom"], columns["defocus_v_angstrom"] = (
        columns["defocus_v_angstrom"],
        columns["defocus_u_angstrom"],
    )
    complete_store(other, store_attributes(BOX), columns)
    shutil.copy(other / "particles" / "c" / "0" / "0", store_path / "particles" / "c" / "0" / "0")
    with pytest.raises(StoreError, match=r"array 'particles', chunk 0 .* is not the one that was written there"):
        ParticleStore.open(store_path).particles()


@pytest.mark.parametrize("text", ["", "{}", '{"shape": 3}', "[" * 1000])
def test_an_unfinished_store_with_damaged_arrays_says_how_to_begin_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, StoreLayout(ROWS, BOX, 8, CHUNK))
    (path / "images" / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"s\.zarr: the unfinished conversion is damaged .*--overwrite"):
        create_store(path, StoreLayout(ROWS, BOX, 8, CHUNK))


def test_an_unfinished_store_of_another_layout_is_damaged(tmp_path: Path) -> None:
    create_store(tmp_path, StoreLayout(ROWS, BOX, 8, CHUNK))
    with pytest.raises(StoreError, match="unfinished conversion is damaged"):
        create_store(tmp_path, StoreLayout(ROWS, BOX, 16, CHUNK))
