"""The report's sections on flexible regions, on clusters of the latent, and on single particles."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryoformer_dist.analysis.flexibility import QueryRank
from cryoformer_dist.analysis.flexibility_files import FlexibilitySummary, Range, TruthDetectors, read_flexibility
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.particle_scores import put_cause_in_words, stands_out
from cryoformer_dist.analysis.report_tables import DetectorRow, list_detectors
from cryoformer_dist.figures.particle_plots import Distribution, draw_distributions
from cryoformer_dist.figures.pictures import Picture, draw_at_once, draw_surfaces, pick_evenly
from cryoformer_dist.figures.run_plots import draw_clusters
from cryoformer_dist.figures.slides import fill_rows
from cryoformer_dist.figures.style import Chart
from cryoformer_dist.figures.surfaces import (
    VALUE_STOPS,
    View,
    cluster_colour,
    crop_alike,
    draw_values,
    find_common_level,
)
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.image_scores import OtherCause
from cryoformer_dist.runs.layout import ATTENTION_MAP, ATTENTION_VARIATION_MAP, FLEXIBILITY_MAP, MEAN_MAP
from cryoformer_dist.runs.scores import Scores, ScoresAgainstTruth
from cryoformer_dist.runs.training_log import SearchFindings

PICTURED_BOX = 128
"""No picture has more detail, and drawing a map takes as long as it has voxels."""
_STATES_SHOWN = 3
_QUERIES_LISTED = 5
# Numbers that differ by no more are all the same.
_ALIKE = 1e-3
_MOST_CLUSTERS, _MOST_COLUMNS = 12, 6


@dataclass(frozen=True, slots=True)
class ValueRow:
    """Surfaces coloured by the values of a map.

    Attributes
    ----------
    name, unit, file
        Of the map.
    low, high
        Ends of the scale.
    images
        One per surface.
    """

    name: str
    unit: str
    file: str
    low: float
    high: float
    images: list[Picture]


@dataclass(frozen=True, slots=True)
class FlexibilitySection:
    """What the report shows of flexible regions.

    Attributes
    ----------
    rows, captions
        Pictures, and what each column shows.
    gradient
        Colours of the scales, as a style sheet writes them.
    text
        What was measured.
    detectors, truth
        Against the truth; empty and None where none is known or nothing moves.
    queries, query_count
        The best, and how many there are.
    """

    rows: list[ValueRow]
    captions: list[str]
    gradient: str
    text: str
    detectors: list[DetectorRow]
    truth: TruthDetectors | None
    queries: Sequence[QueryRank]
    query_count: int


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """What the report shows of clusters: the latents, and pictures of the centres with their captions."""

    scatter: Chart
    tiles: list[tuple[Picture, str]]
    columns: int


@dataclass(frozen=True, slots=True)
class Fact:
    """A number with what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class CauseRow:
    """How far something that is no conformation goes with the latents, as text.

    Attributes
    ----------
    name, explained, floor, axis, told
        Of an `OtherCause`.
    stands_out
        Whether that is more than it should be.
    """

    name: str
    explained: str
    floor: str
    axis: str
    told: str
    stands_out: bool


@dataclass(frozen=True, slots=True)
class ParticleSection:
    """What the report shows of single particles.

    Attributes
    ----------
    facts
        Of all together.
    distributions
        Histograms; None where nothing was found of each.
    causes, advice
        What else than conformation explains the latents, and what to do about those that do.
    """

    facts: list[Fact]
    distributions: Chart | None
    causes: list[CauseRow]
    advice: list[str]


def show_flexibility(
    run: Path, states: Float[np.ndarray, "states box box box"], view: View, size: int
) -> FlexibilitySection | None:
    """Surfaces coloured by flexibility and by attention, and the numbers; None where none were written.

    Parameters
    ----------
    run
        Run directory.
    states
        Maps of single states; three are shown beside the mean map, as in the paper's fig. 8.
    view, size
        Of the pictures.
    """
    summary = read_flexibility(run)
    if summary is None:
        return None
    chosen = pick_evenly(len(states), _STATES_SHOWN)
    level = find_common_level(states)
    surfaces = [(_read_voxels(run / MEAN_MAP), summary.mean_level)]
    surfaces += [(states[index], level) for index in chosen]
    return FlexibilitySection(
        rows=_draw_rows(run, summary, surfaces, view, size),
        captions=["mean map", *(f"group {index}" for index in chosen)],
        gradient=", ".join(VALUE_STOPS),
        text=_describe(summary),
        detectors=list_detectors(summary),
        truth=summary.truth,
        queries=summary.queries[:_QUERIES_LISTED],
        query_count=len(summary.queries),
    )


def list_mean_map(run: Path) -> list[tuple[Float[np.ndarray, "1 box box box"], float]]:
    """The mean map and its level, if the section shows it."""
    summary = read_flexibility(run)
    return [] if summary is None else [(_read_voxels(run / MEAN_MAP)[None], summary.mean_level)]


def _draw_rows(
    run: Path, summary: FlexibilitySummary, surfaces: Sequence[tuple[np.ndarray, float]], view: View, size: int
) -> list[ValueRow]:
    """Each surface coloured by each of three maps."""
    best = summary.best_query
    sources: tuple[tuple[str, str, str, Range], ...] = (
        ("Flexibility", "standard deviation of the density", FLEXIBILITY_MAP, summary.flexibility_range),
        (
            f"Attention to query {best}",
            "weight, mean over states",
            ATTENTION_MAP.format(query=best),
            summary.best_attention_range,
        ),
        (
            "Change of attention",
            "standard deviation of all weights",
            ATTENTION_VARIATION_MAP,
            summary.attention_variation_range,
        ),
    )
    fields = [(_read_voxels(run / file), limits) for _, _, file, limits in sources]
    drawn = draw_at_once(lambda surface: draw_values(*surface, view, fields, size), surfaces)
    cropped = iter(crop_alike([picture for pictures in drawn for picture in pictures]))
    drawn = [[next(cropped) for _ in pictures] for pictures in drawn]
    return [
        ValueRow(name, unit, file, low, high, [Picture(pictures[index]) for pictures in drawn])
        for index, (name, unit, file, (low, high)) in enumerate(sources)
    ]


def _read_voxels(path: Path) -> np.ndarray:
    voxels: np.ndarray = read_volume(path).voxels.numpy()
    return fit_box(voxels, min(len(voxels), PICTURED_BOX))


def _describe(summary: FlexibilitySummary) -> str:
    """What was measured, and how far the attention says the same."""
    best = summary.queries[0]
    return (
        f"The flexibility map is the standard deviation of the density over {summary.states} particles drawn at "
        f"random; {summary.flexible_share:.0%} of the molecule deviates by more than half of its strongest part. "
        f"The paper reads flexible regions off one attention channel: here the best of {len(summary.queries)} "
        f"(query {best.query}) follows the flexibility map with a correlation of {best.correlation:.2f}, and the "
        f"change of all channels from state to state with {summary.attention_variation_correlation:.2f}."
    )


def show_clusters(
    latent: Mapping[str, np.ndarray], volumes: Float[np.ndarray, "clusters box box box"], view: View, size: int
) -> ClusterSection | None:
    """Latents coloured by cluster beside the maps of the centres in the same colours; None for one cluster."""
    if not latent or len(volumes) < 2:
        return None
    shown = pick_evenly(len(volumes), _MOST_CLUSTERS)
    colours = [cluster_colour(int(number)) for number in shown]
    images = crop_alike(draw_surfaces(volumes[shown], view, colours, size))
    label = latent["kmeans_label"]
    share = np.bincount(label, minlength=len(volumes)) / max(len(label), 1)
    captions = [f"{number} · {share[number]:.0%}" for number in shown]
    return ClusterSection(
        scatter=draw_clusters(latent["pca"], latent["explained_variance"], latent["kmeans_pca"], label),
        tiles=list(zip(map(Picture, images), captions, strict=True)),
        columns=fill_rows(len(shown), _MOST_COLUMNS),
    )


def show_particles(
    latent: Mapping[str, np.ndarray], search: SearchFindings | None, scores: Scores | None
) -> ParticleSection | None:
    """What was found of single particles; None where nobody looked.

    Parameters
    ----------
    latent
        Arrays of latent.npz.
    search
        What the last search found of all together.
    scores
        Of the run.
    """
    facts = [*_list_findings(search), *_list_widths(latent, scores), *_list_judgements(scores)]
    shown = tuple(_list_distributions(latent))
    causes = scores.other_causes.causes if scores is not None and scores.other_causes is not None else ()
    if not (facts or shown or causes):
        return None
    return ParticleSection(
        facts=facts,
        distributions=draw_distributions(shown) if shown else None,
        causes=[_describe_cause(cause) for cause in causes],
        advice=[put_cause_in_words(cause) for cause in causes if stands_out(cause)],
    )


def _list_findings(search: SearchFindings | None) -> Iterator[Fact]:
    """What the last search found of all particles together."""
    if search is None:
        return
    nats = search.latent_information_nats
    if nats is not None:
        yield Fact(
            "What an image says",
            f"{nats:.2f} nats",
            f"About its conformation: it narrows them down to one in {np.exp(nats):.1f}. 0 says nothing.",
        )
    if search.pose_error_deg is not None:
        yield Fact(
            "Errors of the given poses",
            f"{search.pose_error_deg:.2g}°, {search.pose_error_angstrom:.2g} Å",
            "As the images show them: standard deviation about each axis, and along each. 0 means that given poses are "
            "exact, and stay as they are.",
        )
    if search.amplitude_spread is not None:
        yield Fact(
            "Amplitudes",
            f"1 ± {search.amplitude_spread:.2g}",
            "How strongly images show their particle: thick ice and low dose make it faint. No conformation is taken "
            "for that.",
        )
    if search.junk_share is not None:
        yield Fact(
            "Images of no particle",
            f"{search.junk_share:.1%}",
            "Empty, or something else. They count little in training; `weight` in latent.npz names them.",
        )


def _list_widths(latent: Mapping[str, np.ndarray], scores: Scores | None) -> Iterator[Fact]:
    """How surely latents are known, and whether rightly so."""
    if "latent_deviation" in latent:
        share = float(np.median(_relative_width(latent)))
        yield Fact(
            "Width of a latent",
            f"{share:.0%}",
            "How far a particle's latent may be off, as a share of how far conformations lie apart; median. Near "
            "100 %: images do not tell them apart.",
        )
    if isinstance(scores, ScoresAgainstTruth) and scores.calibration is not None:
        found = scores.calibration
        yield Fact(
            "Errors over widths",
            f"{found.z:.2f}",
            f"Of the states of {found.particles:,} particles; 1 is right, more means that widths are too narrow. "
            f"{found.within_width:.0%} lie within their width (right: 68 %).",
        )


def _relative_width(latent: Mapping[str, np.ndarray]) -> Float[np.ndarray, " particles"]:
    """Of conformations, that vary by as much as their means and what is not known of each."""
    own = np.linalg.norm(latent["latent_deviation"], axis=1).astype(np.float64)
    width: np.ndarray = own / max(float(np.sqrt(latent["latent"].var(axis=0).sum() + np.square(own).mean())), 1e-30)
    return width


def _list_judgements(scores: Scores | None) -> Iterator[Fact]:
    """What is known of a simulated set's images, beside what was found."""
    if not isinstance(scores, ScoresAgainstTruth):
        return
    if scores.oracle is not None:
        yield Fact("What an image can say", f"{scores.oracle.nats:.2f} nats", "To an oracle with true maps and poses.")
        if scores.oracle.marginal_nats is not None:
            yield Fact(
                "With poses as given",
                f"{scores.oracle.marginal_nats:.2f} nats",
                "To an oracle with true maps that does not know by how much each given pose is off "
                f"({scores.oracle.given_pose_error_deg:.2g}°, {scores.oracle.given_pose_error_angstrom:.2g} Å in all).",
            )
    if scores.junk_found is not None:
        auc = ", ".join(f"{kind} {area:.2f}" for kind, area in scores.junk_found.roc_auc.items())
        yield Fact("Junk told from particles", auc, "ROC area for each kind: 1 is perfect, 0.5 is chance.")
    if scores.other_causes is not None and scores.other_causes.true_contrast is not None:
        told = f"{scores.other_causes.true_contrast:.2f}"
        yield Fact("True contrast in the latents", told, "Share of its variance that latents predict; 0 is right.")


def _list_distributions(latent: Mapping[str, np.ndarray]) -> Iterator[Distribution]:
    """What there is of each particle and differs from one to another."""
    if "amplitude" in latent and np.ptp(latent["amplitude"]) > _ALIKE:
        yield Distribution("amplitude", latent["amplitude"].astype(np.float64))
    if "weight" in latent and np.ptp(latent["weight"]) > _ALIKE:
        weight = latent["weight"].astype(np.float64)
        yield Distribution("probability of a particle", weight, low=0.0, high=1.0, logarithmic=True)
    if "latent_deviation" in latent:
        yield Distribution("width of a latent, share of the spread", _relative_width(latent))


def _describe_cause(cause: OtherCause) -> CauseRow:
    return CauseRow(
        name=cause.name.capitalize(),
        explained=f"{cause.explained:.1%}",
        floor=f"{cause.floor:.1%}",
        axis=f"PC{cause.axis} · {cause.axis_explained:.0%}",
        told="" if cause.told is None else f"{cause.told:.0%}",
        stands_out=stands_out(cause),
    )
