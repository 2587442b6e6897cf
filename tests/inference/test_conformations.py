"""Poses seen from one another, and slopes of images along them."""

import torch
from support.blobs import blobs, microscope, rotations

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.inference import conformations
from cryoformer_dist.inference.conformations import ConformationMixture, move, see_from
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.slices import TrilinearSlices

BOX, PIXEL_ANGSTROM = 32, 4.0
COUNT = len(rotations())
SHIFT_ANGSTROM = 6 * torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(1))
POSE = Pose(rotations(), SHIFT_ANGSTROM)
OFFSET = torch.tensor([0.02, -0.01, 0.015, 0.4, -0.3]).expand(COUNT, -1)


def _mixture() -> ConformationMixture:
    """A map and a change of it, in two conformations."""
    voxels = blobs().voxels(BOX)
    maps = torch.stack([voxels, 0.3 * voxels.roll(2, 0)])
    return ConformationMixture(
        latent=torch.zeros(2, 1),
        log_share=torch.full((2,), 0.5).log(),
        mixture=torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        strength=torch.tensor([1.0, 1.25]),
        slices=TrilinearSlices(maps, BOX // 2 - 1),
        leading_slices=TrilinearSlices(maps, BOX // 2 - 1),
        map_pixel_angstrom=PIXEL_ANGSTROM,
        box=BOX,
        compared_box=BOX,
    )


def _batch() -> ParticleBatch:
    images = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(2))
    ctf = microscope(COUNT, defocus_u_angstrom=9000.0, defocus_v_angstrom=8000.0, amplitude_contrast=0.1)
    pixels = torch.where(torch.arange(COUNT) % 2 == 0, PIXEL_ANGSTROM, 4.4)
    return ParticleBatch(images, torch.arange(COUNT), POSE, ctf, pixels, 0)


def test_a_pose_moved_by_an_offset_is_seen_under_it() -> None:
    moved = move(POSE, OFFSET)
    torch.testing.assert_close(see_from(POSE, moved), OFFSET.clone(), rtol=1e-3, atol=1e-5)
    back = move(moved, -OFFSET)
    torch.testing.assert_close(back.shift_angstrom, POSE.shift_angstrom)


def test_slopes_say_how_images_change_when_poses_move() -> None:
    mixture, batch = _mixture(), _batch()
    here, there = (mixture.look(batch, pose, with_slopes=True) for pose in (POSE, move(POSE, OFFSET)))
    assert here.slopes is not None
    change = there.maps - here.maps
    told = torch.einsum("bj,bjmk->bmk", OFFSET, here.slopes)
    # To first order: what is left is of second, and interpolation's.
    assert float((change - told).norm()) < 0.2 * float(change.norm())
    cosine = (change * told).sum() / (change.norm() * told.norm())
    assert float(cosine) > 0.985


def test_products_are_those_of_the_mixed_images() -> None:
    mixture, batch = _mixture(), _batch()
    views = mixture.look(batch, POSE, with_slopes=True)
    compared = mixture.compare(views)
    mixed = torch.einsum("cm,bmk->bck", mixture.mixture, views.maps)
    slopes = torch.einsum("cm,bjmk->bcjk", mixture.mixture, views.slopes)
    torch.testing.assert_close(compared.match, torch.einsum("bck,bk->bc", mixed, views.images), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(compared.energy, mixed.square().sum(-1), rtol=1e-4, atol=1e-2)
    assert compared.slope_energy is not None
    torch.testing.assert_close(compared.slope_energy, slopes @ slopes.mT, rtol=1e-3, atol=1.0)
    torch.testing.assert_close(compared.slope_cross, torch.einsum("bcjk,bck->bcj", slopes, mixed), rtol=1e-3, atol=1.0)


def test_noise_has_unit_variance_in_what_is_compared() -> None:
    batch = _batch()
    views = _mixture().look(batch, POSE, with_slopes=False)
    assert abs(float(views.images.square().mean()) - 1) < 0.05
    assert conformations.MOVING_MAPS >= 2


def test_a_turned_map_seen_from_turned_poses_gives_the_same_products() -> None:
    mixture, batch = _mixture(), _batch()
    # By a quarter about z, which moves voxels onto voxels: (x, y) to (-y, x).
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    here = mixture.compare(mixture.look(batch, POSE, with_slopes=False))
    turned = _turned(quarter)
    pose = Pose(POSE.rotation @ quarter.T, POSE.shift_angstrom)
    there = turned.compare(turned.look(batch, pose, with_slopes=False))
    torch.testing.assert_close(there.match, here.match, rtol=5e-3, atol=0.5)
    torch.testing.assert_close(there.energy, here.energy, rtol=5e-3, atol=0.5)


def _turned(quarter: torch.Tensor) -> ConformationMixture:
    """The same maps, turned about the centre by a matrix that permutes axes."""
    voxels = blobs().voxels(BOX)
    maps = torch.stack([voxels, 0.3 * voxels.roll(2, 0)])
    # The centre is voxel box / 2: the first plane has no partner.
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    source = torch.einsum("ij,jzyx->izyx", quarter.T.long(), torch.stack([x, y, z])) + BOX // 2
    sx, sy, sz = source.remainder(BOX)
    maps = maps[:, sz, sy, sx]
    mixture = _mixture()
    slices = TrilinearSlices(maps, BOX // 2 - 1)
    return ConformationMixture(
        mixture.latent, mixture.log_share, mixture.mixture, mixture.strength, slices, slices, PIXEL_ANGSTROM, BOX, BOX
    )


def test_conformations_that_differ_in_strength_alone_are_one_where_particles_have_amplitudes() -> None:
    voxels, batch = blobs().voxels(BOX), _batch()
    slices = TrilinearSlices(torch.stack([voxels, voxels]), BOX // 2 - 1)
    twice = ConformationMixture(
        latent=torch.zeros(2, 1),
        log_share=torch.full((2,), 0.5).log(),
        mixture=torch.tensor([[1.0, -0.2], [1.0, 0.2]]),
        strength=torch.tensor([0.8, 1.2]),
        slices=slices,
        leading_slices=slices,
        map_pixel_angstrom=PIXEL_ANGSTROM,
        box=BOX,
        compared_box=BOX,
    )
    views = twice.look(batch, POSE, with_slopes=False)
    apart, alike = twice.compare(views), twice.equally_strong().compare(views)
    assert float((apart.energy[:, 1] / apart.energy[:, 0] - 2.25).abs().max()) < 1e-3
    torch.testing.assert_close(alike.energy[:, 0], alike.energy[:, 1])
    torch.testing.assert_close(alike.match[:, 0], alike.match[:, 1])
