"""Bringing a run to the cluster of a file, and asking after it later."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cryoformer_dist.config.cluster import (
    ClusterConfig,
    ClusterFile,
    ExistingCluster,
    KubeRayCluster,
    RayUpCluster,
    SlurmCluster,
)
from cryoformer_dist.config.loading import parse_config, parse_yaml
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ClusterError, ClusterUnreachableWarning, CryoFormerError, RunStopped
from cryoformer_dist.orchestration.launch_record import Launch, find_launch, find_launch_folder, write_launch
from cryoformer_dist.orchestration.providers.provider import Handle, Provider
from cryoformer_dist.orchestration.request import RunRequest
from cryoformer_dist.orchestration.stopping import EXIT_CODE
from cryoformer_dist.runs.layout import TRAINING_LOG
from cryoformer_dist.runs.stop_request import ask_to_stop
from cryoformer_dist.storage.lease import sole_writer
from cryoformer_dist.storage.places import client_errors, place_at

# A driver that is told to end has Ray and its workers end first.
_ENDING_SECONDS, _POLL_SECONDS = 60.0, 0.5


def choose_provider(cluster: ClusterConfig) -> Provider:
    """Who carries jobs to a cluster; for one that this machine can drive, a process here."""
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


def submit(request: RunRequest, provider: Provider) -> Launch:
    """Send a run to its cluster, and write down where it went."""
    with sole_writer(find_launch_folder() / request.name):
        _refuse_while_running(request.name)
        return _write_down(request, provider.submit(request))


@contextmanager
def record_launch(request: RunRequest) -> Iterator[None]:
    """Write down that this process carries a launch out, and in the end how that ended."""
    from cryoformer_dist.orchestration.providers.process import register_this_process, write_exit_code

    with sole_writer(find_launch_folder() / request.name):
        _refuse_while_running(request.name)
        launch = _write_down(request, register_this_process(request))
    code = 1
    try:
        yield
        code = 0
    except (KeyboardInterrupt, RunStopped):
        code = EXIT_CODE
        raise
    except CryoFormerError:
        # As the command line ends.
        code = 2
        raise
    except SystemExit as end:
        code = int(end.code or 0)
        raise
    finally:
        write_exit_code(launch.handle, code)


def stop(launch: Launch) -> bool:
    """End a launch, and wait a while for its end; whether it has come.

    A run that trains ends with a checkpoint of its last step, if its run directory is seen from here and the step takes
    no longer than a minute. Any other is ended at once, which loses what it learned since its last checkpoint.
    """
    provider = find_provider(launch)
    if _ask_to_end(provider, launch) and _wait_for_end(provider, launch):
        # A cluster that was there for this run alone is taken down by who sees the run end.
        for _ in provider.follow(launch.handle):
            pass
        return True
    provider.stop(launch.handle)
    return _wait_for_end(provider, launch)


def _ask_to_end(provider: Provider, launch: Launch) -> bool:
    """Ask the ranks of a launch to end; whether there is a run directory in which they may see it."""
    home = place_at(launch.home)
    with suppress(OSError, *client_errors()):
        if provider.ask_state(launch.handle).word == "running" and (home / TRAINING_LOG).exists():
            ask_to_stop(home)
            return True
    return False


def _wait_for_end(provider: Provider, launch: Launch) -> bool:
    end = time.monotonic() + _ENDING_SECONDS
    while not (ended := provider.ask_state(launch.handle).ended) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return ended


def find_provider(launch: Launch) -> Provider:
    """Who carried a launch to its cluster."""
    return choose_provider(read_cluster(launch))


def read_cluster(launch: Launch) -> ClusterConfig:
    """The cluster a launch went to."""
    where = f"launch {launch.name}: cluster.yaml"
    cluster: ClusterConfig = parse_config(parse_yaml(launch.files["cluster.yaml"], where), ClusterFile, where).root
    return cluster


def make_resume_request(launch: Launch) -> RunRequest:
    """The run of an earlier launch, to go on with."""
    where = f"launch {launch.name}: run.yaml"
    config = parse_config(parse_yaml(launch.files["run.yaml"], where), RunConfig, where)
    return RunRequest(launch.name, config, read_cluster(launch), resume=True)


def _write_down(request: RunRequest, handle: Handle) -> Launch:
    return write_launch(request.name, request.cluster.storage, request.files, handle)


def _refuse_while_running(name: str) -> None:
    """Two drivers in one run directory would undo each other's work."""
    launch = find_launch(name)
    if launch is None:
        return
    try:
        ended = find_provider(launch).ask_state(launch.handle).ended
    except ClusterError as error:
        told = f"{name!r} was launched before, at {launch.started}, on a cluster that does not answer: taken as ended"
        warnings.warn(f"{told} ({error})", ClusterUnreachableWarning, stacklevel=2)
        return
    if not ended:
        raise ClusterError(
            f"a run named {name!r} was launched at {launch.started} and has not ended; `cryoformer-dist stop {name}` "
            "ends it, --name starts another"
        )
