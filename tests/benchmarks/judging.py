"""Every contender before the same judge: our evaluation, in full after the last epoch, its map scores on the way."""

import sys
from typing import Any

import numpy as np
from particle_set import Contender, ParticleSet, Snapshot

from cryoformer_dist.analysis.evaluate import Estimate, evaluate
from cryoformer_dist.analysis.latent import score_latents
from cryoformer_dist.analysis.map_scores import fit_box, score_maps
from cryoformer_dist.analysis.oracle import score_oracle
from cryoformer_dist.analysis.truth import Truth, choose_particles, read_truth
from cryoformer_dist.storage.records import as_json

# Column of the table -> number of the evaluation.
COLUMNS = {
    "dCC": "difference_map_correlation",
    "amplitude": "difference_map_amplitude",
    "AUC gap": "auc_gap",
    "per-image FSC": "per_image_fsc_auc.mean",
    "masked": "per_image_fsc_auc.masked_mean",
    "rank corr": "latent_rank_correlation",
    "angle error": "angle_error_deg",
    "state error": "mean_absolute_error",
    "error / oracle": "oracle.error_ratio",
}


def judge(data: ParticleSet, contender: Contender, every: int, last: int | None) -> dict[str, Any]:
    """Curve over epochs, and the whole evaluation after the last."""
    seconds = {epoch: spent for epoch, spent in contender.epochs().items() if last is None or epoch <= last}
    if not seconds:
        raise SystemExit(f"{contender.name}: nothing trained yet")
    truth, curve = read_truth(data.truth_folder), []
    final: dict[str, float] = {}
    for epoch in sorted(seconds):
        at_end = epoch == max(seconds)
        if epoch % every and not at_end:
            continue
        snapshot = data.alike(contender.snapshot(epoch))
        scores = on_the_way(data, snapshot, truth)
        curve.append({"epoch": epoch, "cpu_seconds": seconds[epoch], **scores})
        motion = scores["difference_map_correlation"]
        print(f"{contender.name}: epoch {epoch}, {seconds[epoch]:.0f} s, dCC {motion:.3f}", file=sys.stderr)
        if at_end:
            final = in_full(data, snapshot, truth)
    return {"remark": contender.remark, "final": final, "curve": curve, "store": data.store.fingerprint}


def on_the_way(data: ParticleSet, snapshot: Snapshot, truth: Truth) -> dict[str, float]:
    """What `evaluate` says of the maps of the states and of the latents, without decoding single particles."""
    kept = truth.shows_particle(data.particles.source_row)
    latents, state = snapshot.latents[kept], truth.state[data.particles.source_row[kept]]
    chosen = choose_particles(state, truth)
    seen = [index for index, rows in enumerate(chosen) if len(rows)]
    volumes = snapshot.decode(np.stack([latents[chosen[index]].mean(axis=0) for index in seen]))
    references = np.stack([fit_box(truth.volumes[index], volumes.shape[-1]) for index in seen])
    told = score_latents(latents, state, truth.period, truth.discrete)
    return scalars({**as_json(score_maps(volumes, references)), **as_json(told)})


def in_full(data: ParticleSet, snapshot: Snapshot, truth: Truth) -> dict[str, float]:
    """Every number of our evaluation, the oracle's among them."""
    particles, latents = data.particles, np.ascontiguousarray(snapshot.latents, dtype=np.float32)
    estimate = Estimate(latents, particles.source_row, particles.rotation, particles.shift_angstrom)
    scores = evaluate(snapshot.decode, estimate, data.consensus, truth).scores
    rows = np.flatnonzero(truth.shows_particle(particles.source_row))
    oracle = score_oracle(data.store, truth, latents[rows], rows)
    return scalars({**as_json(scores), "oracle": as_json(oracle)})


def scalars(scores: dict[str, Any]) -> dict[str, float]:
    """Plain numbers of an evaluation, those of sections as ``section.name``."""
    flat: dict[str, float] = {}
    for key, value in scores.items():
        if isinstance(value, dict) and key not in ("ceiling", "pose"):
            flat |= {f"{key}.{name}": number for name, number in scalars(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[key] = value
    return flat


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per program after its last epoch, beside the best point of its curve; Markdown."""
    columns = {head: key for head, key in COLUMNS.items() if any(key in one["final"] for one in results.values())}
    head = ["program", "epoch", "CPU s", *columns, "best dCC (epoch, CPU s)"]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        end = result["curve"][-1]
        best = max(result["curve"], key=lambda row: row["difference_map_correlation"])
        numbers = [f"{result['final'][key]:.3f}" if key in result["final"] else "" for key in columns.values()]
        peak = f"{best['difference_map_correlation']:.3f} ({best['epoch']}, {best['cpu_seconds']:.0f})"
        mark = "*" if result["remark"] else ""
        lines.append([name, str(end["epoch"]), f"{end['cpu_seconds']:.0f}{mark}", *numbers, peak])
    notes = sorted({f"\n* {result['remark']}" for result in results.values() if result["remark"]})
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "".join(notes)
