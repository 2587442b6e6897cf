"""One self-contained HTML page per run: what was recovered, against which floor, and how to go on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.analysis.evaluation_files import StateCurves, read_state_curves
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.reconstruct import read_all_series
from cryoformer_dist.analysis.report_sections import (
    PICTURED_BOX,
    ClusterSection,
    FlexibilitySection,
    list_mean_map,
    show_clusters,
    show_flexibility,
    show_particles,
)
from cryoformer_dist.analysis.report_tables import (
    list_key_figures,
    list_measures,
    list_pose_errors,
    list_stages,
    put_in_words,
)
from cryoformer_dist.analysis.truth import Truth, read_truth
from cryoformer_dist.errors import StoreNotFoundError
from cryoformer_dist.figures import run_plots
from cryoformer_dist.figures.page import fill_template
from cryoformer_dist.figures.pictures import (
    Film,
    PictureRow,
    SliceColumn,
    draw_slices,
    draw_surfaces,
    make_film,
    make_row,
    pick_evenly,
)
from cryoformer_dist.figures.slides import compose_slide
from cryoformer_dist.figures.style import Chart
from cryoformer_dist.figures.surfaces import (
    BODY_COLOUR,
    Colour,
    View,
    colour_states,
    crop_alike,
    find_best_view,
    find_common_level,
    widen_view,
)
from cryoformer_dist.runs.directory import holds_run, load_consensus
from cryoformer_dist.runs.layout import (
    CONFIG,
    CONSENSUS,
    REPORT,
)
from cryoformer_dist.runs.manifest import RunManifest, read_manifest
from cryoformer_dist.runs.next_steps import find_suspicions, suggest_handing_on, suggest_looking
from cryoformer_dist.runs.report_files import write_report_files
from cryoformer_dist.runs.results import read_latent_table
from cryoformer_dist.runs.scores import Scores, ScoresAgainstTruth, read_scores
from cryoformer_dist.runs.training_log import TrainingRecord, find_search, read_training_log
from cryoformer_dist.storage.places import write_whole

_SERIES_COLOUR: Colour = (0.25, 0.50, 0.86)
_MOST_PICTURES = 12
_HEADINGS = {
    "state": ("States", "Maps decoded at each state, coloured along its coordinate where they change."),
    "pc1": (
        "Along the first axis of the motion",
        "From the 5th to the 95th percentile of the particles along PC1, evenly spaced.",
    ),
    "kmeans": (
        "Groups of like particles",
        "Each is the map of a real particle; the numbers are those in the map of the latents.",
    ),
}
_LARGE, _SMALL = 272, 168
_SLICES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """What a run directory holds, as far as it is there.

    Attributes
    ----------
    path
        Run directory.
    scores, manifest
        ``None`` when absent.
    records
        The training log.
    config
        Text of config.yaml.
    latent
        Arrays of latent.npz.
    curves
        FSC of each state.
    volumes
        Map series by name, as fine as pictures show them.
    consensus
        Consensus map.
    """

    path: Path
    scores: Scores | None
    manifest: RunManifest | None
    records: list[TrainingRecord]
    config: str
    latent: dict[str, np.ndarray]
    curves: StateCurves | None
    volumes: dict[str, np.ndarray]
    consensus: np.ndarray | None

    @property
    def period(self) -> float:
        """Of the state's coordinate; 0 for none."""
        return self.scores.period if isinstance(self.scores, ScoresAgainstTruth) else 0.0


@dataclass(frozen=True, slots=True)
class PictureGroup:
    """Rows of pictures under a heading; ``name`` is that of the series."""

    name: str
    title: str
    note: str
    rows: list[PictureRow]


@dataclass(frozen=True, slots=True)
class Pictures:
    """All pictures of maps on the page, from one view; parts that there are no maps for are empty."""

    film: Film | None = None
    groups: tuple[PictureGroup, ...] = ()
    slices: tuple[SliceColumn, ...] = ()
    flexible: FlexibilitySection | None = None
    clusters: ClusterSection | None = None


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of the page, None where there is nothing to draw."""

    loss: Chart | None
    throughput: Chart | None
    fsc: Chart | None
    latents: Chart | None
    poses: Chart | None


def read_run(path: Path) -> ReportInputs:
    """Read everything the report shows from a run directory.

    Raises
    ------
    StoreNotFoundError
        If there is no such directory.
    CryoFormerError
        If a file of it cannot be read.
    """
    if not path.is_dir():
        raise StoreNotFoundError(f"no run directory at {path}: give the folder a training wrote")
    config = path / CONFIG
    return ReportInputs(
        path=path,
        scores=read_scores(path),
        manifest=read_manifest(path) if holds_run(path) else None,
        records=read_training_log(path),
        config=config.read_text() if config.is_file() else "",
        latent=read_latent_table(path),
        curves=read_state_curves(path),
        volumes=read_all_series(path, finest_box=PICTURED_BOX),
        consensus=load_consensus(path).voxels.numpy() if (path / CONSENSUS).is_file() else None,
    )


def write_report(run: Path, truth: Path | None = None, source_suffix: str = ".star") -> Path:
    """Write ``report.html`` into a run directory from the files found there, and what it shows as files beside it.

    Parts whose files are missing are left out; nothing is shown that was not measured.

    Parameters
    ----------
    run
        Run directory.
    truth
        Truth folder of a simulation: true maps beside ours, latents coloured by the true coordinate.
    source_suffix
        Of the file that the particles came from.

    Returns
    -------
    Path
        The page.
    """
    found = read_run(run)
    known = read_truth(truth) if truth is not None else None
    pictures, curves, search = _draw_pictures(found, known), _draw_curves(found, known), find_search(found.records)
    particles = show_particles(found.latent, search, found.scores)
    levels = {name: find_common_level(maps) for name, maps in found.volumes.items() if name in ("pc1", "state")}
    tables = {
        "measures": list_measures(found.scores),
        "states": found.scores.states if isinstance(found.scores, ScoresAgainstTruth) else (),
        "poses": list_pose_errors(found.scores),
        "particles": particles.facts if particles else (),
        "other_causes": particles.causes if particles else (),
        "stages": list_stages(found.records),
    }
    page = fill_template(
        "report_template.html",
        title=run.resolve().name,
        facts=_list_facts(found),
        verdict=put_in_words(found.scores),
        tiles=list_key_figures(found.scores),
        tables=tables,
        config=found.config,
        manifest=_flatten(asdict(found.manifest)) if found.manifest else [],
        suspicions=find_suspicions(particles.advice if particles else (), search),
        steps=[*suggest_handing_on(found.latent, source_suffix), *suggest_looking(run, levels)],
        particles=particles,
        pictures=pictures,
        curves=curves,
    )
    output = run / REPORT
    charts = {"particles": particles.distributions if particles else None} | _list_charts(pictures, curves)
    slides = {name: chart.draw_slide() for name, chart in charts.items() if chart is not None}
    write_report_files(run, slides | _compose_slides(pictures), tables | {"training": found.records})
    # Last: a page that is there is whole, and so is what lies beside it.
    write_whole(output, page)
    return output


def _list_charts(pictures: Pictures, curves: Curves) -> dict[str, Chart | None]:
    """Charts by the names of their slides."""
    return {
        "latents": curves.latents,
        "latents_by_group": pictures.clusters.scatter if pictures.clusters else None,
        "resolution": curves.fsc,
        "poses": curves.poses,
        "loss": curves.loss,
        "throughput": curves.throughput,
    }


def _compose_slides(pictures: Pictures) -> dict[str, bytes]:
    """Rows of pictures as slides, by name."""
    slides = {group.name: group.rows for group in pictures.groups}
    if pictures.clusters:
        slides["groups"] = [PictureRow("", pictures.clusters.tiles)]
    if pictures.flexible:
        captions = pictures.flexible.captions
        slides["flexible_regions"] = [
            PictureRow(row.name, list(zip(row.images, captions, strict=True))) for row in pictures.flexible.rows
        ]
    if pictures.slices:
        slides["slices"] = [
            PictureRow(plane, [(column.images[number], column.name) for column in pictures.slices])
            for number, plane in enumerate("zyx")
        ]
    return {name: compose_slide(rows) for name, rows in slides.items()}


def _list_facts(run: ReportInputs) -> list[str]:
    """One-line facts under the title."""
    scores, manifest, facts = run.scores, run.manifest, []
    if scores is not None:
        facts.append(f"{scores.particles:,} particles")
        facts.append(f"box {scores.box_size} at {scores.voxel_size_angstrom:.2f} Å")
        facts.append(f"{scores.latent_dimensions} latent dimensions")
    if manifest is not None:
        facts += [f"cryoformer-dist {manifest.versions['cryoformer-dist']}", f"seed {manifest.seed}"]
    return facts


def _flatten(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _name_states(scores: Scores | None, count: int) -> list[str]:
    if not isinstance(scores, ScoresAgainstTruth) or len(scores.states) != count:
        return [str(index) for index in range(count)]
    unit = "°" if scores.period == 360 else ""
    prefix = "class " if scores.discrete else ""
    return [f"{prefix}{state.state:.3g}{unit}" for state in scores.states]


def _draw_pictures(found: ReportInputs, truth: Truth | None) -> Pictures:
    """Draw surfaces and cut slices, all from one view."""
    kind = next((name for name in ("state", "pc1", "kmeans") if name in found.volumes), None)
    if kind is None:
        return Pictures()
    shown = found.volumes[kind]
    view = widen_view(find_best_view(shown, find_common_level(shown)), _list_drawn(found))
    are_states, periodic = kind == "state", found.period > 0
    names = _name_states(found.scores if are_states else None, len(shown))
    pick = pick_evenly(len(shown), _MOST_PICTURES)
    colours = colour_states(len(shown), periodic) if are_states else [_SERIES_COLOUR] * len(shown)
    consensus = None if found.consensus is None else fit_box(found.consensus, shown.shape[-1])
    references = None
    if truth is not None and are_states and len(truth.volumes) == len(shown):
        references = np.stack([fit_box(voxels, shown.shape[-1]) for voxels in truth.volumes[pick]])
    frames = _draw_frames(shown[pick], references, consensus, view, [colours[i] for i in pick])
    series = {name: frames[name] for name in ("truth", "ours") if name in frames}
    captions = [names[i] for i in pick]
    rows = [
        make_row(name if "truth" in series else "", images, captions, name == "ours") for name, images in series.items()
    ]
    columns = [("consensus", consensus)] if consensus is not None else []
    columns += [(names[i], shown[i]) for i in pick_evenly(len(shown), _SLICES_SHOWN)]
    return Pictures(
        film=make_film(frames, periodic),
        groups=(PictureGroup(kind, *_HEADINGS[kind], rows), *_draw_other_series(found, kind, view)),
        slices=tuple(draw_slices(columns)),
        flexible=show_flexibility(found.path, found.volumes.get("kmeans", shown), view, _SMALL),
        clusters=show_clusters(found.latent, found.volumes.get("kmeans", shown[:1]), view, _SMALL),
    )


def _list_drawn(found: ReportInputs) -> list[tuple[np.ndarray, float]]:
    """All maps of which surfaces are drawn, with the level of each."""
    drawn = [(maps, find_common_level(maps)) for maps in found.volumes.values()]
    drawn += [(each[None], find_common_level(each[None])) for each in (found.consensus,) if each is not None]
    return drawn + list_mean_map(found.path)


def _draw_frames(
    ours: np.ndarray, truth: np.ndarray | None, consensus: np.ndarray | None, view: View, colours: list[Colour]
) -> dict[str, list[np.ndarray]]:
    """Surfaces of every series of the film, cropped alike."""
    frames = {"ours": draw_surfaces(ours, view, colours, _LARGE)}
    if truth is not None:
        frames["truth"] = draw_surfaces(truth, view, colours, _LARGE)
    if consensus is not None:
        frames["consensus"] = draw_surfaces(consensus[None], view, [BODY_COLOUR], _LARGE)
    cropped = iter(crop_alike([image for images in frames.values() for image in images]))
    return {name: [next(cropped) for _ in images] for name, images in frames.items()}


def _draw_other_series(found: ReportInputs, shown: str, view: View) -> list[PictureGroup]:
    """Rows of pictures of the series not shown yet; clusters have a section of their own."""
    groups = []
    for name, (title, note) in _HEADINGS.items():
        if name in found.volumes and name not in (shown, "kmeans"):
            pick = pick_evenly(len(found.volumes[name]), _MOST_PICTURES)
            colours = [_SERIES_COLOUR] * len(pick)
            images = crop_alike(draw_surfaces(found.volumes[name][pick], view, colours, _SMALL))
            groups.append(PictureGroup(name, title, note, [make_row("", images, [str(i) for i in pick])]))
    return groups


def _draw_curves(found: ReportInputs, truth: Truth | None) -> Curves:
    records, latent, curves, periodic = found.records, found.latent, found.curves, found.period > 0
    latents = fsc = None
    if latent:
        pca, coordinate = latent["pca"], None
        if truth is not None:
            kept = truth.shows_particle(latent["source_row"])
            pca, coordinate = pca[kept], truth.state[latent["source_row"][kept]]
        latents = run_plots.draw_latents(
            pca, latent["explained_variance"], latent["kmeans_pca"], coordinate, found.period
        )
    if curves is not None:
        fsc = run_plots.draw_state_fsc(curves.frequency_per_angstrom, curves.own, curves.consensus, periodic)
    return Curves(
        loss=run_plots.draw_loss(records) if records else None,
        throughput=run_plots.draw_throughput(records) if records else None,
        fsc=fsc,
        latents=latents,
        poses=_draw_poses(found.scores),
    )


def _draw_poses(scores: Scores | None) -> Chart | None:
    """Errors of poses that were refined; of others there is nothing to see."""
    if not isinstance(scores, ScoresAgainstTruth) or scores.pose.after is None:
        return None
    return run_plots.draw_pose_errors(scores.pose)
