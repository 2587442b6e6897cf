import math

import pytest
import torch
from support.blobs import Blobs, blobs, correlation, microscope, no_shift

from cryoformer_dist.physics.backprojection import FourierAccumulator
from cryoformer_dist.physics.ctf import CTFParams, contrast_transfer_function, transfer_at
from cryoformer_dist.physics.fourier import fourier_shell_correlation, fourier_to_image, image_to_fourier, phase_ramp
from cryoformer_dist.physics.grids import centred_axis, frequency_grid, largest_disc
from cryoformer_dist.physics.pose import Pose, random_rotations

BOX, PIXEL, COUNT = 32, 2.0, 600


@pytest.fixture(scope="module")
def views() -> Pose:
    """Random orientations, with shifts of a pixel or two."""
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotations(COUNT, generator)
    return Pose(rotation, torch.randn(COUNT, 2, generator=generator) * 1.5 * PIXEL)


@pytest.fixture(scope="module")
def clean(views) -> torch.Tensor:
    return blobs(1.2).images(views.rotation, -views.shift_angstrom / PIXEL, BOX)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return blobs(1.2).voxels(BOX)


def reconstruct(images: torch.Tensor, pose: Pose, ctf: CTFParams | None = None, wiener: float = 1e-2) -> torch.Tensor:
    accumulator = FourierAccumulator(BOX, PIXEL)
    accumulator.add(images, pose, ctf or microscope(len(images)))
    return accumulator.solve(wiener)


def area(found: torch.Tensor, truth: torch.Tensor) -> float:
    return fourier_shell_correlation(found, truth, PIXEL).area


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_clean_images_give_the_map_back(clean, views, truth):
    found = reconstruct(clean, views)
    assert area(found, truth) > 0.98
    # In the map's own units, not only its shape.
    assert float((found * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.05)


def test_images_may_come_as_coefficients(clean, views):
    index, frequency = largest_disc(BOX)
    accumulator = FourierAccumulator(BOX, PIXEL)
    assert torch.equal(accumulator.flat_index, index)
    coefficients = image_to_fourier(clean).flatten(1)[:, index]
    centred = coefficients * phase_ramp(frequency, views.shift_angstrom / PIXEL)
    accumulator.insert(centred, transfer_at(microscope(COUNT), frequency, torch.full((COUNT,), PIXEL)), views.rotation)
    assert torch.equal(accumulator.solve(1e-2), reconstruct(clean, views))


def test_density_far_from_the_centre_is_as_high_as_at_the_centre(views):
    pair = Blobs(1.5, torch.tensor([[0.0, 0.0, 0.0], [7.0, 7.0, 7.0]]), torch.ones(2))
    found = reconstruct(pair.images(views.rotation, no_shift(COUNT), BOX), Pose(views.rotation, no_shift(COUNT)))
    middle, far = BOX // 2, BOX // 2 + 7
    # Gridding alone would leave 89 % of it.
    assert float(found[far, far, far] / found[middle, middle, middle]) == pytest.approx(1, abs=0.03)


def test_wrong_conventions_do_not_give_the_map_back(clean, views, truth):
    assert area(reconstruct(clean, Pose(views.rotation.mT, views.shift_angstrom)), truth) < 0.5
    assert area(reconstruct(clean, Pose(views.rotation, -views.shift_angstrom)), truth) < 0.5
    assert area(reconstruct(clean.mT, views), truth) < 0.5


def test_images_may_come_in_any_blocks(clean, views, truth):
    accumulator = FourierAccumulator(BOX, PIXEL)
    for block in torch.arange(COUNT).split(250):
        accumulator.add(clean[block], views[block], microscope(len(block)))
    assert torch.allclose(accumulator.solve(1e-2), reconstruct(clean, views), atol=1e-4)


def test_ctf_is_undone(views, truth):
    # Twice the field of view, so that what the defocus spreads beyond the box is not wrapped around.
    ctf = microscope(
        COUNT, defocus_u_angstrom=3000.0, defocus_v_angstrom=2500.0, phase_shift_deg=0.0, amplitude_contrast=0.1
    )
    ctf.defocus_u_angstrom.add_(torch.linspace(0, 4000, COUNT))
    wide = image_to_fourier(blobs(1.2).images(views.rotation, -views.shift_angstrom / PIXEL, 2 * BOX))
    transfer = contrast_transfer_function(ctf, frequency_grid(2 * BOX)[None] / PIXEL)
    images = fourier_to_image(wide * transfer, 2 * BOX)[:, BOX // 2 : -BOX // 2, BOX // 2 : -BOX // 2]
    assert area(reconstruct(images, views, ctf), truth) > 0.9
    assert area(reconstruct(images, views), truth) < 0.5


def test_noise_averages_out_with_the_number_of_images(clean, views, truth):
    noisy = clean + 4 * clean.std() * noise(COUNT, BOX, BOX)
    few = torch.arange(60)
    one, all_of_them = reconstruct(noisy[few], views[few], wiener=1.0), reconstruct(noisy, views, wiener=1.0)
    low = slice(1, 8)
    curves = [fourier_shell_correlation(found, truth, PIXEL).correlation[low] for found in (one, all_of_them)]
    assert float(curves[1].mean()) > 0.9
    assert float(curves[1].mean() - curves[0].mean()) > 0.1


def test_halves_of_pure_noise_do_not_agree(views):
    halves = [reconstruct(noise(COUNT, BOX, BOX, seed=seed), views, wiener=1.0) for seed in (1, 2)]
    curve = fourier_shell_correlation(*halves, PIXEL).correlation
    assert float(curve[4:].abs().max()) < 0.2


def test_a_single_image_gives_its_own_projection_back_with_every_direction_weighed_the_same():
    image = blobs(1.5).images(torch.eye(3)[None], no_shift(1), BOX)
    # With this much regularisation, a frequency inserted twice would come out half as strong again.
    found = reconstruct(image, Pose(torch.eye(3)[None], no_shift(1)), wiener=1.0).sum(0)
    falloff = torch.sinc(centred_axis(BOX) / (2 * BOX)) ** 2
    found = found * falloff[:, None] * falloff
    assert float(correlation(found[None], image)) > 0.99995


def test_map_of_an_image_does_not_depend_on_the_side_it_is_seen_from():
    # Friedel: seen from behind, a projection is its own mirror image.
    pose = Pose(random_rotations(1, torch.Generator().manual_seed(5)), no_shift(1))
    behind = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    front = blobs(1.2).images(pose.rotation, no_shift(1), BOX)
    back = torch.roll(front.flip(-1), 1, dims=-1)
    from_front, from_behind = reconstruct(front, pose), reconstruct(back, Pose(behind @ pose.rotation, no_shift(1)))
    assert float((from_front - from_behind).norm() / from_front.norm()) < 0.02


@pytest.mark.parametrize("pixel_size", [1.6, 2.5])
def test_images_of_another_pixel_size_are_scaled_to_the_map(views, truth, pixel_size):
    phantom = blobs(1.2).as_stored(PIXEL / pixel_size)
    images = phantom.images(views.rotation, -views.shift_angstrom / pixel_size, BOX)
    accumulator = FourierAccumulator(BOX, PIXEL)
    accumulator.add(images, views, microscope(COUNT), torch.full((COUNT,), pixel_size))
    shells = slice(1, math.floor(BOX / 2 * min(PIXEL / pixel_size, 1)) - 1)
    told = fourier_shell_correlation(accumulator.solve(1e-2), truth, PIXEL).correlation[shells]
    assert float(told.mean()) > 0.97
    untold = fourier_shell_correlation(reconstruct(images, views), truth, PIXEL).correlation[shells]
    assert float(untold.mean()) < 0.8


def test_two_pixel_sizes_make_one_map(views, clean, truth):
    half = COUNT // 2
    other = blobs(1.2).as_stored(PIXEL / 1.6).images(views.rotation[half:], -views.shift_angstrom[half:] / 1.6, BOX)
    pixel = torch.cat([torch.full((half,), PIXEL), torch.full((half,), 1.6)])
    images = torch.cat([clean[:half], other])
    for part in torch.arange(COUNT), torch.arange(half, COUNT):
        accumulator = FourierAccumulator(BOX, PIXEL)
        accumulator.add(images[part], views[part], microscope(len(part)), pixel[part])
        found = accumulator.solve(1e-2)
        assert area(found, truth) > 0.97
        # As high as the map's own images make it, the others alone too.
        assert float((found * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.05)


def test_accumulators_add_up_by_their_sums(views, clean):
    half = COUNT // 2
    whole, first, second = (FourierAccumulator(BOX, PIXEL) for _ in range(3))
    whole.add(clean, views, microscope(COUNT))
    first.add(clean[:half], Pose(views.rotation[:half], views.shift_angstrom[:half]), microscope(half))
    second.add(clean[half:], Pose(views.rotation[half:], views.shift_angstrom[half:]), microscope(COUNT - half))
    first.sums += second.sums
    expected = whole.solve()
    assert torch.allclose(first.solve(), expected, atol=1e-5 * float(expected.abs().max()))


def test_no_images_give_an_empty_map():
    assert torch.equal(FourierAccumulator(16, 1.0).solve(), torch.zeros(16, 16, 16))
