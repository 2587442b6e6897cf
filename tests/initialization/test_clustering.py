import pytest
import torch
from scipy.cluster.vq import kmeans2

from cryoformer_dist.initialization.clustering import find_clusters


def _cloud(count: int = 3_000, dimensions: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) * torch.tensor([5.0, 2.0, 1.0, 0.5])


def _spread(points: torch.Tensor, centre: torch.Tensor, label: torch.Tensor) -> float:
    """What k-means makes small."""
    return float((points - centre[label]).square().sum(1).mean())


def test_groups_that_stand_apart_are_found_whole() -> None:
    middle = torch.tensor([[0.0, 0.0], [9.0, 0.0], [3.0, 8.0], [-6.0, -7.0]])
    member = torch.arange(400) % 4
    points = middle[member] + 0.1 * _cloud(400)[:, :2]
    found = find_clusters(points, 4, seed=0, rounds=5)
    assert torch.equal(found.label[:, None] == found.label, member[:, None] == member)
    torch.testing.assert_close(found.share, torch.full((4,), 0.25))
    for name in range(4):
        torch.testing.assert_close(found.centre[name], points[found.label == name].mean(0))


@pytest.mark.parametrize("count", [1, 12, 200])
def test_clusters_are_as_tight_as_those_of_another_program(count: int) -> None:
    points = _cloud()
    found = find_clusters(points, count, seed=1, rounds=20)
    centres, label = kmeans2(points.double().numpy(), count, iter=20, minit="++", rng=1)
    expected = _spread(points, torch.from_numpy(centres).float(), torch.from_numpy(label).long())
    assert _spread(points, found.centre, found.label) < 1.03 * expected


def test_the_same_seed_gives_the_same_clusters_and_another_one_others() -> None:
    first, again, other = (find_clusters(_cloud(), 30, seed, 3) for seed in (0, 0, 1))
    assert torch.equal(first.centre, again.centre)
    assert not torch.equal(first.centre, other.centre)


def test_clusters_beyond_the_distinct_points_stay_empty() -> None:
    points = torch.tensor([[0.0], [1.0], [5.0]]).repeat(20, 1)
    found = find_clusters(points, 10, seed=0, rounds=4)
    assert sorted(found.centre[found.share > 0].ravel().tolist()) == [0.0, 1.0, 5.0]
    assert float(found.share.sum()) == pytest.approx(1)
    assert torch.equal(found.centre[found.label], points)


def test_a_common_offset_changes_nothing_but_the_centres() -> None:
    here, away = (find_clusters(_cloud(500).double() + offset, 8, 0, 10) for offset in (0.0, 1_000.0))
    assert torch.equal(here.label, away.label)
    torch.testing.assert_close(here.centre + 1_000, away.centre)
