import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.simulated_particles import source_images, write_particles, write_stack

from cryoformer_dist.analysis import check
from cryoformer_dist.analysis.check import CheckReport, check_store
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import StoreError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_shell_correlation, fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("particles"), particles=120, box=24, noise_ratio=2.0)


def _store(table: ParticleTable, folder: Path, contrast: str = "light") -> ParticleStore:
    options = ConversionOptions(contrast=contrast, shard_rows=64, chunk_rows=16)  # type: ignore[arg-type]
    return convert_serially(plan_conversion(table, folder / "s.zarr", options))


@pytest.fixture(scope="module")
def healthy(
    table: ParticleTable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ParticleStore, CheckReport, list[tuple[str, int, int]]]:
    folder = tmp_path_factory.mktemp("healthy")
    store, calls = _store(table, folder), []
    report = check_store(store, folder / "check", progress=lambda *call: calls.append(call))
    return store, report, calls


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing takes seconds; the healthy report above and the one without poses below are drawn for real.
    monkeypatch.setattr(check, "draw_check", lambda path, picture: None)


def test_a_healthy_store_is_found_healthy(healthy: tuple) -> None:
    store, report, _ = healthy
    assert report.healthy
    assert report.contrast_z_score > 3
    assert report.half_sets == "given"
    assert (report.particles, report.sample) == (120, 120)
    assert max(report.fsc_area, key=report.fsc_area.__getitem__) == check.AS_STORED
    assert "the given conventions are the best of 4" in "\n".join(report.findings)
    assert all(finding in str(report) for finding in report.findings)
    assert report.resolution_angstrom < 3.5 * store.pixel_size_angstrom


def test_the_files_hold_what_the_report_says(healthy: tuple) -> None:
    store, report, _ = healthy
    names = {path.name: path for path in report.files}
    assert set(names) == {"half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "check.png"}
    halves = [read_volume(names[f"half{number}.mrc"]) for number in (1, 2)]
    mean = read_volume(names["map.mrc"])
    assert mean.voxel_size_angstrom == pytest.approx(store.pixel_size_angstrom)
    torch.testing.assert_close(mean.voxels, (halves[0].voxels + halves[1].voxels) / 2)
    rows = list(csv.DictReader(names["fsc.csv"].read_text().splitlines()))
    table = [float(row["correlation"]) for row in rows]
    np.testing.assert_allclose(table, report.fsc.correlation.numpy(), atol=1e-6)
    unmasked = fourier_shell_correlation(halves[0].voxels, halves[1].voxels, store.pixel_size_angstrom)
    np.testing.assert_allclose(unmasked.correlation[1:5], table[1:5], atol=0.1)
    header = names["check.png"].read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert int.from_bytes(header[16:20]) >= 1000


def test_progress_runs_through_every_stage_to_its_end(healthy: tuple) -> None:
    calls = healthy[2]
    last = {stage: (done, total) for stage, done, total in calls}
    assert list(last) == ["checksums", "back-projection", "conventions"]
    assert all(done == total for done, total in last.values())


def test_flipped_shifts_are_told(table: ParticleTable, tmp_path: Path) -> None:
    report = check_store(_store(replace(table, shift_angstrom=-table.shift_angstrom), tmp_path), tmp_path / "out")
    assert not report.healthy
    assert report.findings[0].startswith("the shifts look flipped")
    assert str(report).startswith("LOOK BEFORE TRAINING")


def test_transposed_rotations_are_told(table: ParticleTable, tmp_path: Path) -> None:
    assert table.rotation is not None
    transposed = replace(table, rotation=np.ascontiguousarray(table.rotation.transpose(0, 2, 1)))
    report = check_store(_store(transposed, tmp_path), tmp_path / "out")
    assert not report.healthy
    assert report.findings[0].startswith("the rotations look transposed")


def test_flipped_phases_are_told(table: ParticleTable, tmp_path: Path) -> None:
    pixel_size = table.optics[0].pixel_size_angstrom
    transfer = contrast_transfer_function(table.ctf_params(), frequency_grid(24)[None] / pixel_size)
    flipped = image_to_fourier(torch.from_numpy(source_images(table))) * transfer.sign()
    write_stack(tmp_path / "flipped.mrcs", fourier_to_image(flipped, 24).numpy(), pixel_size)
    rows = np.arange(len(table))
    other = replace(table, stack_paths=(tmp_path / "flipped.mrcs",), stack=np.zeros_like(table.stack), stack_index=rows)
    report = check_store(_store(other, tmp_path), tmp_path / "out")
    assert not report.healthy
    assert report.findings[0].startswith("the images look phase-flipped")


def test_a_dark_protein_is_told(table: ParticleTable, tmp_path: Path) -> None:
    report = check_store(_store(table, tmp_path, contrast="dark"), tmp_path / "out")
    assert not report.healthy
    assert report.contrast_z_score < -3
    assert report.findings[0].startswith("the protein is dark")


def test_conventions_that_the_data_cannot_tell_are_said_to_be_so(table: ParticleTable, tmp_path: Path) -> None:
    centred = replace(table, shift_angstrom=np.zeros_like(table.shift_angstrom))
    report = check_store(_store(centred, tmp_path), tmp_path / "out")
    line = next(finding for finding in report.findings if "cannot be told apart in this sample" in finding)
    assert check.SHIFTS_FLIPPED in line


def test_unknown_half_sets_are_drawn_by_the_seed(table: ParticleTable, tmp_path: Path) -> None:
    store = _store(replace(table, half_set=np.zeros_like(table.half_set)), tmp_path)
    report = check_store(store, tmp_path / "one", sample=60, seed=3)
    again = check_store(store, tmp_path / "two", sample=60, seed=3)
    assert report.half_sets == "random"
    assert report.sample == 60
    assert report.fsc is not None
    assert again.fsc is not None
    torch.testing.assert_close(report.fsc.correlation, again.fsc.correlation, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("half_set", "why"), [([1, 1], "all particles are in half-set 1"), ([0, 2], "not all particles")]
)
def test_half_sets_that_cannot_be_compared_are_said_to_be_so(half_set: list[int], why: str) -> None:
    used = check._why_random(np.asarray(half_set, np.int8))
    assert used.startswith("random (the given ones cannot be compared")
    assert why in used


def test_without_poses_only_the_bytes_and_the_background_are_judged(
    table: ParticleTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    report = check_store(_store(replace(table, rotation=None), tmp_path), tmp_path / "out")
    assert report.healthy
    assert report.fsc is None
    assert [path.name for path in report.files] == ["check.png"]
    assert report.files[0].stat().st_size > 10_000
    assert "no poses" in report.findings[-1]
    assert any(finding.startswith("noise white") for finding in report.findings)


def test_damage_is_named_before_anything_is_written(table: ParticleTable, tmp_path: Path) -> None:
    store = _store(table, tmp_path)
    file = store.path / "particles" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[20] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="array 'particles', chunk 0"):
        check_store(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
