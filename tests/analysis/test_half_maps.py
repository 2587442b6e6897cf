import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.rotating_blobs import BOX, blobs
from support.tiny_runs import tiny_config, train, write_set

from cryoformer_dist.analysis.half_maps import (
    HalfMapsSummary,
    HalfRun,
    compare_half_runs,
    compare_halves,
    describe_motion,
    match_maps,
    write_half_maps,
)
from cryoformer_dist.analysis.map_fsc import compare_maps
from cryoformer_dist.errors import ConfigError, StoreError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.manifest import SCHEMA_VERSION
from cryoformer_dist.storage.records import read_record

CONSENSUS = blobs(np.linspace(0, 120, 9)).mean(axis=0)
ALLOWED = (CONSENSUS > 0.05).astype(np.float32)


def half(seed: int, noise: float = 0.0, motion: bool = True) -> HalfRun:
    """Arm swinging through 120 degrees along the first latent axis; each half has noise of its own."""
    rng = np.random.default_rng(seed)
    latents = np.stack([rng.uniform(-1, 1, 400), 0.05 * rng.normal(size=400)], axis=1).astype(np.float32)

    def decode(z: np.ndarray) -> np.ndarray:
        maps = blobs(60 + 60 * z[:, 0] if motion else np.full(len(z), 60.0))
        own = np.random.default_rng(seed + 10).normal(size=maps.shape)
        return (maps + noise * own).astype(np.float32)

    return HalfRun(decode, latents, CONSENSUS + 0.01 * rng.normal(size=CONSENSUS.shape).astype(np.float32), ALLOWED)


def turned(run: HalfRun) -> HalfRun:
    """The same half with its axes exchanged and the motion's turned round; another one varies more."""
    rng = np.random.default_rng(5)
    latents = np.stack([3 * rng.normal(size=len(run.latents)), -run.latents[:, 0]], axis=1).astype(np.float32)
    return replace(run, decode=lambda z: run.decode(-z[:, ::-1]), latents=latents)


def test_the_same_motion_is_found_whatever_the_order_and_sign_of_the_axes():
    same = match_maps(half(0), half(1))
    assert (same.axis, same.correlation) == (1, pytest.approx(1, abs=0.01))
    exchanged = match_maps(half(0), turned(half(1)))
    assert exchanged.axis == 2
    assert exchanged.correlation > 0.99
    np.testing.assert_allclose(exchanged.first, exchanged.second, atol=0.1)


def test_two_halves_of_one_truth_agree_to_nyquist():
    found = compare_half_runs(half(0), turned(half(1)), 4.0)
    assert found.average.curves["corrected"].area > 0.97
    assert found.average.resolutions()["corrected"]["0.143"] == pytest.approx(8.0)
    assert len(found.pairs) == 10
    assert 0.05 < found.mask.mean() < 0.9


def test_noise_of_their_own_costs_the_halves_resolution_and_a_mask_gives_some_back():
    found = compare_half_runs(half(0, noise=0.1), half(1, noise=0.1), 4.0)
    curves = found.average.curves
    assert curves["unmasked"].area < 0.9
    assert curves["masked"].area > curves["unmasked"].area


def test_halves_that_show_no_motion_or_another_one_do_not_correlate():
    still = match_maps(half(0), half(1, motion=False))
    assert still.correlation == pytest.approx(0, abs=1e-6)
    assert still.stands_still
    assert still.variation[0] > 0.1 > 0.001 > still.variation[1]
    assert describe_motion(still).startswith("none to compare")
    assert describe_motion(match_maps(half(0), half(1))).startswith("correlation ")
    other = half(1)
    elsewhere = replace(other, decode=lambda z: other.decode(z)[:, ::-1].copy())
    assert match_maps(half(0), elsewhere).correlation < 0.7


def test_the_edge_that_maps_of_two_networks_share_is_taken_off_their_agreement():
    def untrained(seed: int) -> HalfRun:
        rng = np.random.default_rng(seed)
        noise = 1 + 0.2 * rng.normal(size=CONSENSUS.shape).astype(np.float32)
        return replace(half(seed), decode=lambda z: np.stack([noise * ALLOWED] * len(z)))

    found = compare_half_runs(untrained(0), untrained(1), 4.0)
    blind = compare_maps(found.matched.first[0], found.matched.second[0], 4.0, found.mask).curves["corrected"]
    seeing = found.average.curves["corrected"]
    # Noise in one and the same region looks as if it agreed to Nyquist.
    assert blind.resolution_angstrom(0.143) == pytest.approx(8.0)
    assert seeing.resolution_angstrom(0.143) > 10
    assert seeing.area < blind.area - 0.05


def test_everything_is_written_and_the_numbers_are_beside_grid_and_mask(tmp_path):
    found = compare_half_runs(half(0, noise=0.1), half(1, noise=0.1), 4.0)
    path = write_half_maps(tmp_path / "halves", found, (Path("one"), Path("two")))
    summary = read_record(path, HalfMapsSummary, SCHEMA_VERSION, "")
    assert summary == found.summarise((Path("one"), Path("two")))
    assert summary.runs == ("one", "two")
    assert (summary.nyquist_angstrom, summary.box_size) == (8.0, BOX)
    assert summary.mask.source == "from the maps"
    assert set(summary.resolution_angstrom.average) == {"unmasked", "masked", "corrected"}
    assert summary.resolution_angstrom.average["masked"]["0.5"] == found.average.resolutions()["masked"]["0.5"]
    assert summary.motion.correlation == found.matched.correlation
    assert len(summary.pairs) == 10
    with (path.parent / "half_maps.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for name, curve in found.average.curves.items():
        assert [float(row[name]) for row in rows] == pytest.approx(curve.correlation.tolist(), abs=1e-6)
    for half_number, maps in ((1, found.matched.first), (2, found.matched.second)):
        voxels = read_volume(path.parent / f"half{half_number}_003.mrc").voxels.numpy()
        np.testing.assert_allclose(voxels, maps[3], atol=1e-6)
    for suffix in (".png", ".svg"):
        assert (path.parent / f"half_maps{suffix}").stat().st_size > 1000


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_store) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("halves")
    found = {}
    for number in (1, 2):
        found[number] = folder / f"half{number}"
        train(tiny_config(tiny_store, {"dataset.half": number, "training.epochs": 1}), found[number])
    return found


def test_two_runs_of_the_halves_of_a_store_are_compared(runs, tmp_path):
    found = compare_halves(runs[1], runs[2], runs[1] / "occupancy.mrc")
    assert found.matched.first.shape == (10, 16, 16, 16)
    np.testing.assert_allclose(found.voxel_size_angstrom, read_volume(runs[1] / "consensus.mrc").voxel_size_angstrom)
    assert found.mask_name.endswith("occupancy.mrc")
    write_half_maps(tmp_path, found, (runs[1], runs[2]))


def test_the_same_half_twice_is_refused(runs):
    with pytest.raises(ConfigError, match=r"on half 1, .* on half 1: .*dataset\.half=2"):
        compare_halves(runs[1], runs[1])


def test_halves_of_different_stores_are_refused(runs, tmp_path):
    store = write_set(tmp_path, particles=32, seed=9)
    train(tiny_config(store, {"dataset.half": 2, "training.epochs": 1}), tmp_path / "other")
    with pytest.raises(StoreError, match="different stores"):
        compare_halves(runs[1], tmp_path / "other")
