from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.simulated_particles import replace_image, source_images, write_particles

from cryoformer_dist.data.image_normalisation import (
    Normalisation,
    check_diameter,
    measure_normalisation,
    normalise_images,
    settle_box,
)
from cryoformer_dist.errors import ParticleFormatError, SmallSampleWarning
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.physics.grids import radius_grid


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("light"))


def _normalised(table: ParticleTable, rows: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    box = normalisation.box_size
    images = np.full((len(rows), box, box), np.nan, np.float32)
    for positions, block in normalise_images(table, rows, normalisation):
        images[positions] = block.numpy()
    return images


def test_images_come_to_the_places_of_their_rows_whatever_stack_they_lie_in(table: ParticleTable) -> None:
    rows = np.array([120, 3, 60, 49, 50, 4])
    source = source_images(table)[rows]
    background = source[:, (radius_grid(32, 2) > 15).numpy()]
    expected = (source - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]
    np.testing.assert_allclose(_normalised(table, rows, Normalisation(32)), expected, atol=1e-4)


def test_the_sign_multiplies_what_is_normalised(table: ParticleTable) -> None:
    rows = np.arange(5)
    plain = _normalised(table, rows, Normalisation(24))
    np.testing.assert_array_equal(_normalised(table, rows, Normalisation(24, sign=-1)), -plain)


def test_noise_of_cropped_images_has_unit_power_again(table: ParticleTable) -> None:
    normalisation, contrast = measure_normalisation(table, Normalisation(24), "light", seed=0)
    outside = normalisation.background(24, 5.0 * 32 / 24).numpy()
    images = _normalised(table, np.arange(len(table)), normalisation)
    assert (contrast.sign, contrast.how) == (1, "given")
    # Cropping empties the Nyquist lines.
    assert images[:, outside].var(axis=1).mean() == pytest.approx((23 / 24) ** 2, rel=0.02)
    unscaled = _normalised(table, np.arange(len(table)), Normalisation(24))
    assert unscaled[:, outside].var(axis=1).mean() < 0.7


def test_what_lies_outside_the_particle_is_background() -> None:
    whole, narrow = Normalisation(24).background(24, 5.0), Normalisation(24, 50.0).background(24, 5.0)
    assert whole.equal(radius_grid(24, 2) > 11)
    assert narrow.equal(radius_grid(24, 2) > 5)


def test_an_uncertain_contrast_is_said_and_taken_as_light(tmp_path: Path) -> None:
    noise = write_particles(tmp_path / "noise", particles=40, noise_ratio=1e6)
    with pytest.warns(SmallSampleWarning, match="uncertain.*--contrast"):
        normalisation, contrast = measure_normalisation(noise, Normalisation(32), "auto", seed=0)
    assert (normalisation.sign, contrast.sign, contrast.how) == (1, 1, "uncertain")


def test_the_box_is_the_sources_own_unless_a_smaller_one_is_asked_for(table: ParticleTable) -> None:
    assert settle_box(table, None) == 32
    assert settle_box(table, 24) == 24


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (34, "never enlarged: give --box with an even number up to 32"),
        (23, "give --box 22"),
        (4, "give --box 8"),
    ],
)
def test_a_box_that_cannot_be_is_refused(table: ParticleTable, box: int, message: str) -> None:
    with pytest.raises(ParticleFormatError, match=message):
        settle_box(table, box)


@pytest.mark.parametrize("diameter", [0.0, 160.0, 500.0])
def test_a_diameter_that_leaves_no_background_is_refused(table: ParticleTable, diameter: float) -> None:
    with pytest.raises(ParticleFormatError, match="smaller --particle-diameter"):
        check_diameter(table, diameter)


def test_a_diameter_must_fit_the_narrowest_of_the_groups(table: ParticleTable) -> None:
    check_diameter(table, 150.0)
    narrow = replace(table, optics=(*table.optics, replace(table.optics[0], box_size=28)))
    with pytest.raises(ParticleFormatError, match="the box is 140 A wide"):
        check_diameter(narrow, 150.0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((32, 32), 5.0), "constant background"),
        (np.zeros((32, 32)), "constant background"),
        (np.where(np.eye(32) > 0, np.nan, np.random.default_rng(0).normal(size=(32, 32))), "not finite"),
    ],
)
def test_an_image_that_cannot_be_normalised_is_named(tmp_path: Path, image: np.ndarray, message: str) -> None:
    table = write_particles(tmp_path / "p", particles=60)
    replace_image(table, 50, image)
    number = int(table.stack_index[50]) + 1
    with pytest.raises(ParticleFormatError, match=rf"b\.mrcs: image {number:06d} \(row 51 of .*{message}"):
        _normalised(table, np.arange(60), Normalisation(24))
