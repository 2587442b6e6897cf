"""Everything that is made of a trained run: maps, latents, poses for other programs, verdict, report."""

from pathlib import Path

from cryoformer_dist.analysis.evaluate import Estimate, Truth, evaluate, read_truth
from cryoformer_dist.analysis.reconstruct import SeriesPlan, reconstruct, write_evaluation
from cryoformer_dist.analysis.report import write_report
from cryoformer_dist.analysis.trained import TrainedRun, load_trained
from cryoformer_dist.io.cryosparc import update_cs_poses
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.io.relion import update_star_poses


def reconstruct_run(run: Path, trained: TrainedRun | None = None) -> list[Path]:
    """Write maps at cluster centres and along principal axes, the latent table, and refined poses.

    Parameters
    ----------
    run
        Run directory.
    trained
        The run, if it is loaded already.
    """
    trained = trained or load_trained(run)
    results = trained.config.results
    plan = SeriesPlan(
        clusters=results.kmeans_volumes,
        axes=results.principal_components,
        points=results.volumes_per_component,
        seed=trained.config.training.seed,
    )
    voxel_size = float(trained.manifest["pixel_size_angstrom"])
    written = reconstruct(
        run, trained.decode, trained.latents, trained.source_row, voxel_size, plan, _labels(run, trained)
    )
    if trained.poses_refined:
        written.append(_write_poses(run, trained))
    return written


def evaluate_run(run: Path, truth: Path | None = None, trained: TrainedRun | None = None) -> Path:
    """Judge a run against the truth, if there is one, and write ``metrics.json`` and FSC tables.

    Parameters
    ----------
    run
        Run directory.
    truth
        Truth folder of a simulation; the one beside the run's particle file when ``None``.
    trained
        The run, if it is loaded already.
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
    consensus = read_volume(run / "consensus.mrc")
    verdict = evaluate(trained.decode, estimate, consensus, _truth(truth, trained))
    return write_evaluation(run, verdict, _labels(run, trained))


def make_results(run: Path) -> Path:
    """Maps, verdict and report of a trained run; returns the report."""
    trained = load_trained(run)
    reconstruct_run(run, trained)
    evaluate_run(run, None, trained)
    return report_run(run, trained)


def report_run(run: Path, trained: TrainedRun | None = None) -> Path:
    """Write ``report.html`` from the files of a run."""
    trained = trained or load_trained(run)
    return write_report(run, truth_folder(trained))


def truth_folder(trained: TrainedRun) -> Path | None:
    """The truth that a simulation left beside its particle file, if the particles were simulated."""
    folder = trained.source.parent / "truth"
    return folder if (folder / "truth.npz").is_file() else None


def _truth(given: Path | None, trained: TrainedRun) -> Truth | None:
    folder = given or truth_folder(trained)
    return read_truth(folder) if folder else None


def _write_poses(run: Path, trained: TrainedRun) -> Path:
    update = update_cs_poses if trained.source.suffix == ".cs" else update_star_poses
    output = run / f"poses{trained.source.suffix}"
    update(trained.source, output, trained.source_row, trained.rotation, trained.shift_angstrom)
    return output


def _labels(run: Path, trained: TrainedRun) -> list[str]:
    step = trained.checkpoint.position.step
    return [
        f"cryoformer-dist run {run.name} step {step}",
        f"store {trained.manifest['store_fingerprint'][:16]}",
    ]
