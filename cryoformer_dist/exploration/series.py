"""Series of maps read from files, and the motion along those that a run has written of its principal axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.motion import MovingPart, describe_motion, measure_imbalance
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.layout import SERIES_MAPS, VOLUMES

_SAME_SIZE = 1e-3


@dataclass(frozen=True, slots=True)
class MotionAlong:
    """The parts that move from the first to the last map of a series, such as ``pc1``; and what comes or goes.

    Attributes
    ----------
    imbalance
        As `measure_imbalance` has it.
    """

    series: str
    parts: tuple[MovingPart, ...]
    imbalance: float


def read_series(files: Sequence[Path]) -> tuple[Float[np.ndarray, "maps box box box"], float]:
    """At least one map, in the order given, and their voxel size in angstrom.

    Raises
    ------
    ExplorationError
        If they differ in box or voxel size.
    """
    volumes = [read_volume(file) for file in files]
    first = volumes[0]
    for file, volume in zip(files, volumes, strict=True):
        differs = abs(volume.voxel_size_angstrom - first.voxel_size_angstrom) > _SAME_SIZE * first.voxel_size_angstrom
        if volume.voxels.shape != first.voxels.shape or differs:
            raise ExplorationError(f"{file}: has another box or voxel size than {files[0]}; resample it on that map")
    return np.stack([volume.voxels.numpy() for volume in volumes]), first.voxel_size_angstrom


def find_series(run: Path, name: str) -> list[Path]:
    """Maps of a series that a run has written, in order."""
    return sorted((run / VOLUMES).glob(SERIES_MAPS.format(series=name)))


def describe_axes(run: Path) -> tuple[MotionAlong, ...]:
    """The motion along each principal axis that a run has written maps of."""
    names = sorted({file.stem.rpartition("_")[0] for file in find_series(run, "pc*")})
    series = {name: files for name in names if len(files := find_series(run, name)) > 1}
    return tuple(_describe_along(name, *read_series(files)) for name, files in series.items())


def _describe_along(name: str, maps: Float[np.ndarray, "maps box box box"], voxel_size_angstrom: float) -> MotionAlong:
    return MotionAlong(name, describe_motion(maps, voxel_size_angstrom), measure_imbalance(maps))
