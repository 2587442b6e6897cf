"""One self-contained HTML page per run: what was recovered, against which floor, and how to go on."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoformer_dist.analysis.evaluation_files import read_evaluation
from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.report_sections import cluster_section, flexibility_section
from cryoformer_dist.analysis.truth import Truth, read_truth
from cryoformer_dist.analysis.verdict import key_figures, measure_rows, pose_rows, stage_rows, verdict
from cryoformer_dist.errors import StoreNotFoundError
from cryoformer_dist.figures import run_plots as figures
from cryoformer_dist.figures.page import fill_template
from cryoformer_dist.figures.surfaces import (
    BODY_COLOUR,
    Colour,
    View,
    best_view,
    common_crop,
    common_level,
    state_colours,
)
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.directory import is_prepared, load_consensus
from cryoformer_dist.runs.layout import CONSENSUS
from cryoformer_dist.runs.manifest import RunManifest, read_manifest
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log

_SERIES_COLOUR: Colour = (0.25, 0.50, 0.86)
_MOST_PICTURES = 12
_HEADINGS = {
    "state": ("States", "Maps decoded at each state, coloured along its coordinate where they change."),
    "pc1": (
        "Along the first latent axis",
        "From the 5th to the 95th percentile of the particles, evenly spaced.",
    ),
    "kmeans": (
        "Cluster centres",
        "Each is the map of a real particle; the numbers are those in the latent map.",
    ),
}
_STRIP_NOTES = {
    "consensus": "what a rigid reconstruction shows",
    "ours": "decoded from the latents",
    "truth": "what the particles were made from",
}
_LARGE, _SMALL = 272, 168


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a run directory holds, as far as it is there.

    Attributes
    ----------
    path
        Run directory.
    metrics, manifest
        Contents of metrics.json and manifest.json, empty or ``None`` when absent.
    records
        Lines of metrics.jsonl.
    config
        Text of config.yaml.
    latent
        Arrays of latent.npz.
    fsc
        Columns of ``fsc/state_*.csv``, ``(states, shells)`` each.
    volumes
        Map series by name.
    consensus
        Consensus map.
    """

    path: Path
    metrics: dict[str, Any]
    manifest: RunManifest | None
    records: list[TrainingRecord]
    config: str
    latent: dict[str, np.ndarray]
    fsc: dict[str, np.ndarray]
    volumes: dict[str, np.ndarray]
    consensus: np.ndarray | None


def read_run(path: Path) -> RunFiles:
    """Read everything the report shows from a run directory.

    Raises
    ------
    StoreNotFoundError
        If there is no such directory.
    CryoFormerError
        If a record of metrics.jsonl cannot be read, by its line number.
    """
    if not path.is_dir():
        raise StoreNotFoundError(f"no run directory at {path}: give the folder a training wrote")
    latent: dict[str, np.ndarray] = {}
    if (path / "latent.npz").is_file():
        with np.load(path / "latent.npz", allow_pickle=False) as table:
            latent = {name: table[name] for name in table.files}
    series: dict[str, list[np.ndarray]] = {}
    for file in sorted((path / "volumes").glob("*_[0-9][0-9][0-9].mrc")):
        series.setdefault(file.stem[:-4], []).append(read_volume(file).voxels.numpy())
    config = path / "config.yaml"
    return RunFiles(
        path=path,
        metrics=read_evaluation(path),
        manifest=read_manifest(path) if is_prepared(path) else None,
        records=read_training_log(path),
        config=config.read_text() if config.is_file() else "",
        latent=latent,
        fsc=_read_fsc(path / "fsc"),
        volumes={name: np.stack(maps) for name, maps in series.items()},
        consensus=load_consensus(path).voxels.numpy() if (path / CONSENSUS).is_file() else None,
    )


def _read_fsc(folder: Path) -> dict[str, np.ndarray]:
    tables = []
    for path in sorted(folder.glob("state_[0-9][0-9][0-9].csv")):
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        tables.append({name: [float(row[name]) for row in rows] for name in rows[0]})
    return {name: np.array([table[name] for table in tables]) for name in (tables[0] if tables else {})}


def write_report(run: Path, truth: Path | None = None) -> Path:
    """Write ``report.html`` into a run directory from the files found there.

    Parts whose files are missing are left out; nothing is shown that was not measured.

    Parameters
    ----------
    run
        Run directory.
    truth
        Truth folder of a simulation: true maps beside ours, latents coloured by the true coordinate.

    Returns
    -------
    Path
        The page.
    """
    found = read_run(run)
    known = read_truth(truth) if truth is not None else None
    page = fill_template(
        "report_template.html",
        title=run.resolve().name,
        facts=_facts(found),
        verdict=verdict(found.metrics),
        tiles=key_figures(found.metrics, found.records),
        measures=measure_rows(found.metrics),
        poses=pose_rows(found.metrics),
        states=found.metrics.get("states", []),
        stages=stage_rows(found.records),
        config=found.config,
        manifest=_flatten(asdict(found.manifest)) if found.manifest else {},
        steps=_next_steps(found),
        **_pictures(found, known),
        **_curves(found, known),
    )
    output = run / "report.html"
    output.write_text(page, encoding="utf-8")
    return output


def _facts(run: RunFiles) -> list[str]:
    """One-line facts under the title."""
    metrics, manifest, facts = run.metrics, run.manifest, []
    if metrics:
        facts.append(f"{metrics['particles']:,} particles")
        facts.append(f"box {metrics['box_size']} at {metrics['voxel_size_angstrom']:.2f} Å")
        facts.append(f"{metrics['latent_dimensions']} latent dimensions")
    if manifest is not None:
        facts += [f"cryoformer-dist {manifest.versions['cryoformer-dist']}", f"seed {manifest.seed}"]
    return facts


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _next_steps(run: RunFiles) -> list[dict[str, str]]:
    """Commands that open the results elsewhere."""
    steps = []
    for name, text in (("pc1", "Play the first latent axis"), ("state", "Play the evaluated states")):
        if name in run.volumes:
            level = common_level(run.volumes[name])
            play = f"open volumes/{name}_*.mrc vseries true; volume #1 level {level:.4g}; "
            play += "vseries play #1 direction oscillate"
            steps.append({"text": f"{text} in ChimeraX (run in this folder)", "command": f"chimerax --cmd '{play}'"})
    if (run.path / "flexibility.cxc").is_file():
        steps.append({"text": "Colour the mean map by flexibility", "command": "chimerax flexibility.cxc"})
    if "kmeans" in run.volumes:
        steps.append({"text": "Open the cluster maps side by side", "command": "chimerax volumes/kmeans_*.mrc"})
    if (run.path / "poses.star").is_file():
        command = "relion_reconstruct --i poses.star --o refined.mrc --ctf"
        steps.append({"text": "Back-project with the refined poses in RELION", "command": command})
    return steps


def _state_names(metrics: dict[str, Any], count: int) -> list[str]:
    unit = "°" if metrics.get("period") == 360 else ""
    prefix = "class " if metrics.get("discrete") else ""
    named = [f"{prefix}{row['state']:.3g}{unit}" for row in metrics.get("states", [])]
    return named if len(named) == count else [str(index) for index in range(count)]


def _spread(count: int, most: int) -> np.ndarray:
    """Pick at most ``most`` of ``count`` maps evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _pictures(found: RunFiles, truth: Truth | None) -> dict[str, Any]:
    """Render surfaces and cut slices, all from one view."""
    kind = next((name for name in ("state", "pc1", "kmeans") if name in found.volumes), None)
    if kind is None:
        return {"film": None, "groups": [], "slices": [], "flexible": None, "clusters": None}
    shown = found.volumes[kind]
    view = best_view(shown, common_level(shown))
    are_states = kind == "state"
    names = _state_names(found.metrics if are_states else {}, len(shown))
    pick = _spread(len(shown), _MOST_PICTURES)
    periodic = float(found.metrics.get("period", 0.0)) > 0
    colours = state_colours(len(shown), periodic) if are_states else [_SERIES_COLOUR] * len(shown)
    tints = [colours[i] for i in pick]
    frames = {"ours": figures.surface_pictures(shown[pick], view, tints, _LARGE)}
    if truth is not None and are_states and len(truth.volumes) == len(shown):
        references = np.stack([fit_box(voxels, shown.shape[-1]) for voxels in truth.volumes[pick]])
        frames["truth"] = figures.surface_pictures(references, view, tints, _LARGE)
    columns = [(names[i], shown[i]) for i in _spread(len(shown), 5)]
    if found.consensus is not None:
        floor = fit_box(found.consensus, shown.shape[-1])
        frames["consensus"] = figures.surface_pictures(floor[None], view, [BODY_COLOUR], _LARGE)
        columns.insert(0, ("consensus", floor))
    cropped = iter(common_crop([image for images in frames.values() for image in images]))
    frames = {name: [next(cropped) for _ in images] for name, images in frames.items()}
    series = {name: frames[name] for name in ("truth", "ours") if name in frames}
    captions = [names[i] for i in pick]
    rows = [
        _picture_row(name if "truth" in series else "", images, captions, name == "ours")
        for name, images in series.items()
    ]
    title, note = _HEADINGS[kind]
    return {
        "film": _film(frames, periodic),
        "groups": [{"title": title, "note": note, "rows": rows}, *_series_groups(found, shown, view)],
        "slices": figures.slice_columns(columns),
        "flexible": flexibility_section(found.path, found.volumes.get("kmeans", shown), view, _SMALL),
        "clusters": cluster_section(found.latent, found.volumes.get("kmeans", shown[:1]), view, _SMALL),
    }


def _film(frames: dict[str, list[np.ndarray]], periodic: bool) -> dict[str, Any]:
    """Frames side by side per strip; the page plays them all from one clock."""
    height, width = frames["ours"][0].shape[:2]
    strips = [
        {"name": name, "image": figures.film_strip(frames[name]), "note": note, "moves": name != "consensus"}
        for name, note in _STRIP_NOTES.items()
        if name in frames
    ]
    return {
        "count": len(frames["ours"]),
        "periodic": periodic,
        "ratio": f"{width} / {height}",
        "strips": strips,
    }


def _series_groups(found: RunFiles, shown: np.ndarray, view: View) -> list[dict[str, Any]]:
    """Rows of pictures of the series not shown yet; clusters have a section of their own."""
    groups = []
    for name, (title, note) in _HEADINGS.items():
        if name != "kmeans" and name in found.volumes and found.volumes[name] is not shown:
            pick = _spread(len(found.volumes[name]), _MOST_PICTURES)
            tints = [_SERIES_COLOUR] * len(pick)
            images = common_crop(figures.surface_pictures(found.volumes[name][pick], view, tints, _SMALL))
            row = _picture_row("", images, [str(i) for i in pick])
            groups.append({"title": title, "note": note, "rows": [row]})
    return groups


def _picture_row(
    name: str, images: list[np.ndarray], captions: list[str], show_captions: bool = True
) -> dict[str, Any]:
    tiles = list(zip(map(figures.png_data_uri, images), captions, strict=True))
    return {"name": name, "tiles": tiles, "columns": len(tiles), "captions": show_captions}


def _curves(found: RunFiles, truth: Truth | None) -> dict[str, Any]:
    """Draw the page's figures by name, None where there is nothing to draw."""
    period = float(found.metrics.get("period", 0.0))
    drawn: dict[str, str | None] = dict.fromkeys(("loss", "throughput", "fsc", "scatter", "pose_figure"))
    if found.records:
        drawn["loss"] = figures.loss_curves(found.records)
        drawn["throughput"] = figures.throughput_lines(found.records)
    if found.fsc:
        frequency = found.fsc["frequency_per_angstrom"][0]
        drawn["fsc"] = figures.fsc_curves(frequency, found.fsc["fsc_own"], found.fsc["fsc_consensus"], period > 0)
    if found.latent:
        coordinate = None if truth is None else truth.state[found.latent["source_row"]]
        table = found.latent
        drawn["scatter"] = figures.latent_scatter(
            table["pca"], table["explained_variance"], table["kmeans_pca"], coordinate, period
        )
    if "pose" in found.metrics:
        drawn["pose_figure"] = figures.pose_histograms(found.metrics["pose"])
    return drawn
