import numpy as np
import torch

from cryoformer_dist.model.grid_layout import GridLayout, corner_weights


def test_coarse_levels_are_dense_and_fine_ones_full_tables():
    layout = GridLayout.of(levels=6, base_resolution=4, growth=2.0, table_size=2**10)
    sizes = np.diff(layout.offsets)
    assert layout.resolutions == (4, 8, 16, 32, 64, 128)
    assert sizes.tolist() == [64, 512, 1024, 1024, 1024, 1024]
    assert layout.entries == sum(sizes)


def test_dense_level_gives_every_vertex_an_entry_of_its_own():
    layout = GridLayout.of(levels=1, base_resolution=4, growth=1.0, table_size=2**10)
    axis = (torch.arange(3) + 0.25) / layout.scales[0]
    entry, fraction = layout.corners(torch.cartesian_prod(axis, axis, axis))
    assert torch.allclose(fraction, torch.tensor(0.75), atol=1e-6)
    assert sorted(entry.unique().tolist()) == list(range(4**3))


def test_corner_weights_sum_to_one_and_pick_the_corner_a_point_sits_on():
    fraction = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(corner_weights(fraction).sum(-1), torch.ones(100), atol=1e-6)
    for corner in range(8):
        on_corner = torch.tensor([float(corner >> axis & 1) for axis in range(3)])
        assert corner_weights(on_corner).tolist() == [float(number == corner) for number in range(8)]
