"""Everything that is made of a trained run: maps, latents, poses for other programs, verdict, report."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cryoformer_dist.analysis.evaluate import Estimate, Masks, evaluate, evaluate_alone, score_quickly
from cryoformer_dist.analysis.evaluation_files import write_evaluation
from cryoformer_dist.analysis.flexibility_files import find_flexible_regions, judge_flexibility
from cryoformer_dist.analysis.latent import score_latents
from cryoformer_dist.analysis.masks import read_mask
from cryoformer_dist.analysis.oracle import score_oracle
from cryoformer_dist.analysis.particle_scores import calibrate, find_other_causes, score_weights
from cryoformer_dist.analysis.reconstruct import (
    CLUSTER_SERIES,
    SeriesPlan,
    choose_clusters,
    read_all_series,
    reconstruct,
)
from cryoformer_dist.analysis.report import write_report
from cryoformer_dist.analysis.sweep_report import write_sweep_report
from cryoformer_dist.analysis.trained import (
    TrainedRun,
    keep_encoded_particles,
    load_trained,
    with_weight_at_refined_poses,
)
from cryoformer_dist.analysis.truth import Truth, read_truth
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ConfigError, CryoFormerWarning
from cryoformer_dist.inference.other_causes import list_candidates
from cryoformer_dist.io.cryodrgn import write_poses_pkl
from cryoformer_dist.io.cryosparc import update_cs_poses
from cryoformer_dist.io.relion import update_star_poses
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.ranks import gather_objects, rank_and_world, take_from_leader
from cryoformer_dist.runs.checkpoint import Checkpoint
from cryoformer_dist.runs.checkpoint_choice import fetch_checkpoint, fetch_latest, latest_checkpoint
from cryoformer_dist.runs.directory import (
    load_consensus,
    load_run,
    open_run_directory,
    open_run_store,
    selected_rows,
    send_run,
    wait_for_file,
)
from cryoformer_dist.runs.image_scores import OtherCauses
from cryoformer_dist.runs.layout import FLEXIBILITY, LATENTS, REFINED_POSES, RESULTS
from cryoformer_dist.runs.results import MadeResults, read_made_results, write_made_results
from cryoformer_dist.runs.scores import HeldOutScores, ResolvedMapScores, Scores, ScoresAgainstTruth, ScoresAlone
from cryoformer_dist.runs.sweep import is_sweep
from cryoformer_dist.runs.training_log import find_search, read_training_log
from cryoformer_dist.simulation.particle_set import TRUTH_FOLDER, TRUTH_TABLE
from cryoformer_dist.storage.lease import sole_writer
from cryoformer_dist.storage.places import Place, place_at
from cryoformer_dist.storage.working_folder import WorkingFolder

_COMPARED_WITH_CAUSES = 20_000


@contextmanager
def open_results(home: str | Place) -> Iterator[WorkingFolder]:
    """A trained run to make results of; what is made is sent home at the end, unless an error comes before.

    Parameters
    ----------
    home
        Run directory: a path, or ``s3://bucket/prefix``.
    """
    with open_run_directory(home) as run:
        fetch_latest(run)
        yield run
        send_run(run)


@contextmanager
def open_results_alone(home: str | Place) -> Iterator[WorkingFolder]:
    """As `open_results`, for who does not write to that run already.

    Raises
    ------
    InUseError
        If somebody trains the run, or makes results of it.
    """
    with sole_writer(place_at(home)), open_results(home) as run:
        yield run


def reconstruct_run(working: WorkingFolder, trained: TrainedRun, progress: StagedProgress = silent) -> list[Path]:
    """Write maps at cluster centres and along principal axes, flexible regions, the latent table, refined poses.

    All ranks do so together, each its share of the maps; what is written is sent home.

    Parameters
    ----------
    working
        Run directory.
    trained
        The run, on the device where this rank decodes.
    progress
        Called with (stage, done, in all).
    """
    run, leads = working.folder, rank_and_world()[0] == 0
    if leads:
        working.remove(RESULTS)
    keep_encoded_particles(working, trained)
    trained = with_weight_at_refined_poses(working, trained, progress)
    labels, voxel_size = label_maps(run, trained), trained.manifest.pixel_size_angstrom
    plan, report = SeriesPlan.of(trained.config), partial(progress, "maps")
    device = trained.learner.device
    written = reconstruct(working, trained.decode_each, trained.table, voxel_size, plan, labels, report, device)
    if trained.has_attention:
        written += find_flexible_regions(working, trained, labels, progress)
    if trained.poses_refined:
        written.append(run / take_from_leader(_send_poses(working, trained) if leads else ""))
    # Not before all ranks have written their maps.
    gather_objects(None)
    if leads:
        names = [path.relative_to(run).as_posix() for path in written]
        tables = (LATENTS, FLEXIBILITY) if trained.has_attention else (LATENTS,)
        made = MadeResults(trained.checkpoint.position.step, (*names, *tables))
        working.send(write_made_results(run, made))
    return written


def reconstruct_alone(working: WorkingFolder) -> list[Path]:
    """As `reconstruct_run`, in this process; flexible regions are judged against the truth, where one is known."""
    trained = load_trained(working.folder)
    written = reconstruct_run(working, trained)
    known = _read_truth(None, trained)
    if known is not None:
        judge_flexibility(working.folder, known.volumes)
    return written


def reconstruct_once(
    working: WorkingFolder,
    config: RunConfig,
    device: torch.device,
    progress: StagedProgress = silent,
    checkpoint: Checkpoint | None = None,
) -> None:
    """As `reconstruct_run`, of the newest checkpoint, unless that has been done: the leader's run directory decides.

    Parameters
    ----------
    working
        Run directory.
    config
        As the run directory holds it.
    device
        Where this rank decodes.
    progress
        Called with (stage, done, in all).
    checkpoint
        That all ranks agree on, where they have already.
    """
    leads, newest = rank_and_world()[0] == 0, checkpoint or latest_checkpoint(working.folder)
    made = take_from_leader(read_made_results(working.folder) if leads else None)
    if made is None or newest is None or made.checkpoint_step != newest.position.step:
        reconstruct_run(working, load_trained(working.folder, device, progress, config, newest), progress)


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """Masks for judging a run against a truth, as files.

    Attributes
    ----------
    region
        Where difference maps and FSC are compared; else where the truth moves.
    solvent
        For the masked per-image FSC; else made from the truth.
    """

    region: Path | None = None
    solvent: Path | None = None


def evaluate_run(
    run: Path, truth: Path | None = None, trained: TrainedRun | None = None, masks: MaskFiles | None = None
) -> Path:
    """Judge a run against the truth, if there is one, and write ``metrics.json`` and FSC tables.

    Parameters
    ----------
    run
        Run directory.
    truth
        Truth folder of a simulation; the one beside the run's particle file when ``None``.
    trained
        The run, if it is loaded already.
    masks
        In place of those made from the truth.

    Raises
    ------
    ConfigError
        If masks are given but no truth is known, or they do not fit the maps.
    """
    trained = trained or load_trained(run)
    refined = trained.poses_refined
    estimate = Estimate(
        latents=trained.latents,
        source_row=trained.source_row,
        stored_rotation=trained.stored_rotation,
        stored_shift_angstrom=trained.stored_shift_angstrom,
        rotation=trained.rotation if refined else None,
        shift_angstrom=trained.shift_angstrom if refined else None,
    )
    consensus = load_consensus(run)
    known = _read_truth(truth, trained)
    fitted = _fit_masks(masks or MaskFiles(), trained, known)
    if known is None:
        verdict = evaluate_alone(_take_cluster_maps(run, trained), estimate, consensus)
        verdict = replace(verdict, scores=_score_particles(verdict.scores, run, trained, None))
        return write_evaluation(run, verdict, label_maps(run, trained))
    verdict = evaluate(trained.decode, estimate, consensus, known, fitted)
    if len(known.volumes) > 1 and isinstance(verdict.scores, ScoresAgainstTruth):
        verdict = replace(verdict, scores=_score_single_images(verdict.scores, trained, known))
    verdict = replace(verdict, scores=_score_particles(verdict.scores, run, trained, known))
    judge_flexibility(run, known.volumes)
    return write_evaluation(run, verdict, label_maps(run, trained))


def _take_cluster_maps(run: Path, trained: TrainedRun) -> Float[np.ndarray, "clusters box box box"]:
    """Maps of the cluster centres: those that were written of this checkpoint, else decoded."""
    made = read_made_results(run)
    if made is not None and made.checkpoint_step == trained.checkpoint.position.step:
        return read_all_series(run, CLUSTER_SERIES)[CLUSTER_SERIES]
    return trained.decode(choose_clusters(trained.latents, SeriesPlan.of(trained.config)).centres)


def _score_single_images(scores: ScoresAgainstTruth, trained: TrainedRun, truth: Truth) -> ScoresAgainstTruth:
    """Add what an oracle knows of single images, and what the encoder says of those that training has not seen."""
    store = open_run_store(trained.manifest)
    kept = truth.shows_particle(trained.source_row)
    oracle = score_oracle(store, truth, trained.latents[kept], selected_rows(trained.config, store)[kept])
    held_out, unseen = None, trained.held_out()
    if unseen is not None:
        kept = truth.shows_particle(unseen[1])
        latents, state = unseen[0][kept], truth.state[unseen[1][kept]]
        held_out = HeldOutScores(len(latents), score_latents(latents, state, truth.period, truth.discrete))
    return replace(scores, oracle=oracle, held_out=held_out)


def _score_particles(scores: Scores, run: Path, trained: TrainedRun, truth: Truth | None) -> Scores:
    """Add what else explains the latents and, against a truth, how well widths and weights fit."""
    known = trained.trusted if truth is None else truth.shows_particle(trained.source_row)
    scores = replace(scores, other_causes=_find_other_causes(trained, known, truth))
    if truth is None or isinstance(scores, ScoresAlone):
        return scores
    if trained.weight is not None and trained.alone is not None and truth.junk is not None and scores.junk:
        found = score_weights(trained.weight, trained.alone, truth.junk[trained.source_row])
        scores = replace(scores, junk_found=found)
    if trained.latent_deviation is None or truth.discrete or len(truth.volumes) < 2:
        return scores
    state, search = truth.state[trained.source_row[known]], find_search(read_training_log(run))
    nats = None if search is None else search.latent_information_nats
    calibration = calibrate(trained.latents[known], trained.latent_deviation[known], state, truth.period, nats)
    return replace(scores, calibration=calibration)


def _find_other_causes(trained: TrainedRun, known: np.ndarray, truth: Truth | None) -> OtherCauses | None:
    """Of at most so many of some particles, the first ones: rows of a store are in random order."""
    chosen = np.flatnonzero(known)[:_COMPARED_WITH_CAUSES]
    if not len(chosen):
        return None
    store = open_run_store(trained.manifest)
    pose = Pose(torch.from_numpy(trained.rotation[chosen]), torch.from_numpy(trained.shift_angstrom[chosen]))
    amplitude = None if trained.amplitude is None else trained.amplitude[chosen]
    candidates = list_candidates(store, selected_rows(trained.config, store)[chosen], pose, amplitude)
    contrast = None
    if truth is not None and truth.amplitude is not None:
        contrast = truth.amplitude[trained.source_row[chosen]]
    return find_other_causes(trained.latents[chosen], candidates, contrast)


def _fit_masks(masks: MaskFiles, trained: TrainedRun, truth: Truth | None) -> Masks:
    """Masks at the box of the decoded maps."""
    given = [path for path in (masks.region, masks.solvent) if path is not None]
    if given and truth is None:
        raise ConfigError(f"{given[0]}: masks serve the comparison with a truth, and none is known: leave them out")
    box = trained.manifest.box_size
    length = box * trained.manifest.pixel_size_angstrom

    def fit(path: Path | None) -> np.ndarray | None:
        return None if path is None else read_mask(path, box, length)

    return Masks(solvent=fit(masks.solvent), region=fit(masks.region))


def make_results(working: WorkingFolder) -> Path:
    """Verdict and report of a run, once its maps and the checkpoint they are of are seen here; returns the report."""
    run = working.folder
    patience = load_run(run)[0].training.storage_patience_seconds
    wait_for_file(working, RESULTS, patience)
    made = read_made_results(run)
    for name in made.files if made else ():
        wait_for_file(working, name, patience)
    if made is not None:
        fetch_checkpoint(working, made.checkpoint_step, patience)
    evaluate_run(run)
    return report_run(run)


def score_run_quickly(run: Path) -> ResolvedMapScores:
    """Scores of a run's newest checkpoint against the truth, in the time it takes to decode a map per state.

    Raises
    ------
    CheckpointError
        If the run has no checkpoint yet.
    ConfigError
        If no truth is known.
    """
    trained = load_trained(run)
    truth = _read_truth(None, trained)
    if truth is None:
        raise ConfigError(f"{run}: no truth beside {trained.source}; rank the sweep's trials by `metric: loss`")
    return score_quickly(trained.decode, trained.latents, trained.source_row, truth)


def report_run(run: Path) -> Path:
    """Write ``report.html`` from the files of a run, or of a sweep from those of its trials."""
    if is_sweep(run):
        return write_sweep_report(run)
    store = open_run_store(load_run(run)[1])
    source = Path(store.attributes.source.path)
    return write_report(run, find_truth_beside(source), source.suffix)


def find_truth_beside(source: Path) -> Path | None:
    """The truth that a simulation left beside a particle file."""
    folder = source.parent / TRUTH_FOLDER
    return folder if (folder / TRUTH_TABLE).is_file() else None


def _read_truth(given: Path | None, trained: TrainedRun) -> Truth | None:
    folder = given or find_truth_beside(trained.source)
    return read_truth(folder) if folder else None


def _send_poses(working: WorkingFolder, trained: TrainedRun) -> str:
    """Write the refined poses and send them home; the file's name."""
    path = _write_poses(working.folder, trained)
    working.send(path.name)
    return path.name


def _write_poses(run: Path, trained: TrainedRun) -> Path:
    """Refined poses as the particles came: bare images, and those whose file is gone, as cryoDRGN's pickle."""
    source = trained.source
    update = {".star": update_star_poses, ".cs": update_cs_poses}.get(source.suffix.lower())
    if update is None or not source.is_file():
        if update is not None:
            told = f"{source}: no such file any more; poses are written as cryoDRGN's"
            warnings.warn(told, CryoFormerWarning, stacklevel=2)
        return _write_poses_of_stack(run / REFINED_POSES.format(suffix=".pkl"), trained)
    output = run / REFINED_POSES.format(suffix=source.suffix)
    update(source, output, trained.source_row, trained.rotation, trained.shift_angstrom)
    return output


def _write_poses_of_stack(path: Path, trained: TrainedRun) -> Path:
    """A pose for every particle of the store, in the order of their source: refined, or as given where untrained."""
    store = open_run_store(trained.manifest)
    pose = Pose(torch.from_numpy(trained.rotation), torch.from_numpy(trained.shift_angstrom))
    particles = store.with_pose(selected_rows(trained.config, store), pose).particles()
    order = np.argsort(particles.source_row)
    box_angstrom = store.box_size * store.pixel_size_angstrom
    write_poses_pkl(path, particles.rotation[order], particles.shift_angstrom[order] / box_angstrom)
    return path


def label_maps(run: Path, trained: TrainedRun) -> list[str]:
    """Provenance of a run's maps, for their headers."""
    step = trained.checkpoint.position.step
    return [
        f"cryoformer-dist run {run.name} step {step}",
        f"store {trained.manifest.store_fingerprint[:16]}",
    ]
