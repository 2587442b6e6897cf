import torch
from support.blobs import blobs

from cryoformer_dist.initialization.projection_matching import ReferenceMap
from cryoformer_dist.initialization.search_rounds import (
    draw_cone,
    list_shifts,
)
from cryoformer_dist.physics.pose import (
    random_rotations,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_of_some_candidates_the_true_turn_and_shift_are_the_most_likely() -> None:
    phantom, rotation = blobs(), random_rotations(20, _generator(3))
    reference = ReferenceMap(phantom.voxels(32), shell=12)
    cone, shifts = draw_cone(30, 25.0, _generator(4)), list_shifts(2.0, 1.0)
    turn = torch.arange(20) % 30
    move = torch.arange(20) % len(shifts)
    # The true rotation of each is a candidate's; the stored shift centres the image.
    images = phantom.images(cone[turn] @ rotation, -shifts[move], 32)
    weighted = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))).flatten(1)[:, reference.slices.flat_index]
    candidates = torch.einsum("cij,bjk->bcik", cone, rotation)
    energy, transfer = weighted.abs().square().sum(1), torch.ones(weighted.shape)
    even = torch.zeros(20, len(cone))
    found_turn, found_move = reference.find_most_probable(weighted, energy, transfer, candidates, even, shifts)
    assert torch.equal(found_turn, turn)
    assert torch.equal(found_move, move)
    # Of images that show next to nothing, expectation decides; of those that show something, it does not.
    expected = even - 20 * (torch.arange(len(cone)) != 5)
    turn_seen, _ = reference.find_most_probable(weighted, energy, transfer, candidates, expected, shifts)
    assert torch.equal(turn_seen, turn)
    noise = torch.complex(*(energy.mean().sqrt() * torch.randn(2, *weighted.shape, generator=_generator(5))))
    drowned = weighted + 10 * noise
    energy = drowned.abs().square().sum(1)
    turn_expected, _ = reference.find_most_probable(drowned, energy, transfer, candidates, expected, shifts)
    assert torch.equal(turn_expected, torch.full((20,), 5))


def test_what_one_particle_finds_does_not_depend_on_the_others() -> None:
    phantom, rotation = blobs(), random_rotations(6, _generator(6))
    reference = ReferenceMap(phantom.voxels(32), shell=8)
    cone, shifts = draw_cone(10, 25.0, _generator(7)), list_shifts(1.0, 1.0)
    images = phantom.images(rotation, torch.zeros(6, 2), 32)
    # One far noisier than the others.
    images += torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 5.0])[:, None, None] * torch.randn(
        6, 32, 32, generator=_generator(8)
    )
    weighted = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))).flatten(1)[:, reference.slices.flat_index]
    candidates, prior = torch.einsum("cij,bjk->bcik", cone, rotation), torch.zeros(6, len(cone))
    asked = (weighted, weighted.abs().square().sum(1), torch.ones(weighted.shape), candidates, prior)
    together = reference.log_posterior(*asked, shifts)
    assert together.shape == (6, len(cone), len(shifts))
    alone = reference.log_posterior(*(each[2:3] for each in asked), shifts)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-2)
