import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.noise import coloured, power_per_shell
from support.simulated_particles import PIXEL_SIZE_ANGSTROM, replace_image, source_images, write_particles

from cryoformer_dist.data.contrast import Contrast
from cryoformer_dist.data.convert import (
    ConversionOptions,
    begin_conversion,
    convert_serially,
    convert_shard,
    finish_conversion,
    plan_conversion,
)
from cryoformer_dist.data.noise_background import Background
from cryoformer_dist.data.noise_measurement import whiten_images
from cryoformer_dist.data.store import PROGRESS_FOLDER, ParticleStore
from cryoformer_dist.data.stored_particles import COLUMNS
from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError, SmallSampleWarning, StoreError
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_images, fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid, radius_grid

SMALL_SHARDS = ConversionOptions(box_size=24, contrast="light", shard_rows=32, chunk_rows=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def store(table: ParticleTable, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    return _convert(table, tmp_path_factory.mktemp("store") / "s.zarr", SMALL_SHARDS)


def _convert(table: ParticleTable, output: Path, options: ConversionOptions) -> ParticleStore:
    return convert_serially(plan_conversion(table, output, options))


def _deviation_of_unit_power(box: int) -> float:
    """Of pixels cropped from 32: the Nyquist lines are empty, what is compared has unit power per coefficient."""
    return 1.0 if box == 32 else (box - 1) / box


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_store_rows_are_a_permutation_of_the_table_rows(store: ParticleStore, table: ParticleTable) -> None:
    particles = store.particles()
    rows = particles.source_row
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(table)))
    assert np.abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.3
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(particles, name), getattr(table, name)[rows])


def test_what_is_read_is_the_crop_of_the_normalised_source(store: ParticleStore, table: ParticleTable) -> None:
    (noise,) = store.attributes.noise
    # White, equally strong in all images, without gradients: nothing but an offset and a unit comes off.
    assert (noise.white, noise.deviation_share, noise.gradient_share) == (True, 0, 0)
    flat, _ = Background.outside(32, 15.0).flatten(torch.from_numpy(source_images(table)), gradient_share=0)
    expected = crop_images(flat, 24).numpy() / noise.deviation
    stored = store.read_images(np.arange(len(store))).astype(np.float32)
    np.testing.assert_allclose(stored, expected[store.particles().source_row], atol=4e-3, rtol=1e-3)


@pytest.mark.parametrize("box", [None, 24, 16])
def test_noise_has_unit_power_after_conversion(table: ParticleTable, tmp_path: Path, box: int | None) -> None:
    store = _convert(table, tmp_path / "s.zarr", replace(SMALL_SHARDS, box_size=box))
    images = store.read_images(np.arange(len(store))).astype(np.float32)
    corners = images[:, (radius_grid(store.box_size, 2) > store.box_size / 2 - 1).numpy()]
    assert corners.std() == pytest.approx(_deviation_of_unit_power(store.box_size), abs=0.02)
    assert corners.mean() == pytest.approx(0.0, abs=0.02)


def test_pixel_size_grows_as_the_box_shrinks(store: ParticleStore) -> None:
    assert store.pixel_size_angstrom == pytest.approx(PIXEL_SIZE_ANGSTROM * 32 / 24)
    assert store.attributes.optics[0].pixel_size_angstrom == store.pixel_size_angstrom
    assert store.attributes.optics[0].source_pixel_size_angstrom == PIXEL_SIZE_ANGSTROM
    np.testing.assert_allclose(store.particles().pixel_size_angstrom, store.pixel_size_angstrom)


def test_both_contrasts_are_found_and_give_the_same_images(table: ParticleTable, tmp_path: Path) -> None:
    options = replace(SMALL_SHARDS, contrast="auto")
    light = _convert(table, tmp_path / "light.zarr", options)
    negative = tmp_path / "negative"
    negative.mkdir()
    dark_table = replace(table, stack_paths=tuple(negative / path.name for path in table.stack_paths))
    for source, target in zip(table.stack_paths, dark_table.stack_paths, strict=True):
        content = source.read_bytes()
        target.write_bytes(content[:1024] + (-np.frombuffer(content[1024:], "<f4")).tobytes())
    dark = _convert(dark_table, tmp_path / "dark.zarr", options)
    assert (light.attributes.contrast.sign, dark.attributes.contrast.sign) == (1, -1)
    assert light.attributes.contrast.z_score > 5
    assert dark.attributes.contrast.z_score < -5
    rows = np.arange(len(light))
    np.testing.assert_array_equal(light.read_images(rows), dark.read_images(rows))


def test_a_given_contrast_is_obeyed(table: ParticleTable, tmp_path: Path, store: ParticleStore) -> None:
    dark = _convert(table, tmp_path / "s.zarr", replace(SMALL_SHARDS, contrast="dark"))
    assert dark.attributes.contrast == Contrast(sign=-1, z_score=0.0, how="given")
    np.testing.assert_array_equal(dark.read_images(np.arange(9)), -store.read_images(np.arange(9)))


def test_particles_without_poses_make_a_store_without_poses(table: ParticleTable, tmp_path: Path) -> None:
    with pytest.warns(SmallSampleWarning, match="no poses.*--contrast"):
        plan = plan_conversion(replace(table, rotation=None), tmp_path / "s.zarr", ConversionOptions(box_size=16))
    assert plan.contrast.how == "assumed"
    assert not convert_serially(plan).has_poses


def test_the_contrast_of_a_real_simulated_stack_is_dark(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "particles" / "tomodrgn_2class"
    with pytest.warns(CryoFormerWarning):
        table = read_particles(folder / "10076_both_32_sim.star", datadir=folder)
    store = _convert(table, tmp_path / "s.zarr", ConversionOptions())
    assert len(store) == 1296
    assert store.attributes.contrast.sign == -1
    assert store.attributes.contrast.z_score < -50
    assert store.pixel_size_angstrom == pytest.approx(13.1)


def test_the_same_input_gives_the_same_bytes_and_another_seed_another_order(
    table: ParticleTable, store: ParticleStore, tmp_path: Path
) -> None:
    again = _convert(table, tmp_path / "again.zarr", SMALL_SHARDS)
    assert _hashes(again.path) == _hashes(store.path)
    assert again.fingerprint == store.fingerprint
    other = _convert(table, tmp_path / "other.zarr", replace(SMALL_SHARDS, seed=1))
    assert (other.particles().source_row != store.particles().source_row).any()
    assert other.fingerprint != store.fingerprint


def test_shards_may_be_written_in_any_order_and_twice(
    table: ParticleTable, store: ParticleStore, tmp_path: Path
) -> None:
    plan = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    for shard in [*reversed(begin_conversion(plan)), 2]:
        convert_shard(plan, shard)
    assert _hashes(finish_conversion(plan).path) == _hashes(store.path)


def test_a_conversion_killed_while_it_finishes_ends_with_the_same_bytes(
    table: ParticleTable, store: ParticleStore, tmp_path: Path
) -> None:
    plan = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    for shard in begin_conversion(plan):
        convert_shard(plan, shard)
    torn = tmp_path / "s.zarr" / "particles" / "c" / "0" / "0"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half of what is known of the particles")
    with pytest.raises(StoreError, match="conversion unfinished"):
        ParticleStore.open(tmp_path / "s.zarr")
    again = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    assert begin_conversion(again) == []
    assert _hashes(finish_conversion(again).path) == _hashes(store.path)


_KILLED = """
import pickle, signal, sys
import cryoformer_dist.data.store as store
from cryoformer_dist.data.convert import convert_serially
synchronise, calls = store.synchronise, []
def pause_inside_the_second_shard(target):
    synchronise(target)
    calls.append(target)
    if len(calls) == 3:
        print("half", flush=True)
        signal.pause()
store.synchronise = pause_inside_the_second_shard
convert_serially(pickle.load(open(sys.argv[1], "rb")))
"""


def test_a_killed_conversion_continues_to_the_same_bytes(
    table: ParticleTable, store: ParticleStore, tmp_path: Path
) -> None:
    output = tmp_path / "s.zarr"
    plan_file = tmp_path / "plan"
    plan_file.write_bytes(pickle.dumps(plan_conversion(table, output, SMALL_SHARDS)))
    child = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(plan_file)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    # What a writer killed in the middle of a file leaves.
    (output / "images" / "c" / "3" / "0").mkdir(parents=True, exist_ok=True)
    (output / "images" / "c" / "3" / "0" / "0.1f3a.partial").write_bytes(b"half a shard")

    with pytest.raises(StoreError, match="conversion unfinished: run the same convert command again"):
        ParticleStore.open(output)
    plan = plan_conversion(table, output, SMALL_SHARDS)
    pending = begin_conversion(plan)
    assert pending == [1, 2, 3, 4]
    assert (output / "images" / "c" / "1" / "0" / "0").exists()
    calls: list[int] = []
    finished = convert_serially(plan, lambda done, total: calls.append(done))
    assert calls[0] == len(table) - sum(np.diff(plan.layout.shard_range(shard))[0] for shard in pending) > 0
    assert calls[-1] == len(table)
    assert _hashes(finished.path) == _hashes(store.path)


def test_a_kill_after_completion_is_recognised(table: ParticleTable, store: ParticleStore, tmp_path: Path) -> None:
    plan = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    finished = convert_serially(plan)
    # As if killed between the mark and the removal of the progress folder.
    folder = finished.path / PROGRESS_FOLDER
    folder.mkdir()
    (folder / "plan.json").write_text(
        f'{{"fingerprint": "{plan.fingerprint}", "noise": {json.dumps([asdict(plan.normalisation.noise[0])])}, '
        '"contrast": {"sign": 1, "z_score": 0.0, "how": "given"}}'
    )
    assert len(ParticleStore.open(finished.path)) == len(table)
    again = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    assert begin_conversion(again) == []
    assert _hashes(finish_conversion(again).path) == _hashes(store.path)


def test_an_unfinished_conversion_with_other_options_is_refused(table: ParticleTable, tmp_path: Path) -> None:
    output = tmp_path / "s.zarr"
    begin_conversion(plan_conversion(table, output, SMALL_SHARDS))
    other = replace(SMALL_SHARDS, box_size=16)
    with pytest.raises(StoreError, match=r"other options.*--overwrite"):
        plan_conversion(table, output, other)
    store = _convert(table, output, replace(other, overwrite=True))
    assert store.box_size == 16


def test_a_changed_stack_is_another_plan(tmp_path: Path) -> None:
    table = write_particles(tmp_path / "p", particles=60)
    plan = plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    begin_conversion(plan)
    os.utime(table.stack_paths[0], ns=(0, time.time_ns()))
    with pytest.raises(StoreError, match="other particles"):
        plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)


def test_a_finished_store_is_replaced_only_when_asked(table: ParticleTable, tmp_path: Path) -> None:
    output = tmp_path / "s.zarr"
    _convert(table, output, SMALL_SHARDS)
    with pytest.raises(StoreError, match=r"finished store is there.*--overwrite"):
        plan_conversion(table, output, SMALL_SHARDS)
    assert _convert(table, output, replace(SMALL_SHARDS, box_size=16, overwrite=True)).box_size == 16


def test_a_folder_of_something_else_is_never_replaced(table: ParticleTable, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(StoreError, match="not a particle store: choose another output"):
        plan_conversion(table, tmp_path / "thesis", replace(SMALL_SHARDS, overwrite=True))


def test_planning_writes_nothing(table: ParticleTable, tmp_path: Path) -> None:
    plan_conversion(table, tmp_path / "s.zarr", SMALL_SHARDS)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_stack_is_found_before_anything_is_written(table: ParticleTable, tmp_path: Path) -> None:
    broken = replace(table, stack_paths=(table.stack_paths[0], tmp_path / "gone.mrcs"))
    with pytest.raises(ParticleFormatError, match=r"gone\.mrcs"):
        plan_conversion(broken, tmp_path / "s.zarr", SMALL_SHARDS)
    assert list(tmp_path.iterdir()) == []


def test_the_particle_diameter_moves_the_background(table: ParticleTable, tmp_path: Path) -> None:
    store = _convert(table, tmp_path / "s.zarr", replace(SMALL_SHARDS, particle_diameter_angstrom=80.0))
    images = store.read_images(np.arange(len(store))).astype(np.float32)
    background = (radius_grid(24, 2) > 40.0 / store.pixel_size_angstrom).numpy()
    assert images[:, background].std() == pytest.approx(_deviation_of_unit_power(24), abs=0.02)


def test_a_pixel_beyond_float16_is_named(tmp_path: Path) -> None:
    table = write_particles(tmp_path / "p", particles=60)
    image = np.random.default_rng(0).normal(size=(32, 32))
    image[16, 16] = 1e8
    replace_image(table, 5, image)
    with pytest.raises(ParticleFormatError, match=r"a\.mrcs: image 000006 .*65504"):
        _convert(table, tmp_path / "s.zarr", replace(SMALL_SHARDS, box_size=None))


def test_groups_of_several_boxes_need_a_common_one_and_keep_their_pixel_sizes(tmp_path: Path) -> None:
    first = write_particles(tmp_path / "one", particles=40, box=32)
    second = write_particles(tmp_path / "two", particles=40, box=40, seed=1)
    both = ParticleTable(
        source=first.source,
        stack_paths=(*first.stack_paths, *second.stack_paths),
        optics=(*first.optics, *second.optics),
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name) + offset])
            for name, offset in (("stack", np.int32(2)), ("optics_group", np.int32(1)), ("source_row", 40))
        },
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("stack_index", *(c for c in COLUMNS if c not in ("optics_group", "source_row")))
        },
    )
    with pytest.raises(ParticleFormatError, match="images of 32, 40 pixels: give --box with an even number up to 32"):
        plan_conversion(both, tmp_path / "s.zarr", ConversionOptions())
    store = _convert(both, tmp_path / "s.zarr", SMALL_SHARDS)
    particles = store.particles()
    expected = np.where(particles.source_row < 40, 5.0 * 32 / 24, 5.0 * 40 / 24)
    np.testing.assert_allclose(particles.pixel_size_angstrom, expected, rtol=1e-6)
    # The larger source loses more of its noise to cropping: that of both has unit power.
    images = store.read_images(np.arange(len(store))).astype(np.float32)
    corners = images[:, (radius_grid(24, 2) > 11).numpy()]
    for group in (0, 1):
        assert corners[particles.optics_group == group].std() == pytest.approx(_deviation_of_unit_power(24), abs=0.02)


def test_no_particles_are_refused(table: ParticleTable, tmp_path: Path) -> None:
    with pytest.raises(ParticleFormatError, match="no particles"):
        plan_conversion(table.select(np.array([], dtype=np.int64)), tmp_path / "s.zarr", ConversionOptions())


def _two_groups(folder: Path) -> ParticleTable:
    """Two optics groups, of white and of coloured noise, the images of the second of 40 pixels instead of 32."""
    first = write_particles(folder / "one", particles=600, noise_ratio=1e4)
    second = write_particles(folder / "two", particles=600, box=40, noise_ratio=1e4, seed=1, noise_curve=coloured)
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in COLUMNS}
    columns["optics_group"] = np.repeat(np.array([0, 1], np.int32), 600)
    columns["source_row"] = np.arange(1200)
    return ParticleTable(
        source=first.source,
        stack_paths=(*first.stack_paths, *second.stack_paths),
        stack=np.concatenate([first.stack, second.stack + np.int32(2)]),
        stack_index=np.concatenate([first.stack_index, second.stack_index]),
        optics=(*first.optics, *second.optics),
        **columns,
    )


@pytest.mark.parametrize("box", [32, 24])
def test_each_optics_group_is_whitened_by_its_own_spectrum_and_so_is_its_transfer(tmp_path: Path, box: int) -> None:
    store = _convert(_two_groups(tmp_path), tmp_path / "s.zarr", replace(SMALL_SHARDS, box_size=box))
    assert [noise.white for noise in store.attributes.noise] == [True, False]
    particles = store.particles()
    for group, tolerance in ((0, 0.05), (1, 0.15)):
        rows = np.flatnonzero(particles.optics_group == group)
        images = store.read_images(rows).astype(np.float32)
        np.testing.assert_allclose(power_per_shell(images), 1, atol=tolerance)
    rows = np.array([np.flatnonzero(particles.optics_group == group)[0] for group in (0, 1)])
    pixel = torch.from_numpy(particles.pixel_size_angstrom[rows])
    ctf = particles.ctf(rows)
    plain = transfer_at(replace(ctf, noise_filter=None), frequency_grid(box), pixel)
    found = transfer_at(ctf, frequency_grid(box), pixel)
    assert torch.allclose(found[0], plain[0], atol=1e-6)
    # What was done to the image was done to the transfer: nothing is left where there is no noise.
    clean = whiten_images(fourier_to_image(plain[1:].to(torch.complex64), box), store.attributes.noise[1].gain)
    difference = fourier_to_image(found[1:].to(torch.complex64), box) - clean
    assert float(difference.abs().max()) < 1e-5 * float(clean.abs().max())


def test_a_store_of_white_noise_needs_no_filter(store: ParticleStore) -> None:
    assert store.particles().ctf().noise_filter is None


def test_few_images_of_a_group_share_the_spectrum_of_their_pixel_size(tmp_path: Path) -> None:
    table = write_particles(tmp_path / "p", particles=80)
    optics = (table.optics[0], replace(table.optics[0], name="two"))
    groups = replace(table, optics=optics, optics_group=np.arange(80, dtype=np.int32) % 2)
    first, second = _convert(groups, tmp_path / "s.zarr", SMALL_SHARDS).attributes.noise
    assert first == second
    assert first.images == 80
