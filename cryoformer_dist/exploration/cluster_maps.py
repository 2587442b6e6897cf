"""What the images of each k-means cluster say by themselves: back-projections with half maps, beside the network's.

The half maps are of different images, yet not wholly apart: the latents that chose these images, and poses that were
refined, come from one network that saw all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from cryoformer_dist.analysis.map_fsc import compare_maps
from cryoformer_dist.analysis.map_scores import cosine
from cryoformer_dist.analysis.masks import make_solvent_mask
from cryoformer_dist.analysis.reconstruct import CLUSTER_SERIES, read_all_series, write_series
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.local_resolution import ResolutionRange, measure_local_resolution, summarise_resolution
from cryoformer_dist.figures.chimerax import compose_resolution_script
from cryoformer_dist.figures.surfaces import find_common_level
from cryoformer_dist.initialization.consensus import Consensus, back_project
from cryoformer_dist.physics.fourier import FSC_HALF_MAPS, FSC_REFERENCE, weighted_shells
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.directory import load_consensus
from cryoformer_dist.runs.layout import ANALYSIS, SERIES_MAP, SERIES_SCRIPT
from cryoformer_dist.selection.columns import ParticleColumns
from cryoformer_dist.storage.places import write_whole

SERIES = "images"
_HALVES, _RESOLUTION = ("half1", "half2"), "resolution"
_MASK_THRESHOLD = 0.1


@dataclass(frozen=True, slots=True)
class ClusterEvidence:
    """What the images of one cluster say.

    Attributes
    ----------
    number, particles
        Of the cluster.
    resolution_angstrom
        Where its half maps, masked and corrected for the mask, fall below 0.143.
    local_resolution
        About each place of the mask, at 0.5: around a place there are too few numbers for 0.143.
    network_resolution_angstrom
        Where its map and the network's, masked, fall below 0.5.
    change_correlation, other_change_correlation
        Of how its map differs from the consensus with how the network's map of that cluster differs from the mean of
        all; and with those of the other clusters, on average.
    """

    number: int
    particles: int
    resolution_angstrom: float
    local_resolution: ResolutionRange
    network_resolution_angstrom: float
    change_correlation: float
    other_change_correlation: float


def back_project_clusters(
    run: Path, columns: ParticleColumns, progress: StagedProgress = silent
) -> tuple[ClusterEvidence, ...]:
    """Back-project the images of each cluster; write ``analysis/images_000.mrc`` ..., half maps, local resolutions.

    An image counts for as much as it probably shows a particle.

    Parameters
    ----------
    run
        Run directory.
    columns
        Its particles.
    progress
        Called with (stage, images done, in all).

    Raises
    ------
    ExplorationError
        If the run's own maps of the clusters are not there.
    """
    network = read_all_series(run, CLUSTER_SERIES).get(CLUSTER_SERIES)
    if network is None:
        raise ExplorationError(f"{columns.run.home}: no maps of clusters; `cryoformer-dist reconstruct` makes them")
    comparison = _Comparison(network, load_consensus(run).voxels, columns.store.pixel_size_angstrom)
    store, found = columns.store, list[ClusterEvidence]()
    if columns.refined is not None:
        store = store.with_pose(columns.store_row, columns.refined)
    beside: dict[str, list[np.ndarray]] = {name: [] for name in (*_HALVES, _RESOLUTION)}
    levels: list[float] = []

    def maps() -> Iterator[np.ndarray]:
        for number in range(len(network)):
            member = columns.table["kmeans_label"] == number
            made = _back_project(store, columns, member, partial(progress, f"images of cluster {number}"))
            resolution = measure_local_resolution(*made.halves, columns.store.pixel_size_angstrom)
            found.append(comparison.judge(number, int(member.sum()), made, resolution))
            for kept, each in zip(beside.values(), (*made.halves, resolution), strict=True):
                kept.append(each.numpy())
            levels.append(find_common_level(made.voxels.numpy()[None]))
            yield made.voxels.numpy()

    size, labels = columns.store.pixel_size_angstrom, [f"cryoformer-dist analysis of {run.name}"]
    captions = [f"cluster {number}" for number in range(len(network))]
    write_series(run / ANALYSIS, SERIES, maps(), size, captions, labels, ordered=False)
    for name, kept in beside.items():
        write_series(run / ANALYSIS, f"{SERIES}_{name}", kept, size, captions, labels, ordered=False)
    _write_script(run / ANALYSIS, float(np.mean(levels)), found)
    return tuple(found)


def _write_script(folder: Path, level: float, found: Sequence[ClusterEvidence]) -> None:
    """Show the maps by their local resolution, in place of resolutions as if they were densities."""
    script = SERIES_SCRIPT.format(series=f"{SERIES}_{_RESOLUTION}")
    series, resolution = (partial(SERIES_MAP.format, series=name) for name in (SERIES, f"{SERIES}_{_RESOLUTION}"))
    maps = [(series(index=each.number), resolution(index=each.number)) for each in found]
    limits = min(each.local_resolution.finest for each in found), max(each.local_resolution.coarsest for each in found)
    write_whole(folder / script, compose_resolution_script(script, maps, level, limits))


def _back_project(
    store: ParticleStore, columns: ParticleColumns, member: Bool[np.ndarray, " particles"], progress: partial[None]
) -> Consensus:
    weight = columns.table.get("weight")
    return back_project(store, columns.store_row[member], progress, None, None if weight is None else weight[member])


class _Comparison:
    """The network's maps, ready to be compared with those of the images."""

    def __init__(
        self, network: Float[np.ndarray, "clusters box box box"], consensus: torch.Tensor, voxel_size_angstrom: float
    ) -> None:
        self.network, self.consensus, self.voxel_size_angstrom = network, consensus, voxel_size_angstrom
        self.mask = make_solvent_mask(network, _MASK_THRESHOLD)
        self.changes = (network - network.mean(axis=0)) * self.mask

    def judge(self, number: int, particles: int, made: Consensus, resolution: torch.Tensor) -> ClusterEvidence:
        first, second = made.halves
        half_maps = compare_maps(first.numpy(), second.numpy(), self.voxel_size_angstrom, self.mask)
        network = compare_maps(made.voxels.numpy(), self.network[number], self.voxel_size_angstrom, self.mask)
        # Noise is filtered out of the images' map as it is of the network's.
        share = made.shell_weight(torch.from_numpy(self.mask > 0.5), self.voxel_size_angstrom)
        change = weighted_shells(made.voxels - self.consensus, share).numpy() * self.mask
        agreement = np.array([cosine(change, other) for other in self.changes])
        others = np.delete(agreement, number)
        return ClusterEvidence(
            number=number,
            particles=particles,
            resolution_angstrom=half_maps.curves["corrected"].resolution_angstrom(FSC_HALF_MAPS),
            local_resolution=summarise_resolution(resolution, torch.from_numpy(self.mask)),
            network_resolution_angstrom=network.curves["masked"].resolution_angstrom(FSC_REFERENCE),
            change_correlation=float(agreement[number]),
            other_change_correlation=float(others.mean()) if len(others) else 0.0,
        )


def tell_evidence(evidence: tuple[ClusterEvidence, ...]) -> list[str]:
    """Lines for a user."""
    return [
        f"cluster {each.number}: {each.particles} images alone resolve {each.resolution_angstrom:.1f} A (half maps; "
        f"locally {each.local_resolution.finest:.1f} to {each.local_resolution.coarsest:.1f} A), "
        f"agree with the network to {each.network_resolution_angstrom:.1f} A; the change they show correlates "
        f"{each.change_correlation:.2f} with the network's (with other clusters' {each.other_change_correlation:.2f})"
        for each in evidence
    ]
