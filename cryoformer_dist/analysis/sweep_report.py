"""What a sweep came to, for people: ``report.html``, ``report.md``, ``report.csv`` and the best run's file.

Written from the trials' run directories alone, so it can be made again at any time, also while a sweep goes on.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoformer_dist.analysis import sweep_figures
from cryoformer_dist.analysis.sweep_folder import TrialResult, read_sweep, read_trials
from cryoformer_dist.analysis.sweep_table import (
    MEASURES,
    Importance,
    Setting,
    best_trial,
    importances,
    settings_of,
    written,
    written_score,
)
from cryoformer_dist.config.loading import dump_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import short_names
from cryoformer_dist.figures.page import fill_template
from cryoformer_dist.runs.directory import load_run

_TABLE_2 = ("resolution_angstrom", "rotation_error", "rotation_error_deg", "shift_error", "difference_map_correlation")
_TABLE_2_NOTE = (
    "The form of the paper's Table 2. Resolution: FSC 0.5 with the truth, median over the states. Rotation error: mean "
    "squared Frobenius norm of the difference of rotation matrices, which a few particles gone astray decide; beside "
    "it the median angle. Translation error: mean distance as a share of the box. dCC: correlation of the difference "
    "maps with the true ones; maps that do not move score 0."
)
_RANKED = ("difference_map_correlation", "auc_gap", "resolution_angstrom", "latent_rank_correlation", "loss")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes
    ----------
    head
        Column headings.
    rows
        Cells.
    best
        Numbers of the rows that stand out.
    links
        For each row, where its first cell leads; empty for nowhere.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Sequence[int] = ()
    links: Sequence[str] = ()

    def markdown(self) -> str:
        """The table in Markdown."""
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (self.head, *self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([lines[0], "|" + "---|" * len(self.head), *lines[1:]])


@dataclass(frozen=True, slots=True)
class _Sweep:
    """All that the report is made of."""

    folder: Path
    config: SweepConfig
    trials: list[TrialResult]
    settings: list[Setting]
    importances: list[Importance]
    best: TrialResult | None


def write_sweep_report(folder: Path) -> Path:
    """Write ``report.html``, ``.md``, ``.csv`` and ``best.yaml`` into a sweep's folder.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        If the folder holds no sweep.
    """
    config, trials = read_sweep(folder), read_trials(folder)
    settings = settings_of(trials, config)
    found = importances(trials, config.metric)
    sweep = _Sweep(folder, config, trials, settings, found, best_trial(settings, config.metric))
    command = _write_best(sweep)
    _write_csv(sweep)
    tables = _tables(sweep)
    verdict = _verdict(sweep)
    (folder / "report.md").write_text(_markdown(sweep, verdict, tables, command), encoding="utf-8")
    page = fill_template(
        "sweep_template.html",
        title=config.name,
        facts=_facts(sweep),
        verdict=verdict,
        tiles=_tiles(sweep),
        tables=tables,
        figures=_figures(sweep),
        table_2_note=_table_2_note(sweep),
        metric=MEASURES[config.metric][0],
        command=command,
        sweep=dump_config(config),
    )
    output = folder / "report.html"
    output.write_text(page, encoding="utf-8")
    return output


def _write_best(sweep: _Sweep) -> str | None:
    """The best run's configuration, ready to launch, and the command that does."""
    path = sweep.folder / "best.yaml"
    if sweep.best is None:
        path.unlink(missing_ok=True)
        return None
    config = load_run(sweep.best.folder)[0].model_copy(update={"name": f"{sweep.config.name}-best"})
    command = f"cryoformer-dist launch cluster/local.yaml --run {path}"
    path.write_text(f"# {command}\n# Trial {sweep.best.name} of sweep {sweep.config.name}.\n{dump_config(config)}")
    return command


def _write_csv(sweep: _Sweep) -> None:
    """One row per trial, numbers in full."""
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.parameters))
    scores = list(dict.fromkeys(key for trial in sweep.trials for key in trial.scores))
    head = ["trial", "state", "variant", "seed", *keys, *scores, "epochs", "epochs_planned"]
    with (sweep.folder / "report.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow([*head, "hours", "cpu_hours", "gpu_hours", "error"])
        for trial in sweep.trials:
            values = [trial.parameters.get(key, "") for key in keys]
            measured = [trial.scores.get(key, "") for key in scores]
            cost = [trial.hours, trial.cpu_hours, trial.gpu_hours]
            row = [trial.name, trial.state, trial.variant or "", trial.seed, *values, *measured]
            table.writerow([*row, trial.epochs, trial.of, *cost, trial.error or ""])


def _facts(sweep: _Sweep) -> list[str]:
    config = sweep.config
    facts = [_count(len(sweep.settings), "setting"), _count(len(config.seeds), "seed")]
    facts.append(f"search {config.search}" if config.parameters else _count(len(config.variants), "variant"))
    if config.scheduler.kind != "none":
        facts.append(f"scheduler {config.scheduler.kind}")
    return [*facts, f"ranked by {MEASURES[config.metric][0]}"]


def _verdict(sweep: _Sweep) -> dict[str, str]:
    """The answer in a headline and a few sentences."""
    if sweep.best is None:
        text = "No trial has finished yet" + ("; see the failed ones below." if _in(sweep, "failed") else ".")
        return {"tone": "unknown", "headline": "Nothing to rank", "text": text}
    first, metric = sweep.settings[0], sweep.config.metric
    name = MEASURES[metric][0]
    text = f"{first.name}: {name} {written(first, metric)} over {_count(len(first.finished), 'seed')}."
    headline, tone = f"Best: {first.name}", "good"
    full = next(iter(sweep.config.variants), None)
    if any(setting.variant == full and setting.finished for setting in sweep.settings) and full is not None:
        is_full = first.variant == full
        headline = "The full model is the best row" if is_full else f"{first.name} beats the full model"
        tone = "good" if is_full else "partial"
    seconds = [setting for setting in sweep.settings[1:] if setting.finished]
    if seconds:
        text += _compared(first, seconds[0], metric)
    if failed := _in(sweep, "failed"):
        text += f" {_count(len(failed), 'trial')} failed, with the reasons below."
    if unfinished := _in(sweep, "unfinished"):
        text += f" {_count(len(unfinished), 'trial')} not ended yet."
    return {"tone": tone, "headline": headline, "text": text}


def _compared(first: Setting, second: Setting, metric: str) -> str:
    """How far the best is from the next, beside the spread over seeds."""
    name, form = MEASURES[metric]
    gap = abs(first.mean[metric] - second.mean[metric])
    text = f" Next is {second.name} with {written(second, metric)}, {form.format(gap)} behind"
    spreads = [spread for setting in (first, second) if (spread := setting.spread[metric]) is not None]
    if not spreads:
        return f"{text}; with one seed each, nobody knows how much of that is chance."
    size = "more" if gap > max(spreads) else "less"
    return f"{text}: {size} than the spread of {name} over seeds ({form.format(max(spreads))})."


def _tiles(sweep: _Sweep) -> list[dict[str, Any]]:
    trials = sweep.trials
    counts = [f"{len(_in(sweep, state))} {state}" for state in ("stopped", "failed", "unfinished") if _in(sweep, state)]
    tiles = [{"name": "Trials finished", "value": str(len(_in(sweep, "finished"))), "note": ", ".join(counts) or "all"}]
    if sweep.best is not None:
        value = written_score(sweep.best, sweep.config.metric)
        tiles.append({"name": f"Best {MEASURES[sweep.config.metric][0]}", "value": value, "note": sweep.best.name})
    used, planned = sum(trial.epochs for trial in trials), sum(trial.of for trial in trials)
    tiles.append({"name": "Epochs used", "value": f"{used:,}", "note": f"of {planned:,} planned"})
    tiles.append(
        {"name": "Time of all trials", "value": _hours(sum(t.hours for t in trials)), "note": "one after the other"}
    )
    tiles.append({"name": "CPU time", "value": _hours(sum(t.cpu_hours for t in trials)), "note": "of all trials"})
    if gpu := sum(trial.gpu_hours for trial in trials):
        tiles.append({"name": "GPU time", "value": _hours(gpu), "note": "held by workers"})
    return tiles


def _tables(sweep: _Sweep) -> dict[str, Table | None]:
    return {
        "ablation": _ablation(sweep) if sweep.config.variants else None,
        "ranking": _ranking(sweep),
        "importance": _importance_table(sweep) if sweep.importances else None,
        "failed": _failed(sweep),
        "trials": _trial_table(sweep),
    }


def _ablation(sweep: _Sweep) -> Table:
    """Rows in the order of the file, the full model first."""
    names = list(sweep.config.variants)
    rows = sorted(sweep.settings, key=lambda setting: names.index(setting.variant or names[0]))
    head = ["Model", *(MEASURES[key][0] for key in _TABLE_2), "seeds"]
    cells = [
        [row.name, *(written(row, key) for key in _TABLE_2), f"{len(row.finished)} of {len(row.trials)}"]
        for row in rows
    ]
    return Table(head, cells, [number for number, row in enumerate(rows) if row is sweep.settings[0] and row.finished])


def _table_2_note(sweep: _Sweep) -> str:
    floors = [
        trial.scores["consensus_resolution_angstrom"]
        for trial in sweep.trials
        if trial.state == "finished" and "consensus_resolution_angstrom" in trial.scores
    ]
    if not floors:
        return _TABLE_2_NOTE
    return (
        f"{_TABLE_2_NOTE} The consensus map, which shows no motion, has a resolution of {min(floors):.2f} Å by itself."
    )


def _ranking(sweep: _Sweep) -> Table:
    metric = sweep.config.metric
    shown = [metric, *(key for key in _RANKED if key != metric and any(key in row.mean for row in sweep.settings))]
    head = ["Setting", *(MEASURES[key][0] for key in shown), "seeds", "time per trial"]
    rows = [
        [
            f"{place}. {row.name}" if row.finished else row.name,
            *(written(row, key) for key in shown),
            _ended(row),
            _hours(sum(trial.hours for trial in row.trials) / len(row.trials)),
        ]
        for place, row in enumerate(sweep.settings, start=1)
    ]
    return Table(head, rows, [0] if sweep.best else [])


def _ended(setting: Setting) -> str:
    """How many seeds finished, and what became of the others."""
    text = f"{len(setting.finished)} of {len(setting.trials)}"
    others = sorted({trial.state for trial in setting.trials} - {"finished"})
    return f"{text}, {', '.join(others)}" if others else text


def _importance_table(sweep: _Sweep) -> Table:
    names = short_names([found.key for found in sweep.importances])
    rows = [
        [
            names[found.key],
            f"{found.explained:.0%}",
            "–" if found.rank_correlation is None else f"{found.rank_correlation:+.2f}",
        ]
        for found in sweep.importances
    ]
    return Table(["Parameter", "variance explained", "rank correlation"], rows)


def _failed(sweep: _Sweep) -> Table | None:
    failed = _in(sweep, "failed")
    rows = [[trial.name, f"{trial.epochs} of {trial.of}", trial.error or ""] for trial in failed]
    return Table(["Trial", "epochs", "error"], rows) if rows else None


def _trial_table(sweep: _Sweep) -> Table:
    shown = [key for key in MEASURES if any(key in trial.scores for trial in sweep.trials)]
    head = ["Trial", "state", "epochs", *(MEASURES[key][0] for key in shown), "time", "CPU time"]
    rows, links = [], []
    for trial in sweep.trials:
        scores = [written_score(trial, key) for key in shown]
        cost = [_hours(trial.hours), _hours(trial.cpu_hours)]
        rows.append([trial.name, trial.state, f"{trial.epochs} of {trial.of}", *scores, *cost])
        page = trial.folder / "report.html"
        links.append(f"trials/{trial.folder.name}/report.html" if page.is_file() else "")
    best = [number for number, trial in enumerate(sweep.trials) if trial is sweep.best]
    return Table(head, rows, best, links)


def _figures(sweep: _Sweep) -> dict[str, str | None]:
    """Drawings by name, None where there is nothing to draw."""
    metric, trials = sweep.config.metric, sweep.trials
    drawn: dict[str, str | None] = dict.fromkeys(("curves", "seeds", "importance", "parallel", "epochs"))
    if any(trial.curve for trial in trials):
        drawn["curves"] = sweep_figures.learning_curves(sweep.settings, metric)
    if any(metric in trial.scores for trial in trials):
        drawn["seeds"] = sweep_figures.seed_spread(sweep.settings, metric)
    if sweep.importances:
        drawn["importance"] = sweep_figures.parameter_importance(sweep.importances)
        drawn["parallel"] = sweep_figures.parallel_coordinates(trials, metric)
    if any(trial.epochs < trial.of for trial in trials):
        drawn["epochs"] = sweep_figures.epochs_used(trials)
    return drawn


def _markdown(sweep: _Sweep, verdict: dict[str, str], tables: dict[str, Table | None], command: str | None) -> str:
    titles = {
        "ablation": f"Ablation\n\n{_table_2_note(sweep)}",
        "ranking": "Ranking",
        "importance": "Importance of the parameters",
        "failed": "Failed",
        "trials": "Trials",
    }
    parts = [f"# Sweep {sweep.config.name}", f"**{verdict['headline']}.** {verdict['text']}", ", ".join(_facts(sweep))]
    parts += [f"## {titles[name]}\n\n{table.markdown()}" for name, table in tables.items() if table is not None]
    cost = [f"{tile['name']} {tile['value']} ({tile['note']})" for tile in _tiles(sweep)]
    parts.append("## Cost\n\n" + ", ".join(cost))
    if command:
        parts.append(f"## The best run again\n\n```console\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _in(sweep: _Sweep, state: str) -> list[TrialResult]:
    return [trial for trial in sweep.trials if trial.state == state]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _hours(hours: float) -> str:
    if not hours:
        return "–"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
