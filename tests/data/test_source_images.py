from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.blobs import correlation
from support.simulated_particles import PIXEL_SIZE_ANGSTROM, replace_image, source_images, write_particles

from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.source_images import as_recorded, describe_corrections
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.io.particles import Correction, Imaging, ParticleTable
from cryoformer_dist.physics.aberrations import odd_phase, with_beam_tilt
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import crop_images, fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid

BOX = 32
CORRECTIONS = ("phases flipped", "multiplied by CTF")


def _corrected(images: torch.Tensor, table: ParticleTable, correction: Correction) -> torch.Tensor:
    """What another program makes of images as recorded."""
    pixel = torch.full((len(images),), PIXEL_SIZE_ANGSTROM)
    transfer = transfer_at(table.ctf_params(), frequency_grid(BOX), pixel)
    factor = {"none": torch.ones_like(transfer), "phases flipped": transfer.sign(), "multiplied by CTF": transfer}
    return fourier_to_image(image_to_fourier(images) * factor[correction], BOX)


def _as_told(table: ParticleTable, correction: Correction) -> ParticleTable:
    return replace(table, optics=(replace(table.optics[0], imaging=Imaging(correction)),))


def _store(folder: Path, written: Correction, told: Correction) -> ParticleStore:
    """A store of the same particles, corrected by another program before they were written."""
    table = write_particles(folder, particles=400, noise_ratio=4.0)
    for row, image in enumerate(_corrected(torch.from_numpy(source_images(table)), table, written)):
        replace_image(table, row, image.numpy())
    options = ConversionOptions(contrast="light")
    return convert_serially(plan_conversion(_as_told(table, told), folder / "s.zarr", options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    return _store(tmp_path_factory.mktemp("plain"), "none", "none")


def _consensus(store: ParticleStore) -> torch.Tensor:
    return back_project(store, np.arange(len(store))).voxels


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_corrected_images_give_the_store_and_the_map_of_the_plain_ones(
    plain: ParticleStore, tmp_path: Path, correction: Correction
) -> None:
    store = _store(tmp_path, correction, correction)
    rows = np.arange(400)
    images, wanted = (torch.from_numpy(each.read_images(rows).astype(np.float32)) for each in (store, plain))
    # But for the Nyquist lines, which astigmatism makes ambiguous and nobody compares.
    images, wanted = crop_images(images, BOX - 2), crop_images(wanted, BOX - 2)
    assert correlation(images, wanted).min() > (0.999999 if correction == "phases flipped" else 0.98)
    assert store.attributes.optics[0].imaging == Imaging(correction)
    # Their noise is as white, and as strong.
    assert store.attributes.noise[0].white
    assert store.attributes.noise[0].deviation == pytest.approx(plain.attributes.noise[0].deviation, rel=0.03)
    one, other = _consensus(store), _consensus(plain)
    assert float((one * other).sum() / (one.norm() * other.norm())) > 0.999
    assert (one - other).norm() < 0.04 * other.norm()


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_taken_for_plain_ones_they_give_another_map(
    plain: ParticleStore, tmp_path: Path, correction: Correction
) -> None:
    one, other = _consensus(_store(tmp_path, correction, "none")), _consensus(plain)
    assert float((one * other).sum() / (one.norm() * other.norm())) < 0.98


def test_an_aberrated_image_corrected_equals_the_plain_one(plain: ParticleStore, tmp_path: Path) -> None:
    odd = with_beam_tilt((0.0, 0.0, 3000.0), (60.0, -30.0), 2.7, 0.0197)
    table = write_particles(tmp_path, particles=400, noise_ratio=4.0)
    images = torch.from_numpy(source_images(table))
    phase = odd_phase(odd, frequency_grid(BOX) / PIXEL_SIZE_ANGSTROM)
    turned = image_to_fourier(images) * torch.polar(torch.ones_like(phase), phase).to(torch.complex64)
    aberrated = fourier_to_image(turned, BOX)
    for row, image in enumerate(aberrated):
        replace_image(table, row, image.numpy())
    # Far from the field's, where pixels are finer.
    assert correlation(aberrated, images).max() < 0.9
    told = replace(table, optics=(replace(table.optics[0], imaging=Imaging(odd_zernike=odd)),))
    corrected = as_recorded(aberrated, told)
    torch.testing.assert_close(crop_images(corrected, BOX - 2), crop_images(images, BOX - 2), rtol=0, atol=1e-3)
    assert describe_corrections(told.optics) == ["odd aberrations (beam tilt, trefoil) in 1 of 1 optics groups"]
    store = convert_serially(plan_conversion(told, tmp_path / "s.zarr", ConversionOptions(contrast="light")))
    one, other = _consensus(store), _consensus(plain)
    assert (one - other).norm() < 0.02 * other.norm()


def test_even_aberrations_are_part_of_the_ctf_that_a_store_gives(tmp_path: Path) -> None:
    table, even = write_particles(tmp_path, particles=60), (0.1, 0.0, 30.0, 20.0)
    told = replace(table, optics=(replace(table.optics[0], imaging=Imaging(even_zernike=even)),))
    options = ConversionOptions(contrast="light", box_size=24)
    particles = convert_serially(plan_conversion(told, tmp_path / "s.zarr", options)).particles()
    assert not particles.noise_filter
    rows, pixel = particles.source_row, torch.full((60,), PIXEL_SIZE_ANGSTROM * BOX / 24)
    found = transfer_at(particles.ctf(np.arange(60)), frequency_grid(24), pixel)
    expected = transfer_at(told.select(rows).ctf_params(), frequency_grid(24), pixel)
    torch.testing.assert_close(found, expected)
    assert (found - transfer_at(table.select(rows).ctf_params(), frequency_grid(24), pixel)).abs().max() > 0.1


def test_what_a_multiplication_has_lost_is_not_blown_up(tmp_path: Path) -> None:
    table = _as_told(write_particles(tmp_path, particles=20), "multiplied by CTF")
    noise = torch.randn(20, BOX, BOX, generator=torch.Generator().manual_seed(0))
    # Errors that no CTF has touched, as of cutting a box.
    assert as_recorded(noise, table).std() < 10 * noise.std()


def test_images_of_which_nothing_is_said_are_left_alone(tmp_path: Path) -> None:
    table = write_particles(tmp_path, particles=20)
    images = torch.from_numpy(source_images(table))
    assert as_recorded(images, table) is images
    assert describe_corrections(table.optics) == []
    optics = (*_as_told(table, "phases flipped").optics, *table.optics)
    assert describe_corrections(optics) == ["phases flipped in 1 of 2 optics groups"]
