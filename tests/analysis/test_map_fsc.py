import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from support.rotating_blobs import blobs

from cryoformer_dist.analysis.map_fsc import (
    average_comparisons,
    compare_maps,
    describe,
    randomise_phases,
    read_and_compare,
    write_curves,
)
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.fourier import volume_to_fourier
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.volume import Volume

BOX = 32
RADIUS = radius_grid(BOX, 3).numpy()
BALL = (RADIUS < 8).astype(np.float32)
GENEROUS = np.clip((14 - RADIUS) / 4, 0, 1).astype(np.float32)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(BOX,) * 3)


def written(path: Path, voxels: np.ndarray, voxel_size_angstrom: float = 2.0) -> Path:
    write_volume(path, Volume(torch.from_numpy(voxels.astype(np.float32)), voxel_size_angstrom))
    return path


@pytest.fixture(scope="module")
def halves() -> tuple[np.ndarray, np.ndarray]:
    """A smooth molecule with nothing beyond shell 8, and independent noise everywhere."""
    smooth = np.exp(-(RADIUS**2) / (2 * 4.0**2))
    return smooth + 0.02 * noise(0), smooth + 0.02 * noise(1)


def test_identical_maps_agree_to_nyquist_under_any_mask():
    voxels = noise(3)
    found = compare_maps(voxels, voxels, 2.0, BALL)
    assert found.randomised_from is None
    for curve in found.curves.values():
        assert curve.area == pytest.approx(1, abs=1e-5)
    assert found.resolutions()["corrected"] == {"0.5": 4.0, "0.143": 4.0}


def test_without_a_mask_there_is_one_curve(halves):
    assert list(compare_maps(*halves, 2.0).curves) == ["unmasked"]


def test_the_correction_takes_back_what_a_sharp_mask_adds(halves):
    found = compare_maps(*halves, 2.0, BALL)
    assert list(found.curves) == ["unmasked", "masked", "randomised", "corrected"]
    start = found.randomised_from
    assert found.curves["unmasked"].correlation[start] < 0.8 <= found.curves["unmasked"].correlation[start - 1]
    false = found.curves["masked"].correlation[start + 4 :].mean()
    assert false > 0.3
    assert abs(found.curves["corrected"].correlation[start + 4 :].mean()) < 0.3 * false
    assert found.curves["corrected"].area < found.curves["masked"].area


def test_the_correction_is_that_of_chen_and_starts_two_shells_on(halves):
    found = compare_maps(*halves, 2.0, BALL)
    total, random, clean = (found.curves[name].correlation for name in ("masked", "randomised", "corrected"))
    first = found.randomised_from + 2
    torch.testing.assert_close(clean[:first], total[:first])
    torch.testing.assert_close(clean[first:], (total[first:] - random[first:]) / (1 - random[first:]))


def test_a_generous_soft_mask_needs_little_correction_and_helps(halves):
    found = compare_maps(*halves, 2.0, GENEROUS)
    # The mask takes away noise only.
    assert found.curves["masked"].area > found.curves["unmasked"].area
    assert found.curves["randomised"].correlation[found.randomised_from + 2 :].abs().mean() < 0.15


def test_random_phases_keep_every_amplitude_and_all_below_the_shell():
    voxels = torch.from_numpy(blobs(np.array([10.0]))[0])
    changed = randomise_phases(voxels, 4, torch.Generator().manual_seed(0))
    before, after = volume_to_fourier(voxels.double()), volume_to_fourier(changed.double())
    scale = before.abs().max()
    torch.testing.assert_close(after.abs() / scale, before.abs() / scale, atol=1e-6, rtol=0)
    shell = torch.fft.ifftshift(radius_grid(16, 3)).round()
    near = shell < 4
    torch.testing.assert_close(after[near], before[near], atol=1e-5 * float(scale), rtol=0)
    far = (shell >= 4) & (shell < 8)
    product = (after[far] * before[far].conj()).real.sum() / before[far].abs().square().sum()
    assert abs(product) < 0.3


def test_an_average_is_the_mean_of_the_curves(halves):
    pairs = [compare_maps(halves[0], halves[1], 2.0, mask) for mask in (BALL, GENEROUS)]
    mean = average_comparisons(pairs)
    for name, curve in mean.curves.items():
        torch.testing.assert_close(
            curve.correlation, (pairs[0].curves[name].correlation + pairs[1].curves[name].correlation) / 2
        )
    assert "randomised" not in average_comparisons([*pairs, compare_maps(halves[0], halves[0], 2.0, BALL)]).curves


def test_files_of_one_grid_are_compared_and_the_words_name_grid_limit_and_mask(tmp_path, halves):
    files = [written(tmp_path / f"{index}.mrc", voxels) for index, voxels in enumerate(halves)]
    mask = written(tmp_path / "mask.mrc", BALL)
    found, volume = read_and_compare(*files, mask)
    assert volume.voxel_size_angstrom == pytest.approx(2.0)
    for name, curve in compare_maps(*halves, 2.0, BALL).curves.items():
        torch.testing.assert_close(found.curves[name].correlation, curve.correlation, atol=1e-4, rtol=0)
    text = "\n".join(describe(found, "mask.mrc"))
    for words in ("box 32", "2 A per voxel", "Nyquist 4 A", "mask.mrc", "FSC 0.143", "FSC 0.5", "corrected"):
        assert words in text


def test_the_table_holds_every_curve_at_its_frequency(tmp_path, halves):
    found = compare_maps(*halves, 2.0, BALL)
    with write_curves(tmp_path / "new" / "fsc.csv", found.curves).open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == BOX // 2
    assert rows[0]["resolution_angstrom"] == "inf"
    assert float(rows[4]["resolution_angstrom"]) == pytest.approx(16.0)
    for name, curve in found.curves.items():
        assert float(rows[4][name]) == pytest.approx(float(curve.correlation[4]), abs=1e-6)


@pytest.mark.parametrize(
    ("other", "size", "message"),
    [
        (np.zeros((16, 16, 16)), 2.0, "is 32 voxels wide"),
        (np.zeros((32, 32, 32)), 2.01, r"voxels of 2\.0000 angstrom.*2\.0100"),
    ],
)
def test_maps_of_different_grids_are_refused(tmp_path, halves, other, size, message):
    first = written(tmp_path / "first.mrc", halves[0])
    with pytest.raises(ConfigError, match=message):
        read_and_compare(first, written(tmp_path / "other.mrc", other, size))


def test_voxel_sizes_within_a_thousandth_are_the_same(tmp_path, halves):
    first = written(tmp_path / "first.mrc", halves[0], 2.0)
    found, _ = read_and_compare(first, written(tmp_path / "second.mrc", halves[0], 2.0015))
    assert found.curves["unmasked"].area == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("density", [0.0, 3.5, 1e20])
def test_maps_without_comparable_structure_are_refused(tmp_path, halves, density):
    empty = np.full_like(halves[0], density)
    empty[0, 0, 0] += density > 1e12
    first, second = written(tmp_path / "first.mrc", halves[0]), written(tmp_path / "empty.mrc", empty)
    with pytest.raises(ConfigError, match=r"empty\.mrc: (all voxels are|voxels reach)"):
        read_and_compare(first, second)


def test_an_odd_box_is_refused(tmp_path):
    odd = written(tmp_path / "odd.mrc", np.zeros((15, 15, 15)))
    with pytest.raises(ConfigError, match="odd"):
        read_and_compare(odd, odd)
