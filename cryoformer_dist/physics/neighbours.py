"""A voxel and its 26 neighbours: maps smoothed and masks widened by one voxel."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def smooth(voxels: Float[Tensor, "box box box"]) -> Float[Tensor, "box box box"]:
    """Mean over each voxel and its 26 neighbours, of which those beyond the box count as zero."""
    return torch.nn.functional.avg_pool3d(voxels[None, None], 3, 1, 1)[0, 0]


def widen(mask: Bool[Tensor, "box box box"]) -> Bool[Tensor, "box box box"]:
    """The voxels of a mask and all their neighbours."""
    return torch.nn.functional.max_pool3d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0
