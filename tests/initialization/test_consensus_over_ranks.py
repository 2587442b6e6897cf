"""What is made by several ranks together is what one makes alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.linear_model import fit_linear_latents, fit_principal_maps
from cryoformer_dist.initialization.occupancy import sphere

# They do not divide by two or three.
ROWS = np.arange(301)


def _make(path: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    store = ParticleStore.open(path)
    consensus = back_project(store, ROWS)
    latents = fit_linear_latents(store, ROWS, sphere(32), 3, seed=0)
    maps = fit_principal_maps(store, ROWS, sphere(32), latents)
    return {"whole": consensus.voxels, "half": consensus.halves[1], "latents": latents, "maps": maps}


@pytest.mark.parametrize("world", [2, 3])
def test_maps_and_coordinates_are_the_same_on_any_number_of_ranks(swinging: Path, world: int) -> None:
    alone = _make(str(swinging))
    assert alone["latents"].shape == (301, 3)
    ranks = run_on_ranks(world, _make, str(swinging))
    for name, expected in alone.items():
        for found in ranks:
            # Sums in another order, and six rounds that carry it on.
            tolerance = 1e-5 if name in ("whole", "half") else 2e-3
            torch.testing.assert_close(found[name], expected, rtol=0, atol=tolerance * float(expected.abs().max()))
        assert torch.equal(ranks[0][name], ranks[-1][name])


def _make_of_few(path: str) -> dict[str, torch.Tensor]:
    consensus = back_project(ParticleStore.open(path), np.arange(2))
    return {"half": consensus.halves[0], "other": consensus.halves[1]}


def test_a_rank_may_have_no_particle_of_a_half(swinging: Path) -> None:
    alone = _make_of_few(str(swinging))
    for found in run_on_ranks(3, _make_of_few, str(swinging)):
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected)
