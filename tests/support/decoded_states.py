"""States of the molecule of `rotating_blobs` as a trained run decodes them: densities and attention at some points."""

import numpy as np
from support.rotating_blobs import BOX, blobs

from cryoformer_dist.analysis.trained import DecodedState

ANGLES = np.arange(0.0, 360.0, 30.0)
TRUTH = blobs(ANGLES)
POINTS = np.arange(0, BOX**3, 2)
MOVING = TRUTH.std(axis=0).ravel()[POINTS]


def decoded(queries: int = 3) -> list[DecodedState]:
    """The true maps at every second voxel; attention 0 still, 1 marks what moves, 2 is the rest."""
    states = []
    for angle, voxels in zip(ANGLES, TRUTH, strict=True):
        attention = np.zeros((len(POINTS), queries), dtype=np.float32)
        attention[:, 0] = 0.25
        attention[:, 1] = MOVING + 0.01 * np.cos(angle)
        attention[:, 2] = 1 - attention[:, :2].sum(axis=1)
        states.append(DecodedState(voxels.ravel()[POINTS], attention))
    return states
