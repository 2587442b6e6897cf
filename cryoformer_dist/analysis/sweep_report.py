"""What a sweep came to, for people: ``report.html``, ``report.md``, ``report.csv`` and the best run's file.

Written from the trials' run directories alone, so it can be made again at any time, also while a sweep goes on.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.analysis.report_tables import Tile, Tone, Verdict
from cryoformer_dist.analysis.sweep_table import (
    find_best_trial,
    format_mean,
    format_score,
    group_trials,
    rank_parameters,
)
from cryoformer_dist.config.loading import dump_config
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.config.trials import short_names
from cryoformer_dist.figures import sweep_plots
from cryoformer_dist.figures.page import fill_template
from cryoformer_dist.figures.sweep_plots import MEASURES
from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.layout import REPORT, SWEEP_BEST, SWEEP_SUMMARY, SWEEP_TABLE, SWEEP_TRIALS
from cryoformer_dist.runs.sweep import Importance, Setting, TrialResult, read_sweep, read_trials
from cryoformer_dist.storage.places import replaced, write_whole

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
    settings = group_trials(trials, config)
    found = rank_parameters(trials, config.metric)
    sweep = _Sweep(folder, config, trials, settings, found, find_best_trial(settings, config.metric))
    command = _write_best(sweep)
    _write_csv(sweep)
    tables = _make_tables(sweep)
    verdict = _put_in_words(sweep)
    write_whole(folder / SWEEP_SUMMARY, _compose_markdown(sweep, verdict, tables, command))
    page = fill_template(
        "sweep_template.html",
        title=config.name,
        facts=_list_facts(sweep),
        verdict=verdict,
        tiles=_list_tiles(sweep),
        tables=tables,
        figures=_draw_figures(sweep),
        table_2_note=_compose_table_2_note(sweep),
        metric=MEASURES[config.metric][0],
        command=command,
        sweep=dump_config(config),
    )
    output = folder / REPORT
    write_whole(output, page)
    return output


def _write_best(sweep: _Sweep) -> str | None:
    """The best run's configuration, ready to launch, and the command that does."""
    path = sweep.folder / SWEEP_BEST
    if sweep.best is None:
        path.unlink(missing_ok=True)
        return None
    config = load_run(sweep.best.folder)[0].model_copy(update={"name": f"{sweep.config.name}-best"})
    command = f"cryoformer-dist launch cluster/local.yaml --run {path}"
    write_whole(path, f"# {command}\n# Trial {sweep.best.name} of sweep {sweep.config.name}.\n{dump_config(config)}")
    return command


def _write_csv(sweep: _Sweep) -> None:
    """One row per trial, numbers in full."""
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.parameters))
    scores = list(dict.fromkeys(key for trial in sweep.trials for key in trial.scores))
    head = ["trial", "state", "variant", "seed", *keys, *scores, "epochs", "epochs_planned"]
    with (
        replaced(sweep.folder / SWEEP_TABLE) as beside,
        beside.open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.writer(stream)
        table.writerow([*head, "hours", "cpu_hours", "gpu_hours", "error"])
        for trial in sweep.trials:
            values = [trial.parameters.get(key, "") for key in keys]
            measured = [trial.scores.get(key, "") for key in scores]
            cost = [trial.hours, trial.cpu_hours, trial.gpu_hours]
            row = [trial.name, trial.state, trial.variant or "", trial.seed, *values, *measured]
            table.writerow([*row, trial.epochs, trial.of, *cost, trial.error or ""])


def _list_facts(sweep: _Sweep) -> list[str]:
    config = sweep.config
    facts = [_format_count(len(sweep.settings), "setting"), _format_count(len(config.seeds), "seed")]
    facts.append(f"search {config.search}" if config.parameters else _format_count(len(config.variants), "variant"))
    if config.scheduler.kind != "none":
        facts.append(f"scheduler {config.scheduler.kind}")
    return [*facts, f"ranked by {MEASURES[config.metric][0]}"]


def _put_in_words(sweep: _Sweep) -> Verdict:
    """The answer in a headline and a few sentences."""
    if sweep.best is None:
        text = "No trial has finished yet" + ("; see the failed ones below." if _select(sweep, "failed") else ".")
        return Verdict("unknown", "Nothing to rank", text)
    first, metric = sweep.settings[0], sweep.config.metric
    name = MEASURES[metric][0]
    text = f"{first.name}: {name} {format_mean(first, metric)} over {_format_count(len(first.finished), 'seed')}."
    headline = f"Best: {first.name}"
    tone: Tone = "good"
    full = next(iter(sweep.config.variants), None)
    if any(setting.variant == full and setting.finished for setting in sweep.settings) and full is not None:
        is_full = first.variant == full
        headline = "The full model is the best row" if is_full else f"{first.name} beats the full model"
        tone = "good" if is_full else "partial"
    seconds = [setting for setting in sweep.settings[1:] if setting.finished]
    if seconds:
        text += _compare(first, seconds[0], metric)
    if failed := _select(sweep, "failed"):
        text += f" {_format_count(len(failed), 'trial')} failed, with the reasons below."
    if unfinished := _select(sweep, "unfinished"):
        text += f" {_format_count(len(unfinished), 'trial')} not ended yet."
    return Verdict(tone, headline, text)


def _compare(first: Setting, second: Setting, metric: str) -> str:
    """How far the best is from the next, beside the spread over seeds."""
    name, form = MEASURES[metric]
    gap = abs(first.mean[metric] - second.mean[metric])
    text = f" Next is {second.name} with {format_mean(second, metric)}, {form.format(gap)} behind"
    spreads = [spread for setting in (first, second) if (spread := setting.spread[metric]) is not None]
    if not spreads:
        return f"{text}; with one seed each, nobody knows how much of that is chance."
    size = "more" if gap > max(spreads) else "less"
    return f"{text}: {size} than the spread of {name} over seeds ({form.format(max(spreads))})."


def _list_tiles(sweep: _Sweep) -> list[Tile]:
    trials = sweep.trials
    others = {state: len(_select(sweep, state)) for state in ("stopped", "failed", "unfinished")}
    counts = [f"{count} {state}" for state, count in others.items() if count]
    tiles = [Tile("Trials finished", str(len(_select(sweep, "finished"))), ", ".join(counts) or "all")]
    if sweep.best is not None:
        value = format_score(sweep.best, sweep.config.metric)
        tiles.append(Tile(f"Best {MEASURES[sweep.config.metric][0]}", value, sweep.best.name))
    used, planned = sum(trial.epochs for trial in trials), sum(trial.of for trial in trials)
    tiles.append(Tile("Epochs used", f"{used:,}", f"of {planned:,} planned"))
    tiles.append(Tile("Time of all trials", _format_hours(sum(t.hours for t in trials)), "one after the other"))
    tiles.append(Tile("CPU time", _format_hours(sum(t.cpu_hours for t in trials)), "of all trials"))
    if gpu := sum(trial.gpu_hours for trial in trials):
        tiles.append(Tile("GPU time", _format_hours(gpu), "held by workers"))
    return tiles


def _make_tables(sweep: _Sweep) -> dict[str, Table | None]:
    return {
        "ablation": _tabulate_ablation(sweep) if sweep.config.variants else None,
        "ranking": _tabulate_ranking(sweep),
        "importance": _tabulate_importance(sweep) if sweep.importances else None,
        "failed": _tabulate_failed(sweep),
        "trials": _tabulate_trials(sweep),
    }


def _tabulate_ablation(sweep: _Sweep) -> Table:
    """Rows in the order of the file, the full model first."""
    names = list(sweep.config.variants)
    rows = sorted(sweep.settings, key=lambda setting: names.index(setting.variant or names[0]))
    head = ["Model", *(MEASURES[key][0] for key in _TABLE_2), "seeds"]
    cells = [
        [row.name, *(format_mean(row, key) for key in _TABLE_2), f"{len(row.finished)} of {len(row.trials)}"]
        for row in rows
    ]
    return Table(head, cells, [number for number, row in enumerate(rows) if row is sweep.settings[0] and row.finished])


def _compose_table_2_note(sweep: _Sweep) -> str:
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


def _tabulate_ranking(sweep: _Sweep) -> Table:
    metric = sweep.config.metric
    shown = [metric, *(key for key in _RANKED if key != metric and any(key in row.mean for row in sweep.settings))]
    head = ["Setting", *(MEASURES[key][0] for key in shown), "seeds", "time per trial"]
    rows = [
        [
            f"{number}. {row.name}" if row.finished else row.name,
            *(format_mean(row, key) for key in shown),
            _describe_ends(row),
            _format_hours(sum(trial.hours for trial in row.trials) / len(row.trials)),
        ]
        for number, row in enumerate(sweep.settings, start=1)
    ]
    return Table(head, rows, [0] if sweep.best else [])


def _describe_ends(setting: Setting) -> str:
    """How many seeds finished, and what became of the others."""
    text = f"{len(setting.finished)} of {len(setting.trials)}"
    others = sorted({trial.state for trial in setting.trials} - {"finished"})
    return f"{text}, {', '.join(others)}" if others else text


def _tabulate_importance(sweep: _Sweep) -> Table:
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


def _tabulate_failed(sweep: _Sweep) -> Table | None:
    failed = _select(sweep, "failed")
    rows = [[trial.name, f"{trial.epochs} of {trial.of}", trial.error or ""] for trial in failed]
    return Table(["Trial", "epochs", "error"], rows) if rows else None


def _tabulate_trials(sweep: _Sweep) -> Table:
    shown = [key for key in MEASURES if any(key in trial.scores for trial in sweep.trials)]
    head = ["Trial", "state", "epochs", *(MEASURES[key][0] for key in shown), "time", "CPU time"]
    rows, links = [], []
    for trial in sweep.trials:
        scores = [format_score(trial, key) for key in shown]
        cost = [_format_hours(trial.hours), _format_hours(trial.cpu_hours)]
        rows.append([trial.name, trial.state, f"{trial.epochs} of {trial.of}", *scores, *cost])
        page = trial.folder / REPORT
        links.append(f"{SWEEP_TRIALS}/{trial.folder.name}/{REPORT}" if page.is_file() else "")
    best = [number for number, trial in enumerate(sweep.trials) if trial is sweep.best]
    return Table(head, rows, best, links)


def _draw_figures(sweep: _Sweep) -> dict[str, str | None]:
    """Drawings by name, None where there is nothing to draw."""
    metric, trials = sweep.config.metric, sweep.trials
    drawn: dict[str, str | None] = dict.fromkeys(("curves", "seeds", "importance", "parallel", "epochs"))
    if any(trial.curve for trial in trials):
        drawn["curves"] = sweep_plots.draw_learning_curves(sweep.settings, metric)
    if any(metric in trial.scores for trial in trials):
        drawn["seeds"] = sweep_plots.draw_seeds(sweep.settings, metric)
    if sweep.importances:
        drawn["importance"] = sweep_plots.draw_importance(sweep.importances)
        drawn["parallel"] = sweep_plots.draw_parallel_coordinates(trials, metric)
    if any(trial.epochs < trial.of for trial in trials):
        drawn["epochs"] = sweep_plots.draw_epochs(trials)
    return drawn


def _compose_markdown(sweep: _Sweep, verdict: Verdict, tables: dict[str, Table | None], command: str | None) -> str:
    titles = {
        "ablation": f"Ablation\n\n{_compose_table_2_note(sweep)}",
        "ranking": "Ranking",
        "importance": "Importance of the parameters",
        "failed": "Failed",
        "trials": "Trials",
    }
    parts = [f"# Sweep {sweep.config.name}", f"**{verdict.headline}.** {verdict.text}", ", ".join(_list_facts(sweep))]
    parts += [f"## {titles[name]}\n\n{table.markdown()}" for name, table in tables.items() if table is not None]
    cost = [f"{tile.name} {tile.value} ({tile.note})" for tile in _list_tiles(sweep)]
    parts.append("## Cost\n\n" + ", ".join(cost))
    if command:
        parts.append(f"## The best run again\n\n```console\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _select(sweep: _Sweep, state: str) -> list[TrialResult]:
    return [trial for trial in sweep.trials if trial.state == state]


def _format_count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _format_hours(hours: float) -> str:
    if not hours:
        return "–"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
