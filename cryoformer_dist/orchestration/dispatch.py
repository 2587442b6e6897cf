"""Bringing a run to the cluster of a file, and asking after it later."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.config.cluster import (
    ClusterConfig,
    ClusterFile,
    ExistingCluster,
    KubeRayCluster,
    LocalCluster,
    RayUpCluster,
    SlurmCluster,
)
from cryoformer_dist.config.loading import parse_config, parse_yaml
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ClusterError, ClusterUnreachableWarning, ConfigError
from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file
from cryoformer_dist.orchestration.launch_registry import Launch, all_launches, find_launch, keep_launch
from cryoformer_dist.orchestration.launch_spec import LaunchSpec, Provider

# A driver that is told to end has Ray and its workers end first.
_ENDING_SECONDS, _POLL_SECONDS = 60.0, 0.5


def drives_here(cluster: ClusterConfig) -> bool:
    """Whether the process that launches can drive the run itself."""
    return isinstance(cluster, LocalCluster) or (isinstance(cluster, ExistingCluster) and not cluster.has_job_server)


def provider_of(cluster: ClusterConfig) -> Provider:
    """Who carries jobs to a cluster."""
    if isinstance(cluster, SlurmCluster):
        from cryoformer_dist.orchestration.providers.slurm import SlurmProvider

        return SlurmProvider(cluster)
    if isinstance(cluster, KubeRayCluster):
        from cryoformer_dist.orchestration.providers.kuberay import KubeRayProvider

        return KubeRayProvider(cluster)
    if isinstance(cluster, RayUpCluster):
        from cryoformer_dist.orchestration.providers.ray_up import RayUpProvider

        return RayUpProvider(cluster)
    if isinstance(cluster, ExistingCluster) and cluster.has_job_server:
        from cryoformer_dist.orchestration.providers.job_server import JobServerProvider

        return JobServerProvider(cluster)
    from cryoformer_dist.orchestration.providers.process import ProcessProvider

    return ProcessProvider()


def read_launch_spec(
    cluster_file: Path, run_file: Path | None, name: str | None, resume: bool, overrides: Sequence[str]
) -> LaunchSpec:
    """Cluster file and run file, checked on their own and together.

    Parameters
    ----------
    cluster_file
        Where.
    run_file
        What; the one that the cluster file names when ``None``.
    name
        Of the run; the run file's when ``None``.
    resume
        Go on with the run that is there.
    overrides
        ``dotted.key=value`` for the run file.

    Raises
    ------
    ConfigError
        With every mistake of both files.
    """
    mistakes: list[str] = []
    cluster = run = None
    try:
        cluster, its_run_file = read_cluster_file(cluster_file)
        run_file = run_file or its_run_file
        if run_file is None:
            mistakes.append(f"{cluster_file}: names no run file; add `run: FILE` or give --run FILE")
    except ConfigError as error:
        mistakes.append(str(error))
    if run_file is not None:
        try:
            named = [] if name is None else [f"name={name}"]
            run = read_run_file(run_file, [*overrides, *named])
        except ConfigError as error:
            mistakes.append(str(error))
    if cluster is not None and run is not None:
        mistakes += _contradictions(cluster, run, cluster_file)
    if mistakes or cluster is None or run is None:
        raise ConfigError("\n".join(mistakes))
    return LaunchSpec(run.name, cluster, run, resume)


@dataclass(frozen=True, slots=True)
class ClusterSweep:
    """A sweep that a cluster file names, and the cluster."""

    file: Path
    cluster: ClusterConfig


def sweep_of(cluster_file: Path) -> ClusterSweep | None:
    """The sweep that a cluster file names in place of a run, if it does.

    Raises
    ------
    ClusterError
        If `launch` cannot drive it from this machine.
    """
    cluster, _ = read_cluster_file(cluster_file)
    if cluster.sweep is None:
        return None
    if not drives_here(cluster):
        raise ClusterError(
            f"{cluster_file}: sweeps are driven on a node of the cluster: log in there and launch with provider: "
            "existing and address: auto"
        )
    return ClusterSweep(Path(cluster.sweep), cluster)


def submit(spec: LaunchSpec) -> Launch:
    """Send a launch, and write down where it went."""
    _refuse_while_running(spec.name)
    provider = provider_of(spec.cluster)
    return _kept(spec, provider.submit(spec))


def begin_here(spec: LaunchSpec) -> Launch:
    """Write down that this process carries a launch out."""
    from cryoformer_dist.orchestration.providers.process import this_process

    _refuse_while_running(spec.name)
    return _kept(spec, this_process(spec))


def stop(launch: Launch) -> bool:
    """End a launch, and wait a while for its end; whether it has come."""
    provider = provider_of(cluster_of(launch))
    provider.stop(launch.handle)
    end = time.monotonic() + _ENDING_SECONDS
    while not (ended := provider.state(launch.handle).ended) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return ended


def cluster_of(launch: Launch) -> ClusterConfig:
    """The cluster a launch went to."""
    where = f"launch {launch.name}: cluster.yaml"
    cluster: ClusterConfig = parse_config(parse_yaml(launch.files["cluster.yaml"], where), ClusterFile, where).root
    return cluster


def relaunch_spec(launch: Launch) -> LaunchSpec:
    """The launch of an earlier launch, to go on with."""
    where = f"launch {launch.name}: run.yaml"
    run = parse_config(parse_yaml(launch.files["run.yaml"], where), RunConfig, where)
    return LaunchSpec(launch.name, cluster_of(launch), run, resume=True)


def _kept(spec: LaunchSpec, handle: object) -> Launch:
    launch = Launch.now(spec.name, spec.cluster.storage, spec.files, dict(handle))  # type: ignore[call-overload]
    keep_launch(launch)
    return launch


def _refuse_while_running(name: str) -> None:
    """Two drivers in one run directory would undo each other's work."""
    if name not in {launch.name for launch in all_launches()}:
        return
    launch = find_launch(name)
    try:
        ended = provider_of(cluster_of(launch)).state(launch.handle).ended
    except ClusterError as error:
        told = f"{name!r} was launched before, at {launch.started}, on a cluster that does not answer: taken as ended"
        warnings.warn(f"{told} ({error})", ClusterUnreachableWarning, stacklevel=2)
        return
    if not ended:
        raise ClusterError(
            f"a run named {name!r} was launched at {launch.started} and has not ended; `cryoformer-dist stop {name}` "
            "ends it, --name starts another"
        )


def _contradictions(cluster: ClusterConfig, run: RunConfig, cluster_file: Path) -> list[str]:
    """What neither file can know alone."""
    workers, training = cluster.workers, run.training
    found = []
    size = training.global_batch_size
    if size == "auto" and workers.elastic:
        found.append("training.global_batch_size: auto needs a fixed number of workers; name a number here")
    elif size != "auto" and size < workers.most:
        found.append(f"training.global_batch_size: {size} leaves nothing for some of {workers.most} workers; raise it")
    elif size != "auto" and size % workers.most and not workers.elastic:
        found.append(f"training.global_batch_size: {size} does not divide by {workers.most} workers; take a multiple")
    if training.zero_stage and workers.elastic:
        found.append(
            f"training.zero_stage: {training.zero_stage} binds a checkpoint to its number of workers, and "
            f"workers.count is {workers.count}; set it to 0"
        )
    return [f"{cluster_file} and its run file: {mistake}" for mistake in found]
