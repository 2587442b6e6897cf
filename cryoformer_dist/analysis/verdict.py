"""The verdict in words and tables: metrics.json and metrics.jsonl judged against floor and ceiling."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cryoformer_dist.runs.training_log import TrainingRecord

MEASURES = (
    (
        "difference_map_correlation",
        "Difference-map correlation",
        "Do the maps change where and as the truth changes? A map that does not move scores 0.",
    ),
    (
        "difference_map_amplitude",
        "Amplitude of the motion",
        "Size of the change against the true one: 1 is right, below 1 is damped.",
    ),
    (
        "auc_gap",
        "FSC gap, own − distant",
        "How much better each map fits its own state than one half the range away.",
    ),
    (
        "fsc_area_own",
        "FSC area, own state",
        "Mean FSC over all shells. High even without motion: read it with the gap.",
    ),
    ("fsc_area_distant", "FSC area, distant state", "The same against the state half the range away."),
    (
        "map_correlation",
        "Map correlation",
        "Voxel correlation with the true state. High even without motion.",
    ),
    (
        "latent_rank_correlation",
        "Order of the latents",
        "Cross-validated linear prediction of the true state, ranked.",
    ),
)

# Variation of maps, relative to their mean: below the first the truth is rigid, below the second a run holds still.
_RIGID, _HARDLY = 1e-6, 0.02


def verdict(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Say in words what a run recovered: ``tone`` (good, partial, none, unknown), ``headline``, ``text``."""
    if not metrics:
        return {
            "tone": "unknown",
            "headline": "Not evaluated yet",
            "text": "The run directory holds no metrics.json. Run `evaluate` on it, then `report` again.",
        }
    if not metrics.get("has_truth"):
        return _verdict_without_truth(metrics)
    if metrics["true_map_variation"] <= _RIGID:
        return _verdict_on_a_rigid_molecule(metrics)
    score, gap = metrics["difference_map_correlation"], metrics["auc_gap"]
    best_gap = metrics["ceiling"]["auc_gap"]
    if score >= 0.8 and gap >= 0.4 * best_gap:
        tone, headline = "good", "The motion was recovered"
    elif score >= 0.4 and gap > 0.1 * best_gap:
        tone, headline = "partial", "The motion was recovered in part"
    else:
        tone, headline = "none", "The motion was not recovered"
    amplitude = metrics["difference_map_amplitude"]
    size = f"its amplitude is {amplitude:.0%} of the true one"
    text = (
        f"The maps change as the true states do with a correlation of {score:.2f}, where a consensus map "
        f"scores 0 and the truth 1; {size}. Each map fits its own state better than one half the range away "
        f"by {gap:.3f} in FSC area (consensus {metrics['consensus']['auc_gap']:.3f}, truth {best_gap:.3f})."
    )
    resolution = np.median([row["resolution_angstrom"] for row in metrics["states"]])
    consensus = np.median([row["consensus_resolution_angstrom"] for row in metrics["states"]])
    still = metrics["still"]["resolution_angstrom"]
    text += f" FSC 0.5 against the truth is {resolution:.1f} Å (the mean of these maps {still:.1f} Å, consensus "
    text += f"{consensus:.1f} Å, Nyquist {metrics['nyquist_angstrom']:.1f} Å)."
    if still <= 1.05 * resolution:
        text += " Their mean reaches the same figure, so resolution alone says nothing here."
    return {"tone": tone, "headline": headline, "text": text + _about_poses(metrics)}


def _verdict_on_a_rigid_molecule(metrics: Mapping[str, Any]) -> dict[str, str]:
    invented = metrics["map_variation"]
    still = invented <= _HARDLY
    headline = "A rigid molecule stayed still" if still else "Motion was invented"
    text = (
        f"The true maps are all alike; those of the run differ by {invented:.1%} of their mean (root mean square) and "
        f"agree with the truth at {metrics['map_correlation']:.3f}."
    )
    return {"tone": "good" if still else "none", "headline": headline, "text": text + _about_poses(metrics)}


def _about_poses(metrics: Mapping[str, Any]) -> str:
    pose = metrics.get("pose", {})
    if "after" not in pose:
        return ""
    before, after = pose["before"]["angle_deg_median"], pose["after"]["angle_deg_median"]
    return f" Pose refinement moved the median rotation error from {before:.1f}° to {after:.1f}°."


def _verdict_without_truth(metrics: Mapping[str, Any]) -> dict[str, str]:
    share = metrics["explained_variance"][0]
    text = (
        "No truth is known for these particles, so nothing here says the motion is right. The maps of the "
        f"clusters differ by {metrics['map_variation']:.0%} of the mean map (root mean square) and agree "
        f"with the consensus at {metrics['consensus_map_correlation']:.2f}; the first latent axis holds "
        f"{share:.0%} of the variance. Before believing a motion, train both half-sets apart and look for it "
        "in each."
    )
    if "pose_change" in metrics:
        text += f" Refinement turned the poses by {metrics['pose_change']['angle_deg_median']:.1f}° (median)."
    return {"tone": "unknown", "headline": "Look, compare, then believe", "text": text}


def key_figures(metrics: Mapping[str, Any], records: Sequence[TrainingRecord]) -> list[dict[str, Any]]:
    """Tiles of the report; ``share`` is where ours lies from floor (0) to ceiling (1), None without them."""
    tiles: list[dict[str, Any]] = []
    for key, name, _ in MEASURES:
        if "ceiling" in metrics and key in metrics and not key.startswith("fsc_area"):
            ours, floor, best = metrics[key], metrics["consensus"][key], metrics["ceiling"][key]
            reached = (ours - floor) / (best - floor) if best > floor else 0.0
            # Too much motion is as wrong as too little.
            share = min(max(min(reached, 2 - reached), 0.0), 1.0)
            note = f"floor {floor:.2f} · truth {best:.2f}"
            tiles.append({"name": name, "value": f"{ours:.2f}", "note": note, "share": share})
    if "ceiling" not in metrics and "map_variation" in metrics:
        alone = (
            ("Change between clusters", f"{metrics['map_variation']:.1%}", "rms of the mean map"),
            (
                "Agreement with the consensus",
                f"{metrics['consensus_map_correlation']:.2f}",
                "voxel correlation",
            ),
            ("First latent axis", f"{metrics['explained_variance'][0]:.0%}", "of the latent variance"),
        )
        tiles += [{"name": n, "value": value, "note": note, "share": None} for n, value, note in alone]
    rates = [record.particles_per_second for record in records]
    if rates:
        value = f"{np.median(rates):,.0f}"
        tiles.append({"name": "Particles per second", "value": value, "note": "median of reports", "share": None})
    return tiles


def measure_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table ours | consensus | truth, only measures that were taken."""
    if "ceiling" not in metrics:
        return []
    rows = [
        {
            "name": name,
            "meaning": meaning,
            "ours": f"{metrics[key]:.3f}",
            "floor": f"{metrics['consensus'][key]:.3f}",
            "ceiling": f"{metrics['ceiling'][key]:.3f}",
        }
        for key, name, meaning in MEASURES
    ]
    return [*rows, *_local_rows(metrics), *_state_rows(metrics)]


def _local_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Single particles' maps, and the moving region."""
    rows = []
    if "per_image_fsc_auc" in metrics:
        per_image = metrics["per_image_fsc_auc"]
        rows.append(
            {
                "name": "Per-image FSC area, masked",
                "meaning": "CryoBench's: the maps of single particles. Its perfect score is (box / 2 − 1) / box.",
                "ours": f"{per_image['masked_mean']:.3f} ± {per_image['masked_std']:.3f}",
                "floor": f"{per_image['consensus_masked_mean']:.3f}",
                "ceiling": f"{per_image['perfect']:.3f}",
            }
        )
    if "moving_region" in metrics:
        region, key = metrics["moving_region"], "difference_map_correlation"
        where = "in the given mask" if region["mask"] == "given" else "where the truth moves"
        rows.append(
            {
                "name": "Difference-map correlation, moving region",
                "meaning": f"The same only {where}: {region['share_of_box']:.1%} of the box.",
                "ours": f"{region[key]:.3f}",
                "floor": f"{region['consensus'][key]:.3f}",
                "ceiling": f"{region['ceiling'][key]:.3f}",
            }
        )
    return rows


_ORACLE_MEANING = {
    "ours_": "State of {particles} images predicted linearly from their latents. Ceiling: an oracle that knows the "
    "true maps and poses; the noise hides the rest.",
    "neighbours_": "The mean state of the nearest particles in latent space, which also follows a curved path.",
}


def _state_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Error of the state of single particles, beside the oracle's where it was asked."""
    rows = []
    if "angle_error_deg" in metrics:
        meaning = "Mean error of the state predicted from the latents; chance is 90°."
        ours = f"{metrics['angle_error_deg']:.1f}°"
        rows.append({"name": "Angle error", "meaning": meaning, "ours": ours, "floor": "90°", "ceiling": "0°"})
    if "class_accuracy" in metrics:
        chance = f"{1 / max(len(metrics['states']), 1):.2f}"
        for key, name in (
            ("class_accuracy", "Class accuracy, linear"),
            ("cluster_accuracy", "Class accuracy, k-means"),
        ):
            meaning, ours = "Particles named rightly.", f"{metrics[key]:.3f}"
            rows.append({"name": name, "meaning": meaning, "ours": ours, "floor": chance, "ceiling": "1"})
    if "oracle" in metrics:
        rows += _oracle_rows(metrics["oracle"], len(metrics["states"]))
    return rows


def _oracle_rows(oracle: Mapping[str, Any], states: int) -> list[dict[str, str]]:
    named = (
        ("angle_error_deg", "Angle error of single images", "{:.1f}°", "90.0°"),
        # A guess in the middle of a uniform range errs by a quarter of it.
        ("mean_absolute_error", "Error of single images, share of the range", "{:.3f}", "0.250"),
        ("class_accuracy", "Class accuracy of single images", "{:.3f}", f"{1 / max(states, 1):.3f}"),
    )
    key, name, form, chance = next(row for row in named if row[0] in oracle)
    readings = (("ours_", "linear"), ("neighbours_", "by neighbours"))
    return [
        {
            "name": f"{name}, {reading}",
            "meaning": _ORACLE_MEANING[prefix].format(**oracle),
            "ours": form.format(oracle[f"{prefix}{key}"]),
            "floor": chance,
            "ceiling": form.format(oracle[key]),
        }
        for prefix, reading in readings
        if f"{prefix}{key}" in oracle
    ]


_SUMMARY = {
    "per_image_fsc_auc": (
        "masked_mean", "still_masked_mean", "consensus_masked_mean", "mean", "still_mean", "consensus_mean", "perfect",
    ),
    "moving_region": ("difference_map_correlation", "auc_gap"),
    "oracle": (
        "angle_error_deg", "mean_absolute_error", "class_accuracy", "rank_correlation",
        "ours_angle_error_deg", "ours_mean_absolute_error", "ours_class_accuracy", "ours_rank_correlation",
        "neighbours_angle_error_deg", "neighbours_mean_absolute_error", "neighbours_class_accuracy",
        "neighbours_rank_correlation", "error_ratio", "neighbours_error_ratio",
    ),
}  # fmt: skip


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: every plain number, and the key numbers of the measures that hold several."""
    shown = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    for part, keys in _SUMMARY.items():
        shown |= {f"{part}.{key}": metrics[part][key] for key in keys if metrics.get(part, {}).get(key) is not None}
    return [f"{key:<44} {value:.4g}" for key, value in shown.items()]


def pose_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Pose errors before and after, as text; empty without a truth."""
    pose = metrics.get("pose", {})
    named = (
        ("angle_deg_median", "Rotation, median", "{:.2f}°"),
        ("squared_frobenius_mean", "Squared Frobenius, mean", "{:.4f}"),
        ("squared_frobenius_median", "Squared Frobenius, median", "{:.4f}"),
        ("shift_angstrom_mean", "Shift, mean", "{:.2f} Å"),
        ("shift_box_fraction_mean", "Shift, share of the box", "{:.4f}"),
    )
    return [
        {"name": name, **{when: form.format(pose[when][key]) for when in ("before", "after") if when in pose}}
        for key, name, form in named
        if pose
    ]


def stage_rows(records: Sequence[TrainingRecord]) -> list[dict[str, Any]]:
    """Throughput per stage."""
    # The records' clock goes on over resumes.
    spent = np.diff([float(record.seconds) for record in records], prepend=0.0)
    rows = []
    for stage in dict.fromkeys(str(record.stage) for record in records):
        at = [index for index, record in enumerate(records) if record.stage == stage]
        reports = [records[index] for index in at]
        rows.append(
            {
                "stage": stage.replace("_", " "),
                "reports": len(reports),
                "loss": f"{float(reports[-1].loss):.4f}",
                "rate": _format_median((one.particles_per_second for one in reports), "{:,.0f}"),
                "wait": _format_median((one.data_wait_share for one in reports), "{:.1%}"),
                "memory": _format_median((one.memory_gib for one in reports), "{:.2f}"),
                "seconds": f"{spent[at].sum():,.0f}",
                "workers": str(reports[-1].workers),
            }
        )
    return rows


def _format_median(values: Iterable[float], form: str) -> str:
    return form.format(float(np.median(list(values))))
