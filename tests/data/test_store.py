import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_store import BOX, CHUNK, PART, ROWS, SHARD, small_columns, small_images, write_small_store
from support.store_attributes import store_attributes

from cryoformer_dist.data.store import ParticleStore, complete_store, create_store, write_shard
from cryoformer_dist.data.stored_particles import COLUMNS, PACKED_ROW, StoreLayout
from cryoformer_dist.errors import StoreError, StoreNotFoundError
from cryoformer_dist.physics.pose import Pose


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_store(tmp_path_factory.mktemp("whole") / "particles.zarr")


@pytest.fixture
def store_path(whole_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_store, tmp_path / "particles.zarr"))


def _flip_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(bytes(content))


def test_what_is_written_is_read(store_path: Path) -> None:
    store = ParticleStore.open(store_path)
    columns = small_columns()
    assert (len(store), store.box_size, store.shard_size, store.chunk_size) == (ROWS, BOX, SHARD, CHUNK)
    assert store.pixel_size_angstrom == 1.5
    np.testing.assert_array_equal(store.read_images(np.arange(ROWS)), small_images())
    particles = store.particles()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(particles, name), columns[name])
        assert getattr(particles, name).dtype == columns[name].dtype
    np.testing.assert_array_equal(particles.voltage_kv, np.array([300, 200])[columns["optics_group"]])
    np.testing.assert_allclose(particles.pixel_size_angstrom, np.array([1.5, 1.6])[columns["optics_group"]], rtol=1e-6)


def test_rows_come_in_the_order_asked_for_across_shards_and_with_repeats(store_path: Path) -> None:
    rows = np.array([20, 3, 3, 9, 0, 15, 16, 8])
    np.testing.assert_array_equal(ParticleStore.open(store_path).read_images(rows), small_images()[rows])


def test_no_rows_give_no_images(store_path: Path) -> None:
    assert ParticleStore.open(store_path).read_images(np.array([], dtype=np.int64)).shape == (0, BOX, BOX)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_does_not_exist_is_refused_by_number(store_path: Path, row: int) -> None:
    with pytest.raises(StoreError, match=rf"row {row} asked for, rows are 0 \.\. {ROWS - 1}"):
        ParticleStore.open(store_path).read_images(np.array([2, row]))


def test_poses_and_ctf_of_rows_are_those_of_the_columns(store_path: Path) -> None:
    particles, rows = ParticleStore.open(store_path).particles(), np.array([5, 1])
    np.testing.assert_array_equal(particles.pose(rows).rotation.numpy(), particles.rotation[rows])
    np.testing.assert_array_equal(particles.ctf(rows).defocus_v_angstrom.numpy(), particles.defocus_v_angstrom[rows])
    assert len(particles.ctf().voltage_kv) == ROWS


def test_a_whole_store_verifies_and_counts_every_shard(store_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    ParticleStore.open(store_path).verify(lambda done, total: calls.append((done, total)))
    # Three files of images and one of everything else.
    assert calls == [(i + 1, 4) for i in range(4)]


@pytest.mark.parametrize(
    ("name", "file", "position", "chunk", "rows"),
    [
        ("images", "c/0/0/0", 5, 0, r"0 \.\. 3"),
        ("images", "c/1/0/0", CHUNK * BOX * BOX * 2 + 4 + 7, 3, r"12 \.\. 15"),
        ("images", "c/2/0/0", CHUNK * BOX * BOX * 2 + 4 + 1, 5, r"20 \.\. 20"),
        ("particles", "c/0/0", 11, 0, r"0 \.\. 8"),
        ("particles", "c/0/0", PART * PACKED_ROW.itemsize + 4 + 2, 1, r"9 \.\. 17"),
        ("particles", "c/0/0", 2 * (PART * PACKED_ROW.itemsize + 4) + 1, 2, r"18 \.\. 20"),
    ],
)
def test_a_flipped_byte_names_array_chunk_rows_and_file(
    store_path: Path, name: str, file: str, position: int, chunk: int, rows: str
) -> None:
    damaged = store_path / name / file
    _flip_byte(damaged, position)
    with pytest.raises(StoreError, match=rf"array '{name}', chunk {chunk} \(rows {rows}\) is damaged, file {damaged}"):
        ParticleStore.open(store_path).verify()


def test_every_byte_of_a_shard_file_is_guarded(store_path: Path) -> None:
    file = store_path / "particles" / "c" / "0" / "0"
    whole = file.read_bytes()
    store = ParticleStore.open(store_path)
    for position in (*range(0, len(whole), 40), *range(len(whole) - 5, len(whole))):
        _flip_byte(file, position)
        with pytest.raises(StoreError, match="array 'particles'"):
            store.verify()
        file.write_bytes(whole)
    store.verify()


def test_a_damaged_chunk_is_named_while_training_reads_too(store_path: Path) -> None:
    _flip_byte(store_path / "images" / "c" / "1" / "0" / "0", 3)
    store = ParticleStore.open(store_path)
    np.testing.assert_array_equal(store.read_images(np.array([0])), small_images()[:1])
    with pytest.raises(StoreError, match="array 'images', chunk 2"):
        store.read_images(np.array([9]))


@pytest.mark.parametrize(
    ("name", "file", "shard"),
    [
        ("images", "c/1/0/0", r"shard 1 \(chunk 2 on, rows 8 \.\. 15\)"),
        ("particles", "c/0/0", r"shard 0 \(chunk 0 on, rows 0 \.\. 20\)"),
    ],
)
def test_a_missing_shard_is_named_and_never_read_as_zeros(store_path: Path, name: str, file: str, shard: str) -> None:
    (store_path / name / file).unlink()
    store = ParticleStore.open(store_path)
    with pytest.raises(StoreError, match=rf"array '{name}', {shard} is missing"):
        store.verify()
    with pytest.raises(StoreError, match="is missing"):
        store.read_images(np.array([9])) if name == "images" else store.particles()


def test_a_truncated_shard_is_damage(store_path: Path) -> None:
    file = store_path / "images" / "c" / "2" / "0" / "0"
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        store = ParticleStore.open(store_path)
        message = rf"array 'images', shard 2 .* has {length} bytes instead of {len(whole)}, file {file}"
        with pytest.raises(StoreError, match=message):
            store.verify()
        # Zarr reads an empty file as zeros.
        with pytest.raises(StoreError, match=message):
            store.read_images(np.array([20]))


def test_changed_attributes_are_found(store_path: Path) -> None:
    file = store_path / "zarr.json"
    file.write_text(file.read_text().replace('"pixel_size_angstrom": 1.5', '"pixel_size_angstrom": 1.3'))
    with pytest.raises(StoreError, match="attributes are not those that were written"):
        ParticleStore.open(store_path)


def test_an_unfinished_store_is_refused_with_the_remedy(tmp_path: Path) -> None:
    create_store(tmp_path / "s.zarr", StoreLayout(ROWS, BOX, SHARD, CHUNK))
    with pytest.raises(StoreError, match="conversion unfinished: run the same convert command again to continue"):
        ParticleStore.open(tmp_path / "s.zarr")


def test_a_store_with_a_missing_shard_cannot_be_completed(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, StoreLayout(ROWS, BOX, SHARD, CHUNK))
    write_shard(path, 0, small_images()[:SHARD])
    with pytest.raises(StoreError, match="shard 1"):
        complete_store(path, store_attributes(BOX), small_columns())
    with pytest.raises(StoreError, match="unfinished"):
        ParticleStore.open(path)


def test_another_schema_is_refused_by_number(store_path: Path) -> None:
    file = store_path / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["schema_version"] = 99
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"\.zarr: store schema 99, this program reads 6: convert the particles"):
        ParticleStore.open(store_path)


def test_nothing_and_something_else_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such particle store"):
        ParticleStore.open(tmp_path / "nowhere.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not a particle store"):
        ParticleStore.open(tmp_path / "folder")


def test_a_missing_array_is_named(store_path: Path) -> None:
    shutil.rmtree(store_path / "particles")
    with pytest.raises(StoreError, match="array 'particles' is missing"):
        ParticleStore.open(store_path)


def test_a_store_without_poses_gives_none(store_path: Path) -> None:
    complete_store(store_path, replace(store_attributes(BOX), has_poses=False), small_columns())
    store = ParticleStore.open(store_path)
    assert not store.has_poses
    with pytest.raises(StoreError, match="no poses"):
        store.particles().pose()


def _moved(store: ParticleStore, rows: np.ndarray) -> ParticleStore:
    pose = Pose(torch.full((len(rows), 3, 3), 7.0), torch.full((len(rows), 2), -3.0))
    return store.with_pose(rows, pose)


def test_a_store_at_other_poses_has_them_in_the_rows_asked_for_and_everything_else_as_it_was(store_path: Path) -> None:
    store = ParticleStore.open(store_path)
    rows = np.array([2, 20, 9])
    before = store.particles()
    moved = _moved(store, rows)
    after = moved.particles()
    others = np.setdiff1d(np.arange(ROWS), rows)
    assert (after.rotation[rows] == 7).all()
    assert (after.shift_angstrom[rows] == -3).all()
    np.testing.assert_array_equal(after.rotation[others], before.rotation[others])
    np.testing.assert_array_equal(after.shift_angstrom[others], before.shift_angstrom[others])
    for name in {*COLUMNS, "voltage_kv", "pixel_size_angstrom"} - {"rotation", "shift_angstrom"}:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(moved.read_images(rows), store.read_images(rows))
    assert (len(moved), moved.fingerprint) == (len(store), store.fingerprint)


def test_moving_poses_changes_neither_the_store_nor_its_files(store_path: Path) -> None:
    store = ParticleStore.open(store_path)
    before = {path: path.read_bytes() for path in store_path.rglob("*") if path.is_file()}
    rotation = store.particles().rotation.copy()
    _moved(store, np.arange(ROWS))
    np.testing.assert_array_equal(store.particles().rotation, rotation)
    assert {path: path.read_bytes() for path in store_path.rglob("*") if path.is_file()} == before
    np.testing.assert_array_equal(ParticleStore.open(store_path).particles().rotation, rotation)


def test_poses_may_be_moved_again_and_travel_to_another_process(store_path: Path) -> None:
    once = _moved(ParticleStore.open(store_path), np.array([1]))
    twice = once.with_pose(np.array([4]), Pose(torch.zeros(1, 3, 3), torch.zeros(1, 2)))
    sent = pickle.loads(pickle.dumps(twice)).particles()
    assert (sent.rotation[1] == 7).all()
    assert (sent.rotation[4] == 0).all()
    assert (once.particles().rotation[4] != 0).all()


def test_what_the_store_says_of_its_particles_is_read_once_and_cannot_be_changed(store_path: Path) -> None:
    store = ParticleStore.open(store_path)
    particles = store.particles()
    shutil.rmtree(store_path / "particles")
    assert store.particles() is particles
    with pytest.raises(ValueError, match="read-only"):
        particles.rotation[0] = 0
    particles.pose().rotation[0] = 0
    assert (particles.rotation[0] != 0).any()
    # It does not travel: another process reads its own.
    assert len(pickle.dumps(store)) < 1000


def test_a_store_can_be_sent_to_another_process(store_path: Path) -> None:
    store = pickle.loads(pickle.dumps(ParticleStore.open(store_path)))
    np.testing.assert_array_equal(store.read_images(np.array([4])), small_images()[[4]])


def test_a_shard_may_be_written_again(store_path: Path) -> None:
    file = store_path / "images" / "c" / "0" / "0" / "0"
    whole = file.read_bytes()
    # What a killed writer leaves: a truncated file must not be merged with the new rows.
    file.write_bytes(whole[:50])
    write_shard(store_path, 0, small_images()[:SHARD])
    assert file.read_bytes() == whole


def test_an_amplitude_contrast_that_cannot_be_is_refused_by_optics_group(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ParticleStore.open(store_path)
    first, second = store.attributes.optics
    impossible = replace(store.attributes, optics=(first, replace(second, amplitude_contrast=1.0)))
    monkeypatch.setattr(store, "attributes", impossible)
    with pytest.raises(StoreError, match=r"optics group 1 has an amplitude contrast of 1; it must lie in \[0, 1\)"):
        store.particles()
