"""The whole way of a run, from particles to report, as it reads from top to bottom."""

from pathlib import Path

import torch

from cryoformer_dist.config.cluster import ClusterConfig, LocalCluster
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.noise_measurement import summarise_noise
from cryoformer_dist.data.store import ParticleStore, is_complete
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.machine import WorkerMemory
from cryoformer_dist.orchestration.cluster import use_ray
from cryoformer_dist.orchestration.conversion import convert_particles
from cryoformer_dist.orchestration.display import Display
from cryoformer_dist.orchestration.environment import describe_token_place
from cryoformer_dist.orchestration.following import follow_run
from cryoformer_dist.orchestration.preflight import preflight, wait_for_nodes
from cryoformer_dist.orchestration.ray_training import train_with_ray
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.orchestration.resources import measure_cluster_memory, measure_local_memory
from cryoformer_dist.orchestration.stopping import stopping_after_a_step
from cryoformer_dist.orchestration.worker import SilentReporter, train_alone
from cryoformer_dist.runs.directory import load_run, open_run_directory, open_run_store, send_run
from cryoformer_dist.runs.manifest import RunManifest
from cryoformer_dist.runs.stop_request import withdraw_stop
from cryoformer_dist.simulation.particle_set import STAR_NAME, simulate
from cryoformer_dist.simulation.recipe import compare_recipe
from cryoformer_dist.storage.lease import sole_writer
from cryoformer_dist.storage.places import Place, place_at
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import begin_run

# Differences between recipes.
_TOLD = 4


def run_pipeline(request: RunRequest, display: Display) -> Place:
    """Make the run and return its report.

    Raises
    ------
    CryoFormerError
        As its steps do; nothing of what was finished is lost.
    """
    display.say(f"run directory  {request.home}")
    with sole_writer(request.home):
        if request.without_ray:
            _train_in_process(request, display)
        else:
            with use_ray(request.cluster) as dashboard:
                if dashboard:
                    display.say(f"Ray dashboard  {dashboard}, its token {describe_token_place()}")
                _train_on_ray(request, display)
        report = _write_results(request, display)
    display.say(f"report         {report}")
    return report


def _train_in_process(request: RunRequest, display: Display) -> None:
    """Store and training of a run, without Ray."""
    ensure_store(request.config, display, parallel=False)
    with open_run_directory(request.home) as working:
        config, manifest = _begin(request, working, measure_local_memory())
        store = open_run_store(manifest)
        threads = config.training.threads_per_worker or torch.get_num_threads()
        with (
            display.stages() as progress,
            follow_run(working, display.record, progress),
            stopping_after_a_step(working.home, display.say),
        ):
            train_alone(working, config, store, SilentReporter(), threads, torch.cuda.is_available())


def _train_on_ray(request: RunRequest, display: Display) -> None:
    """Store and training of a run, on the Ray that is up, its nodes looked at first."""
    cluster = request.cluster
    if isinstance(cluster, LocalCluster):
        tell_of_idle_gpu(cluster, display)
    else:
        _examine_nodes(cluster, request.config.dataset.store, display)
    ensure_store(request.config, display, parallel=True)
    with open_run_directory(request.home) as working:
        memory = measure_cluster_memory(cluster)
        config, _ = _begin(request, working, memory)
        with display.stages() as progress, stopping_after_a_step(working.home, display.say):
            train_with_ray(working, config, cluster, memory, display.record, progress, display.say)


def tell_of_idle_gpu(cluster: LocalCluster, display: Display) -> None:
    """Training on the CPU of a machine with a GPU is hardly ever meant."""
    if not cluster.workers.gpus and torch.cuda.is_available():
        display.say(
            "GPU            not used: the file's workers have none; with workers: {count: 1, gpus: 1} it trains"
        )


def _examine_nodes(cluster: ClusterConfig, store: str, display: Display) -> None:
    wait_for_nodes(cluster.workers, display.say)
    for node in preflight(cluster.storage, store):
        seen = "store not there yet" if node.fingerprint is None else "storage and store seen"
        display.say(f"node           {node.host}  {node.gpus} GPUs  torch {node.versions['torch']}  {seen}")


def ensure_store(config: RunConfig, display: Display, parallel: bool) -> None:
    """Simulate and convert when the run asks for simulated particles that are not there yet."""
    dataset = config.dataset
    output = place_at(dataset.store)
    if dataset.simulate is None or is_complete(output):
        source = ParticleStore.open(output).attributes.source
        if dataset.simulate is not None:
            _refuse_another_set(dataset.simulate, Path(source.path).parent, output)
        return
    if not isinstance(output, Path):
        raise ConfigError(
            f"dataset.store: {output} holds no finished store, and dataset.simulate makes stores in folders only: run "
            f"`cryoformer-dist simulate -o FOLDER`, then `cryoformer-dist convert FOLDER/{STAR_NAME} -o {output}`"
        )
    # Absent, or begun by a launch that was interrupted: both steps go on where they were.
    folder = output.parent / "particles"
    star = folder / STAR_NAME
    if star.is_file():
        _refuse_another_set(dataset.simulate, folder, output)
    else:
        with display.progress("simulating particles") as progress:
            simulate(dataset.simulate, folder, progress)
    plan = plan_conversion(read_particles(star), output, ConversionOptions())
    display.say(f"contrast       {plan.contrast}")
    display.say(f"noise          {summarise_noise(plan.normalisation.noise)}")
    with display.progress("converting to Zarr") as progress:
        if parallel:
            convert_particles(plan, progress=progress)
        else:
            convert_serially(plan, progress)


def _refuse_another_set(recipe: SimulationConfig, folder: Path, store: Place) -> None:
    """Particles that another recipe made are not those that the run asks for."""
    differences = compare_recipe(recipe, folder)
    if differences:
        more = f" and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
        raise ConfigError(
            f"dataset.simulate: the particles in {folder} were made by another recipe ({'; '.join(differences[:_TOLD])}"
            f"{more}): give dataset.store a folder of its own, or delete {folder} and {store}"
        )


def _begin(request: RunRequest, working: WorkingFolder, memory: WorkerMemory) -> tuple[RunConfig, RunManifest]:
    """Begin the run directory, or check that it holds this run; returns the configuration and manifest it holds."""
    store = open_posed_store(request.config.dataset.store)
    begin_run(request.config, store, working.folder, request.resume, memory)
    withdraw_stop(working.home)
    send_run(working)
    return load_run(working.folder)


def open_posed_store(place: str) -> ParticleStore:
    """A store whose particles can be trained on.

    Raises
    ------
    ConfigError
        If they have no poses.
    """
    store = ParticleStore.open(place)
    if not store.has_poses:
        raise ConfigError(
            f"{store.path}: the particles have no poses, training needs a first estimate; refine them in RELION or "
            "cryoSPARC and convert the result"
        )
    return store


def _write_results(request: RunRequest, display: Display) -> Place:
    """Verdict and report of a trained run, whose maps its workers have made; returns the report."""
    # Not before: it takes seconds to import, and nobody waits for it to train.
    from cryoformer_dist.analysis.results import make_results, open_results

    with display.progress("verdict, report") as step, open_results(request.home) as working:
        report = working.at_home(make_results(working))
        step(1, 1)
    return report
