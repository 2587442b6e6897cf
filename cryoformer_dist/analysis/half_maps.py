"""Two runs trained apart on the two half-sets: whether they show the same maps and the same motion.

Everything in the two runs is independent: consensus, occupancy, first latents, network. As in the CryoFormer paper
(EMPIAR-10180), maps are sampled evenly along the first principal axis of the latents of both, and the FSC curves of the
pairs are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryoformer_dist.analysis.evaluate import Decode
from cryoformer_dist.analysis.latent import find_principal_axes, walk_axis
from cryoformer_dist.analysis.map_fsc import (
    CutOut,
    MapComparison,
    Resolutions,
    average_comparisons,
    compare_maps,
    write_curves,
)
from cryoformer_dist.analysis.map_scores import STILL, centre, cosine, map_variation
from cryoformer_dist.analysis.masks import make_solvent_mask, read_mask
from cryoformer_dist.analysis.reconstruct import write_series
from cryoformer_dist.analysis.trained import TrainedRun, load_trained
from cryoformer_dist.errors import ConfigError, StoreError
from cryoformer_dist.figures.fsc import draw_fsc
from cryoformer_dist.runs.directory import load_consensus
from cryoformer_dist.runs.layout import HALF_MAPS_CURVES, HALF_MAPS_FIGURE, HALF_MAPS_SCORES
from cryoformer_dist.runs.manifest import SCHEMA_VERSION
from cryoformer_dist.storage.places import Place
from cryoformer_dist.storage.records import write_record

_PAIRS = 10
_AXES_TRIED = 3
_MASK_THRESHOLD = 0.1


@dataclass(frozen=True, slots=True)
class HalfRun:
    """One half as the comparison needs it.

    Attributes
    ----------
    decode
        Latents to maps.
    latents
        ``(particles, latent)`` of its own particles.
    consensus
        Back-projection of its own particles.
    region
        1 where its maps may have density, 0 where they have none.
    """

    decode: Decode
    latents: Float[np.ndarray, "particles latent"]
    consensus: Float[np.ndarray, "box box box"]
    region: Float[np.ndarray, "box box box"]


@dataclass(frozen=True, slots=True)
class MatchedMaps:
    """Maps of both halves at corresponding places of the latent space.

    Attributes
    ----------
    first, second
        ``(pairs, box, box, box)``.
    axis
        Principal axis of the second half that matches the first axis of the first, from 1.
    reversed
        Whether it runs the other way.
    correlation
        Of the difference maps of both series: 1 for the same motion, about 0 for unrelated ones.
    variation
        Root-mean-square change of the maps of either series, relative to their mean.
    """

    first: Float[np.ndarray, "pairs box box box"]
    second: Float[np.ndarray, "pairs box box box"]
    axis: int
    reversed: bool
    correlation: float
    variation: tuple[float, float]

    @property
    def stands_still(self) -> bool:
        """Whether a half shows no motion, so that no correlation says that there is one."""
        return min(self.variation) <= STILL


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """What masked curves were taken under: ``from the maps`` or a file, and its mean value."""

    source: str
    share_of_box: float


@dataclass(frozen=True, slots=True)
class MotionSummary:
    """How alike, and how much, two series of maps change; see `MatchedMaps`."""

    correlation: float
    variation: tuple[float, float]
    axis_of_second: int
    reversed: bool
    maps: int


@dataclass(frozen=True, slots=True)
class HalfMapsResolution:
    """See `HalfSetComparison`; of each the resolutions by curve and threshold."""

    average: Resolutions
    mean_map: Resolutions
    consensus: Resolutions


@dataclass(frozen=True, slots=True)
class HalfMapsSummary:
    """What ``half_maps.json`` holds.

    Attributes
    ----------
    runs
        Where the two lie.
    voxel_size_angstrom, nyquist_angstrom, box_size, mask
        Of the maps.
    motion
        Whether the halves show the same one.
    resolution_angstrom
        Of average, mean map and consensus.
    fsc_area
        Of the averaged curves, by name.
    pairs
        Resolutions pair by pair.
    """

    runs: tuple[str, ...]
    voxel_size_angstrom: float
    nyquist_angstrom: float
    box_size: int
    mask: MaskSummary
    motion: MotionSummary
    resolution_angstrom: HalfMapsResolution
    fsc_area: Mapping[str, float]
    pairs: tuple[Resolutions, ...]


@dataclass(frozen=True, slots=True)
class HalfSetComparison:
    """FSC between two half-sets.

    Attributes
    ----------
    consensus
        Of the back-projections: what a rigid reconstruction reaches.
    mean_map
        Of the mean of the sampled maps.
    average
        Mean of the curves of the pairs.
    pairs
        Each pair along the axis.
    matched
        The maps.
    mask
        What the masked curves were taken under.
    mask_name
        ``from the maps``, or the file.
    voxel_size_angstrom
        Of the maps.
    """

    consensus: MapComparison
    mean_map: MapComparison
    average: MapComparison
    pairs: tuple[MapComparison, ...]
    matched: MatchedMaps
    mask: Float[np.ndarray, "box box box"]
    mask_name: str
    voxel_size_angstrom: float

    def summarise(self, runs: Sequence[Place]) -> HalfMapsSummary:
        """The numbers of this comparison of two runs."""
        return HalfMapsSummary(
            runs=tuple(str(run) for run in runs),
            voxel_size_angstrom=self.voxel_size_angstrom,
            nyquist_angstrom=2 * self.voxel_size_angstrom,
            box_size=self.mask.shape[-1],
            mask=MaskSummary(self.mask_name, float(self.mask.mean())),
            motion=MotionSummary(
                self.matched.correlation,
                self.matched.variation,
                self.matched.axis,
                self.matched.reversed,
                len(self.pairs),
            ),
            resolution_angstrom=HalfMapsResolution(
                self.average.resolutions(), self.mean_map.resolutions(), self.consensus.resolutions()
            ),
            fsc_area={name: curve.area for name, curve in self.average.curves.items()},
            pairs=tuple(pair.resolutions() for pair in self.pairs),
        )


def match_maps(first: HalfRun, second: HalfRun) -> MatchedMaps:
    """Sample both halves evenly along a principal axis, from the 5th to the 95th percentile of their particles.

    Axes have no sign, and two nearly equal ones may change places: of the leading axes of the second half, either way
    round, the one is taken whose difference maps correlate best with those of the first. A motion that closes on itself
    spreads over two axes whose phase is arbitrary; there a low correlation says nothing.
    """
    walk = walk_axis(first.latents, find_principal_axes(first.latents), 0, _PAIRS)
    maps = first.decode(walk)
    varied = map_variation(maps)
    axes = find_principal_axes(second.latents)
    varying = max(1, int(np.count_nonzero(axes.explained_variance[:_AXES_TRIED] > 1e-6)))
    found = []
    for axis in range(varying):
        others = second.decode(walk_axis(second.latents, axes, axis, _PAIRS))
        for backwards, series in ((False, others), (True, others[::-1])):
            alike = cosine(_take_changes(maps), _take_changes(series))
            found.append(MatchedMaps(maps, series, axis + 1, backwards, alike, (varied, map_variation(series))))
    return max(found, key=lambda match: match.correlation)


def describe_motion(matched: MatchedMaps) -> str:
    """Whether the halves show the same motion, in one line."""
    changes = " and ".join(f"{each:.1%}" for each in matched.variation)
    alike = f"correlation {matched.correlation:.3f} between the halves"
    if matched.stands_still:
        return f"none to compare: maps change by {changes} of their mean, up to {STILL:.0%} stands still ({alike})"
    return f"{alike}; their maps change by {changes} of their mean"


def _take_changes(maps: np.ndarray) -> np.ndarray:
    """How maps differ from their mean, in shape: two networks that only brighten everywhere share no motion."""
    wide = centre(maps)
    mean = wide.mean(axis=0)
    changes: np.ndarray = wide - mean
    brightness = (changes * mean).sum(axis=(1, 2, 3)) / max(float(np.square(mean).sum()), 1e-30)
    return np.asarray(changes - brightness[:, None, None, None] * mean)


def compare_half_runs(
    first: HalfRun,
    second: HalfRun,
    voxel_size_angstrom: float,
    mask: Float[np.ndarray, "box box box"] | None = None,
    mask_name: str = "",
) -> HalfSetComparison:
    """Compare the maps of two halves; without a mask one is made from the mean of all sampled maps."""
    matched = match_maps(first, second)
    if mask is None:
        overall = (matched.first.mean(axis=0) + matched.second.mean(axis=0)) / 2
        mask, mask_name = make_solvent_mask(overall[None], _MASK_THRESHOLD), "from the maps"

    consensus = compare_maps(first.consensus, second.consensus, voxel_size_angstrom, mask)
    # Networks' maps are cut out along much the same edge, so their unmasked curve is high where nothing was learned.
    cut_out = CutOut((first.region, second.region), consensus.randomised_from)

    def compare(one: np.ndarray, other: np.ndarray) -> MapComparison:
        return compare_maps(one, other, voxel_size_angstrom, mask, cut_out)

    pairs = tuple(compare(one, other) for one, other in zip(matched.first, matched.second, strict=True))
    return HalfSetComparison(
        consensus=consensus,
        mean_map=compare(matched.first.mean(axis=0), matched.second.mean(axis=0)),
        average=average_comparisons(list(pairs)),
        pairs=pairs,
        matched=matched,
        mask=mask,
        mask_name=mask_name,
        voxel_size_angstrom=voxel_size_angstrom,
    )


def compare_halves(first_run: Path, second_run: Path, mask: Path | None = None) -> HalfSetComparison:
    """Compare two runs trained on the two half-sets of one store.

    Raises
    ------
    StoreError
        If the runs are of different stores.
    ConfigError
        If they are not of half 1 and half 2: train each with ``--set dataset.half=1`` and ``=2``.
    """
    runs = [load_trained(path) for path in (first_run, second_run)]
    _refuse_unfit(runs, (first_run, second_run))
    size = runs[0].manifest.pixel_size_angstrom
    box = runs[0].manifest.box_size
    given = None if mask is None else read_mask(mask, box, box * size)
    halves = [
        HalfRun(run.decode, run.latents, load_consensus(path).voxels.numpy(), run.region())
        for run, path in zip(runs, (first_run, second_run), strict=True)
    ]
    return compare_half_runs(halves[0], halves[1], size, given, "" if mask is None else str(mask))


def _refuse_unfit(runs: Sequence[TrainedRun], paths: Sequence[Path]) -> None:
    prints = {run.manifest.store_fingerprint for run in runs}
    if len(prints) > 1:
        raise StoreError(f"{paths[0]} and {paths[1]} were trained on different stores: half-sets are halves of one")
    halves = [run.config.dataset.half for run in runs]
    if set(halves) != {1, 2}:
        raise ConfigError(
            f"{paths[0]} was trained on half {halves[0]}, {paths[1]} on half {halves[1]}: a comparison needs one run "
            "with --set dataset.half=1 and one with --set dataset.half=2"
        )


def write_half_maps(folder: Path, comparison: HalfSetComparison, runs: Sequence[Place]) -> Path:
    """Write ``half_maps.json``, ``.csv`` (the averaged curves), ``.png``, ``.svg``, and the pairs of maps.

    Returns
    -------
    Path
        ``half_maps.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_curves(folder / HALF_MAPS_CURVES, comparison.average.curves)
    faint = [pair.curves["corrected"] for pair in comparison.pairs]
    curves = {**comparison.average.curves, "consensus, corrected": comparison.consensus.curves["corrected"]}
    title = f"Half-sets, average of {len(comparison.pairs)} pairs · {comparison.voxel_size_angstrom:.3g} Å per voxel"
    title += f" · mask {Path(comparison.mask_name).name}"
    for suffix in (".png", ".svg"):
        draw_fsc(folder / HALF_MAPS_FIGURE.format(suffix=suffix), curves, title, faint)
    size = comparison.voxel_size_angstrom
    for name, maps in (("half1", comparison.matched.first), ("half2", comparison.matched.second)):
        write_series(folder, name, maps, size, [""] * len(maps), ["cryoformer-dist halves"])
    return write_record(folder / HALF_MAPS_SCORES, comparison.summarise(runs), SCHEMA_VERSION)
