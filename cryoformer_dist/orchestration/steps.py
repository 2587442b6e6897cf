"""Steps of a run on the way from particles to results."""

from pathlib import Path

import torch

from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.store import ParticleStore, is_complete
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.orchestration.conversion import convert_particles
from cryoformer_dist.orchestration.preflight import NodeReport, preflight, wait_for_nodes
from cryoformer_dist.orchestration.request import Console, Request
from cryoformer_dist.orchestration.train import (
    measure_cluster_memory,
    measure_local_memory,
    train_locally,
    train_with_ray,
)
from cryoformer_dist.runs.directory import open_run_directory, send_run
from cryoformer_dist.simulation.simulate import STAR_NAME, simulate
from cryoformer_dist.storage.places import Place, place_at
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.machine import WorkerMemory
from cryoformer_dist.training.preparation import prepare_run


def train_in_process(request: Request, console: Console) -> None:
    """Store and training of a run, without Ray."""
    ensure_store(request.config, console, parallel=False)
    with open_run_directory(request.run) as run:
        _prepare(request, run, console, measure_local_memory())
        train_locally(run, console.record)


def train_on_ray(request: Request, cluster: ClusterConfig, console: Console) -> None:
    """Store and training of a run, on the Ray that is up, its nodes looked at first."""
    if isinstance(cluster, LocalCluster):
        tell_of_idle_gpu(cluster, console)
    else:
        wait_for_nodes(cluster.workers, console.say)
        for node in preflight(cluster.storage, request.config.dataset.store):
            console.say(f"node           {_described(node)}")
    ensure_store(request.config, console, parallel=True)
    with open_run_directory(request.run) as run:
        _prepare(request, run, console, measure_cluster_memory(cluster))
        train_with_ray(run, cluster, console.record)


def tell_of_idle_gpu(cluster: LocalCluster, console: Console) -> None:
    """Training on the CPU of a machine with a GPU is hardly ever meant."""
    if not cluster.workers.gpus and torch.cuda.is_available():
        console.say(
            "GPU            not used: the file's workers have none; with workers: {count: 1, gpus: 1} it trains"
        )


def finish(request: Request, console: Console) -> Place:
    """Results of a trained run; returns its report."""
    # Not before: it takes seconds to import, and nobody waits for it to train.
    from cryoformer_dist.analysis.results import make_results, open_results

    with console.progress("volumes, verdict, report") as step, open_results(request.run) as run:
        report = run.at_home(make_results(run.folder))
        step(1, 1)
    return report


def _described(node: NodeReport) -> str:
    store = "store not there yet" if node.fingerprint is None else "storage and store seen"
    return f"{node.host}  {node.gpus} GPUs  torch {node.versions['torch']}  {store}"


def ensure_store(config: RunConfig, console: Console, parallel: bool) -> None:
    """Simulate and convert when the run asks for simulated particles that are not there yet."""
    dataset = config.dataset
    output = place_at(dataset.store)
    if dataset.simulate is None or is_complete(output):
        ParticleStore.open(output)
        return
    if not isinstance(output, Path):
        raise ConfigError(
            f"dataset.store: {output} holds no finished store, and dataset.simulate makes stores in folders only: run "
            f"`cryoformer-dist simulate -o FOLDER`, then `cryoformer-dist convert FOLDER/{STAR_NAME} -o {output}`"
        )
    # Absent, or begun by a launch that was interrupted: both steps go on where they were.
    folder = output.parent / "particles"
    star = folder / STAR_NAME
    if not star.is_file():
        with console.progress("simulating particles") as progress:
            simulate(dataset.simulate, folder, progress)
    plan = plan_conversion(read_particles(star), output, ConversionOptions())
    console.say(f"contrast       {plan.contrast}")
    with console.progress("converting to Zarr") as progress:
        if parallel:
            convert_particles(plan, progress=progress)
        else:
            convert_serially(plan, progress)


def open_posed(place: str) -> ParticleStore:
    """A store whose particles can be trained on.

    Raises
    ------
    ConfigError
        If they have no poses.
    """
    store = ParticleStore.open(place)
    if not store.attributes["has_poses"]:
        raise ConfigError(
            f"{store.path}: the particles have no poses, training needs a first estimate; refine them in RELION or "
            "cryoSPARC and convert the result"
        )
    return store


def _prepare(request: Request, run: WorkingFolder, console: Console, memory: WorkerMemory) -> None:
    store = open_posed(request.config.dataset.store)
    with console.stages() as progress:
        prepare_run(request.config, store, run.folder, request.resume, progress, memory)
    send_run(run)
