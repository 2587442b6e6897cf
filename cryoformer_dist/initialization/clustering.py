"""K-means on any device: the one way in which points are grouped here."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PointClusters:
    """Outcome of k-means, on the points' device.

    Attributes
    ----------
    centre
        ``(clusters, dimensions)``: means of the members; of a cluster without any, where it was last.
    label
        ``(points,)``: nearest centre of each.
    share
        ``(clusters,)``: of the points.
    """

    centre: Float[Tensor, "clusters dimensions"]
    label: Int[Tensor, " points"]
    share: Float[Tensor, " clusters"]


@torch.no_grad()
def find_clusters(points: Float[Tensor, "points dimensions"], count: int, seed: int, rounds: int) -> PointClusters:
    """Lloyd's rounds from a start by k-means++, in double precision; a GPU is waited for in neither.

    On a GPU last bits may change from call to call: one rank asks, and tells the others.

    Parameters
    ----------
    points
        At least one.
    count
        How many clusters; where there are fewer distinct points, some stay empty.
    seed
        Of the start.
    rounds
        How often centres are moved.
    """
    wide = points.double()
    centre = _spread_out(wide, count, seed)
    label = _nearest(wide, centre)
    for _ in range(rounds):
        members = _add_up(torch.ones_like(wide[:, :1]), label, count)
        centre = torch.where(members > 0, _add_up(wide, label, count) / members.clamp_min(1), centre)
        label = _nearest(wide, centre)
    share = _add_up(torch.ones_like(points[:, 0]), label, count) / len(points)
    return PointClusters(centre.to(points.dtype), label, share)


def _spread_out(points: Tensor, count: int, seed: int) -> Tensor:
    """Points of k-means++: each drawn with the squared distance from the nearest one so far as its weight."""
    draws = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(points.device)
    distance, chosen = torch.ones_like(points[:, 0]), []
    for number in range(count):
        passed = distance.cumsum(0)
        drawn = draws[number : number + 1] * passed[-1:]
        place = torch.searchsorted(passed, drawn, right=True).clamp_max(len(points) - 1)
        chosen.append(points[place])
        away = (points - chosen[-1]).square().sum(1)
        distance = away if len(chosen) == 1 else torch.minimum(distance, away)
    return torch.cat(chosen)


def _nearest(points: Tensor, centre: Tensor) -> Tensor:
    return (centre.square().sum(1) - 2 * points @ centre.T).argmin(1)


def _add_up(values: Tensor, label: Tensor, count: int) -> Tensor:
    """Sum of the members' values of each cluster."""
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, label, values)
