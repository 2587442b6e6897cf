"""A run to be made, and the two files that ask for it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.config.cluster import ClusterConfig, ExistingCluster, LocalCluster
from cryoformer_dist.config.loading import dump_config
from cryoformer_dist.config.schema import RUN_NAME, RunConfig
from cryoformer_dist.errors import ClusterError, ConfigError
from cryoformer_dist.orchestration.config_files import read_cluster_file, read_run_file
from cryoformer_dist.storage.places import Place, place_at


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to be made, here or on a cluster.

    Attributes
    ----------
    name
        Of the run directory; launches are found again by it.
    config
        What is trained, its paths those of the machines that train.
    cluster
        Where it happens, and where run directories go.
    resume
        Go on with the run that is there.
    without_ray
        Train in this process alone; of the cluster only its storage counts.
    """

    name: str
    config: RunConfig
    cluster: ClusterConfig
    resume: bool = False
    without_ray: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(RUN_NAME, self.name):
            raise ConfigError(
                f"--name {self.name!r}: a folder of this name would not lie in the storage; write letters, digits, "
                "dots, hyphens and underscores, a letter or digit first"
            )

    @property
    def home(self) -> Place:
        """The run directory."""
        return place_at(self.cluster.storage) / self.name

    @property
    def files(self) -> dict[str, str]:
        """What is sent to a cluster, file name to text: ``cluster.yaml`` and ``run.yaml``."""
        return {"cluster.yaml": dump_config(self.cluster), "run.yaml": dump_config(self.config)}

    def make_command(self, folder: str, python: str) -> list[str]:
        """What a node runs, the files lying in a folder there: the whole way, from particles to report."""
        program = [python, "-m", "cryoformer_dist.cli", "drive", f"{folder}/cluster.yaml", f"{folder}/run.yaml"]
        return [*program, "--name", self.name, *(["--resume"] if self.resume else [])]


@dataclass(frozen=True, slots=True)
class ClusterSweep:
    """A sweep that a cluster file names, and the cluster."""

    file: Path
    cluster: ClusterConfig


def drives_here(cluster: ClusterConfig) -> bool:
    """Whether the process that launches can drive the run itself."""
    return isinstance(cluster, LocalCluster) or (isinstance(cluster, ExistingCluster) and not cluster.has_job_server)


def read_request(
    cluster_file: Path, run_file: Path | None, name: str | None, resume: bool, overrides: Sequence[str]
) -> RunRequest | ClusterSweep:
    """Cluster file and run file, checked on their own and together.

    Parameters
    ----------
    cluster_file
        Where.
    run_file
        What; the run, or the sweep, that the cluster file names when ``None``.
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
    ClusterError
        If the cluster file names a sweep that cannot be driven from this machine.
    """
    mistakes: list[str] = []
    cluster = config = None
    try:
        cluster, named_run = read_cluster_file(cluster_file)
        if run_file is None and cluster.sweep is not None:
            return _check_sweep(cluster, cluster.sweep, cluster_file)
        run_file = run_file or named_run
        if run_file is None:
            mistakes.append(f"{cluster_file}: names no run file; add `run: FILE` or give --run FILE")
    except ConfigError as error:
        mistakes.append(str(error))
    if run_file is not None:
        try:
            config = read_run_file(run_file, [*overrides, *([] if name is None else [f"name={name}"])])
        except ConfigError as error:
            mistakes.append(str(error))
    if cluster is not None and config is not None:
        mistakes += (f"{cluster_file} and its run file: {mistake}" for mistake in _find_contradictions(cluster, config))
    if mistakes or cluster is None or config is None:
        raise ConfigError("\n".join(mistakes))
    return RunRequest(config.name, config, cluster, resume)


def _check_sweep(cluster: ClusterConfig, sweep: str, cluster_file: Path) -> ClusterSweep:
    if not drives_here(cluster):
        raise ClusterError(
            f"{cluster_file}: sweeps are driven on a node of the cluster: log in there and launch with provider: "
            "existing and address: auto"
        )
    return ClusterSweep(Path(sweep), cluster)


def _find_contradictions(cluster: ClusterConfig, config: RunConfig) -> Iterator[str]:
    """What neither file can know alone."""
    workers, training = cluster.workers, config.training
    size = training.global_batch_size
    if size == "auto" and workers.elastic:
        yield "training.global_batch_size: auto needs a fixed number of workers; name a number here"
    elif size != "auto" and size < workers.most:
        remedy = "raise it" if workers.elastic else "raise it, or set it to auto"
        yield f"training.global_batch_size: {size} leaves nothing for some of {workers.most} workers; {remedy}"
    elif size != "auto" and size % workers.most and not workers.elastic:
        yield f"training.global_batch_size: {size} does not divide by {workers.most} workers; take a multiple"
    if training.zero_stage and workers.elastic:
        yield (
            f"training.zero_stage: {training.zero_stage} binds a checkpoint to its number of workers, and "
            f"workers.count is {workers.count}; set it to 0"
        )
