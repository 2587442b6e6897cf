import torch

from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.physics.grids import lattice_points
from cryoformer_dist.physics.lattice import Lattice


def test_a_lattice_holds_the_points_of_its_mask_in_the_order_of_the_volume() -> None:
    mask = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    lattice = Lattice.of(mask, 3, 0)
    back = torch.zeros(8**3, dtype=torch.bool)
    back[lattice.flat_index] = True
    assert torch.equal(back.reshape(8, 8, 8), mask)
    assert torch.equal(lattice.points_pixels, lattice_points(8)[lattice.flat_index])


def test_shifted_copies_stay_within_a_voxel_and_come_from_the_seed() -> None:
    mask = sphere(8)
    one, same, other = Lattice.of(mask, 5, 0), Lattice.of(mask, 5, 0), Lattice.of(mask, 5, 1)
    assert one.offsets_pixels.shape == (5, 3)
    assert one.offsets_pixels.abs().max() <= 0.5
    assert torch.equal(one.offsets_pixels, same.offsets_pixels)
    assert not torch.equal(one.offsets_pixels, other.offsets_pixels)
    assert torch.equal(Lattice.of(mask, 1, 0).offsets_pixels, torch.zeros(1, 3))


def test_a_coarser_lattice_covers_the_same_places_with_fewer_points() -> None:
    fine = Lattice.of(sphere(16), 3, 0)
    coarse = fine.coarsened(16, 8)
    assert torch.equal(coarse.points_pixels, lattice_points(8)[coarse.flat_index] * 2)
    assert torch.equal(coarse.offsets_pixels, fine.offsets_pixels * 2)
    distance = torch.cdist(fine.points_pixels, coarse.points_pixels).min(1).values
    # Half a cell's diagonal, but for the last plane, whose nearest neighbour lies outside the box.
    assert (distance <= 3**0.5 + 1e-5).float().mean() > 0.9
    assert len(coarse.points_pixels) < len(fine.points_pixels) / 5
