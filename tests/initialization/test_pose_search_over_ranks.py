"""Poses found by several ranks together are those that one finds alone."""

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks
from support.tiny_runs import write_set

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.initialization.pose_search import (
    LinearConformations,
    search_poses,
    search_poses_by_conformation,
)
from cryoformer_dist.initialization.search_rounds import SearchRound
from cryoformer_dist.physics.pose import rotation_angle_deg
from cryoformer_dist.ranks import rank_and_world

# They do not divide by two or three.
COUNT = 121
# Where two candidates are equally probable, sums in another order may tip the balance: of so many particles, no more.
TIPPED = 0.03


@pytest.fixture(scope="module")
def astray(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A rigid molecule, its poses off."""
    perturbation, states = {"rotation_variance": 0.047, "shift_pixels": 10}, {"kind": "discrete", "count": 1}
    folder = tmp_path_factory.mktemp("astray")
    return str(write_set(folder, particles=COUNT, box=32, snr=20, perturbation=perturbation, states=states))


def _search(path: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    store, rows, told = ParticleStore.open(path), np.arange(COUNT), []
    found = search_poses(store, rows, 0, lambda *call: told.append(call))
    latents = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(1))
    maps = 0.01 * torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    pose = search_poses_by_conformation(
        store,
        rows,
        found.pose,
        LinearConformations(latents - latents.mean(0), maps),
        (SearchRound(8, 8.0, 20, 1.0, 1.0),),
        0,
    )
    return {
        "rotation": found.pose.rotation,
        "shift": found.pose.shift_angstrom,
        "agreement": torch.tensor([found.agreement_given, found.agreement_found]),
        "rotation by conformation": pose.rotation,
        "shift by conformation": pose.shift_angstrom,
        "told": torch.tensor(told),
    }


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_poses_are_found_on_any_number_of_ranks(astray: str, world: int) -> None:
    alone, ranks = _search(astray), run_on_ranks(world, _search, astray)
    assert alone["agreement"][1] > alone["agreement"][0] + 0.2
    for name in alone.keys() - {"told"}:
        # Every rank returns the same, to the bit, and all of it.
        assert all(torch.equal(found[name], ranks[0][name]) for found in ranks), name
    torch.testing.assert_close(ranks[0]["agreement"], alone["agreement"], rtol=0, atol=5e-3)
    for kind in ("", " by conformation"):
        turned = rotation_angle_deg(ranks[0]["rotation" + kind], alone["rotation" + kind])
        moved = (ranks[0]["shift" + kind] - alone["shift" + kind]).norm(dim=1)
        assert float(((turned > 0.1) | (moved > 0.1)).float().mean()) <= TIPPED
    # Each tells of all particles, not of its share.
    assert all(found["told"][-1].tolist() == alone["told"][-1].tolist() for found in ranks)


def _search_few(path: str) -> dict[str, torch.Tensor]:
    found = search_poses(ParticleStore.open(path), np.arange(3), 0)
    return {"rotation": found.pose.rotation, "rank": torch.tensor(rank_and_world()[0])}


def test_a_rank_may_have_no_particle_of_a_half(astray: str) -> None:
    alone, ranks = _search_few(astray), run_on_ranks(3, _search_few, astray)
    assert [int(found["rank"]) for found in ranks] == [0, 1, 2]
    assert all(torch.equal(found["rotation"], ranks[0]["rotation"]) for found in ranks)
    assert ranks[0]["rotation"].shape == alone["rotation"].shape == (3, 3, 3)
