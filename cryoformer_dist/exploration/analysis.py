"""What the latents of a run say together: groups, how crowded each place is, wells; numbers, a picture and columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from cryoformer_dist.analysis.latent import find_principal_axes
from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.cluster_maps import ClusterEvidence
from cryoformer_dist.exploration.embedding import FITTED, embed
from cryoformer_dist.exploration.landscape import Landscape, Well, measure_landscape
from cryoformer_dist.exploration.mixture import MixtureChoice, choose_mixture
from cryoformer_dist.exploration.series import MotionAlong
from cryoformer_dist.figures.embeddings import draw_embedding
from cryoformer_dist.figures.landscapes import draw_landscape
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.runs.layout import (
    ANALYSIS,
    ANALYSIS_SUMMARY,
    EMBEDDING_FIGURE,
    LANDSCAPE,
    LANDSCAPE_FIGURE,
    PARTICLE_ANALYSIS,
)
from cryoformer_dist.runs.results import read_of_checkpoint, write_of_checkpoint
from cryoformer_dist.selection.columns import ParticleColumns
from cryoformer_dist.storage.places import replaced
from cryoformer_dist.storage.records import write_record

SCHEMA_VERSION = 2
_AXES = 2
_LEAST_VARIANCE = 1e-6
_TRUSTED = 0.5


@dataclass(frozen=True, slots=True)
class Group:
    """A k-means cluster, or a Gaussian of the mixture.

    Attributes
    ----------
    number
        From 0, as `select` counts.
    particles, share
        How many are most probably of it.
    centre
        Along the principal axes.
    """

    number: int
    particles: int
    share: float
    centre: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AnalysisSummary:
    """What ``analysis.json`` holds.

    Attributes
    ----------
    checkpoint_step
        Whose latents they are.
    particles, trusted
        In all, and those whose images probably show one: groups and landscape are of these.
    explained_variance
        Share of each principal axis.
    clusters, mixture
        Groups by k-means, and by a mixture of Gaussians.
    mixture_criterion
        Bayesian information criterion per particle of one Gaussian, of two, and so on, nats; the least was taken.
    wells
        Of the landscape over the first two axes, the lowest first.
    blur
        How wide one particle's posterior typically is along these axes; ``None`` where that is not known.
    embedded
        Particles that UMAP was fitted to; ``None`` where it was not asked for.
    motion
        Along each principal axis, as the run's maps show it.
    evidence
        What the images of each cluster say by themselves; none where that was not asked for.
    """

    checkpoint_step: int
    particles: int
    trusted: int
    explained_variance: tuple[float, ...]
    clusters: tuple[Group, ...]
    mixture: tuple[Group, ...]
    mixture_criterion: tuple[float, ...]
    wells: tuple[Well, ...]
    blur: tuple[float, ...] | None
    embedded: int | None
    motion: tuple[MotionAlong, ...]
    evidence: tuple[ClusterEvidence, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What was found of the latents.

    Attributes
    ----------
    mixture, label, probability
        Gaussians, which each particle is most probably of, and how probably.
    plane, profile
        Landscape over the first two axes that vary, and over the first.
    blur
        Typical width of one particle's posterior along these axes.
    embedding
        ``(particles, 2)`` by UMAP.
    trusted
        ``(particles,)``: whose images probably show one.
    """

    mixture: MixtureChoice
    label: Int[np.ndarray, " particles"]
    probability: Float[np.ndarray, " particles"]
    plane: Landscape
    profile: Landscape
    blur: tuple[float, ...] | None
    embedding: Float[np.ndarray, "particles 2"] | None
    trusted: Bool[np.ndarray, " particles"]

    def summarise(
        self,
        columns: ParticleColumns,
        motions: tuple[MotionAlong, ...] = (),
        evidence: tuple[ClusterEvidence, ...] = (),
    ) -> AnalysisSummary:
        """The numbers."""
        return AnalysisSummary(
            checkpoint_step=columns.run.checkpoint_step,
            particles=len(columns),
            trusted=int(self.trusted.sum()),
            explained_variance=tuple(float(share) for share in columns.table["explained_variance"]),
            clusters=tuple(_count_groups(columns.table["kmeans_label"], columns.table["pca"])),
            mixture=tuple(_count_groups(self.label, columns.table["pca"])),
            mixture_criterion=tuple(float(each) for each in self.mixture.criterion),
            wells=self.plane.wells,
            blur=self.blur,
            embedded=None if self.embedding is None else min(len(columns), FITTED),
            motion=motions,
            evidence=evidence,
        )


def analyze_latents(
    columns: ParticleColumns, most_gaussians: int, umap: bool, progress: StagedProgress = silent
) -> Findings:
    """Find groups and landscape of a run's latents.

    Parameters
    ----------
    columns
        The run's particles.
    most_gaussians
        Mixtures of up to so many are tried.
    umap
        Whether to embed the latents on a plane too.
    progress
        Called with (stage, done, in all).

    Raises
    ------
    ExplorationError
        If all latents are the same.
    BackendUnavailableError
        If UMAP is asked for and umap-learn is not installed.
    """
    latents, trusted = columns.table["latent"], _find_trusted(columns)
    varying = min(_AXES, int(np.count_nonzero(columns.table["explained_variance"] > _LEAST_VARIANCE)))
    if not varying or trusted.sum() < _AXES:
        raise ExplorationError(f"{columns.run.home}: the latents do not vary: there is nothing to analyse")
    # First what may be refused.
    if umap:
        progress("UMAP", 0, 1)
    embedding = embed(latents) if umap else None
    progress("mixture of Gaussians", 0, 1)
    mixture = choose_mixture(latents[trusted], most_gaussians)
    label, probability = mixture.best.assign(latents)
    progress("landscape", 0, 1)
    coordinates, deviation = (None if each is None else each[trusted] for each in _take_axes(columns, varying))
    assert coordinates is not None
    width = mixture.best.width_along(find_principal_axes(latents, varying).axes)
    plane = measure_landscape(coordinates, deviation, width)
    profile = measure_landscape(coordinates[:, :1], None if deviation is None else deviation[:, :1], width[:1])
    progress("landscape", 1, 1)
    blur = None if deviation is None else tuple(float(width) for width in np.median(deviation, axis=0))
    return Findings(mixture, label, probability, plane, profile, blur, embedding, trusted)


def write_findings(
    run: Path,
    columns: ParticleColumns,
    findings: Findings,
    motions: tuple[MotionAlong, ...] = (),
    evidence: tuple[ClusterEvidence, ...] = (),
) -> AnalysisSummary:
    """Write ``analysis.json``, ``landscape.npz`` and pictures into a run's ``analysis`` folder, and ``particles.npz``.

    The arrays of the latter are columns of `select` from then on.
    """
    particles = {"mixture_label": findings.label, "mixture_probability": findings.probability}
    if findings.embedding is not None:
        particles["umap"] = findings.embedding
    _keep(run, columns.run.checkpoint_step, particles)
    _write_landscape(run, findings)
    if findings.embedding is not None:
        draw_embedding(run / EMBEDDING_FIGURE, findings.embedding, columns.table["kmeans_label"])
    summary = findings.summarise(columns, motions, evidence)
    write_record(run / ANALYSIS_SUMMARY, summary, SCHEMA_VERSION)
    return summary


def keep_embedding(run: Path, columns: ParticleColumns) -> str:
    """Embed a run's latents by UMAP, and keep that with what else was found of each particle; the file's name.

    Raises
    ------
    BackendUnavailableError
        If umap-learn is not installed.
    """
    return _keep(run, columns.run.checkpoint_step, {"umap": embed(columns.table["latent"])})


def _keep(run: Path, step: int, particles: dict[str, np.ndarray]) -> str:
    """What was found of the same checkpoint before stays."""
    (run / ANALYSIS).mkdir(exist_ok=True)
    known = read_of_checkpoint(run, PARTICLE_ANALYSIS, step) or {}
    return write_of_checkpoint(run, PARTICLE_ANALYSIS, step, **(known | particles))


def describe_findings(summary: AnalysisSummary) -> list[str]:
    """Lines for a user."""
    spread = ", ".join(f"PC {axis} {share:.0%}" for axis, share in enumerate(summary.explained_variance[:4], start=1))
    lines = [
        f"particles   {summary.particles}, of which {summary.trusted} probably show one: these are counted below",
        f"variation   {spread}",
        f"clusters    {_tell_shares(summary.clusters)}",
        f"mixture     {len(summary.mixture)} Gaussians: {_tell_shares(summary.mixture)}",
    ]
    if len(summary.wells) == 1:
        lines.append("wells       one: all conformations run into one another, as far as these particles can tell")
    for number, well in enumerate(summary.wells if len(summary.wells) > 1 else (), start=1):
        place = ", ".join(f"PC {axis} {value:.3g}" for axis, value in enumerate(well.place, start=1))
        above = f"{well.energy:.2f} +- {well.error:.2f} kT above the first, {well.depth:.1f} kT deep"
        lines.append(f"well {number}      at {place}: {'the most crowded' if number == 1 else above}")
    return lines


def _tell_shares(groups: tuple[Group, ...]) -> str:
    return ", ".join(f"{group.number}: {group.share:.0%}" for group in groups)


def _find_trusted(columns: ParticleColumns) -> Bool[np.ndarray, " particles"]:
    weight = columns.table.get("weight")
    return np.ones(len(columns), dtype=bool) if weight is None else np.asarray(weight > _TRUSTED)


def _take_axes(columns: ParticleColumns, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Coordinates along the first principal axes, and their posterior's width where it is known."""
    width = columns.table.get("latent_deviation")
    if width is None:
        return columns.table["pca"][:, :count], None
    axes = find_principal_axes(columns.table["latent"], count).axes
    deviation = np.sqrt(np.square(width, dtype=np.float64) @ np.square(axes).T)
    return columns.table["pca"][:, :count], deviation.astype(np.float32)


def _count_groups(label: np.ndarray, coordinates: np.ndarray) -> Iterator[Group]:
    for number in np.unique(label):
        member = label == number
        centre = coordinates[member].mean(axis=0, dtype=np.float64)
        count = int(member.sum())
        yield Group(int(number), count, count / len(label), tuple(float(each) for each in centre))


def _write_landscape(run: Path, findings: Findings) -> None:
    plane, profile = findings.plane, findings.profile
    arrays = {f"pc{axis}_edges": edges for axis, edges in enumerate(plane.edges, start=1)}
    arrays |= {"energy": plane.energy, "error": plane.error}
    arrays |= {"profile_edges": profile.edges[0], "profile_energy": profile.energy, "profile_error": profile.error}
    with replaced(run / LANDSCAPE) as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    over_two = (plane.edges, plane.energy) if len(plane.edges) == _AXES else None
    line = (profile.edges[0], profile.energy, profile.error)
    wells = [well.place for well in plane.wells]
    draw_landscape(run / LANDSCAPE_FIGURE, line, over_two, wells, findings.blur)
