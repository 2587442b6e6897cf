"""What a cluster file may say: where a run happens, one section per kind of cluster."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, RootModel, Tag, ValidationInfo, field_validator, model_validator

from cryoformer_dist.config.secrets import find_secrets, find_secrets_in_lines
from cryoformer_dist.config.section import PositiveInt, Section

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SLURM_TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}")
_ADDRESS = re.compile(r"https?://\S+|auto|[^\s/]+:\d+")
_PORTS_OF_WORKERS = range(10002, 20000)
Port = Annotated[int, Field(ge=1024, le=65535)]


class WorkersConfig(Section):
    """Training processes."""

    count: int | str = Field(
        1, description="a number, or FEWEST..MOST for a run that shrinks when nodes are lost and grows when they return"
    )
    cpus: float = Field(0.9, gt=0, description="CPUs per worker; two processes that read data for it are not counted")
    gpus: float = Field(0, ge=0, description="GPUs per worker; a share of one for a worker alone")
    silence_minutes: float = Field(
        30, gt=0, description="a worker that reports nothing for so long hangs: it is ended and replaced"
    )

    @field_validator("count", mode="before")
    @classmethod
    def _range(cls, count: Any) -> Any:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", count) if isinstance(count, str) else None
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        if not whole and (ends is None or not 1 <= int(ends[1]) < int(ends[2])):
            raise ValueError(f"{count!r}: write a number, or FEWEST..MOST as in 1..3")
        return count

    @model_validator(mode="after")
    def _gpu_of_its_own(self) -> "WorkersConfig":
        if self.most > 1 and 0 < self.gpus < 1:
            # NCCL takes no two ranks of a training on one device.
            raise ValueError(f"gpus: {self.gpus:g}: workers of a run cannot share a GPU; give each 1, or set count: 1")
        return self

    @property
    def fewest(self) -> int:
        """Workers below which a run waits."""
        return self.count if isinstance(self.count, int) else int(self.count.split("..")[0])

    @property
    def most(self) -> int:
        """Workers it never exceeds."""
        return self.count if isinstance(self.count, int) else int(self.count.split("..")[1])

    @property
    def elastic(self) -> bool:
        """Whether the number may change during a run."""
        return self.fewest < self.most


def _refuse_secrets(names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"{', '.join(names)}: looks like a secret, and what stands here is written to files; set it in "
            "the environment of the nodes (or give them a role, a credentials file, a Kubernetes secret)"
        )


class ClusterConfig(Section):
    """What every kind of cluster is told."""

    provider: str = Field(description="the kind of cluster")
    run: str | None = Field(None, description="run file that `launch` trains; relative to this file; --run overrides")
    sweep: str | None = Field(None, description="sweep file, in place of `run`; relative to this file")
    storage: str = Field(
        "runs", description="where run directories go; every node must see it: a folder, or s3://bucket/prefix"
    )
    workers: WorkersConfig = WorkersConfig()
    max_failures: int = Field(3, ge=0, description="worker or node losses survived before giving up")
    environment: dict[str, str] = Field(
        {},
        description="environment variables of the driver and the workers; no secrets: they would be written to files",
    )

    @field_validator("sweep")
    @classmethod
    def _one_task(cls, sweep: str | None, info: ValidationInfo) -> str | None:
        if sweep is not None and info.data.get("run") is not None:
            raise ValueError("cannot be combined with run: a cluster file names only one of them")
        return sweep

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        if odd := [name for name in environment if not _VARIABLE.fullmatch(name)]:
            raise ValueError(f"{odd[0]!r}: not a name; write letters, digits and underscores")
        _refuse_secrets(find_secrets(environment))
        return environment

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: Any, info: ValidationInfo) -> Any:
        """Each of these becomes a part of one line of a script; only ``setup`` holds lines of a shell."""
        parts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if info.field_name == "environment":
            parts = value.values()
        if info.field_name != "setup" and any(_CONTROL.search(str(part)) for part in parts):
            raise ValueError("holds a line break or another control character; take it out")
        return value


class LocalCluster(ClusterConfig):
    """The machine at hand: Ray starts with the command and ends with it."""

    provider: Literal["local"] = "local"
    dashboard_host: str = Field("127.0.0.1", description="address the Ray dashboard listens on")
    dashboard_port: int | None = Field(
        None, ge=0, le=65535, description="port of the Ray dashboard; 8265 or the next free one when left out"
    )
    open_ports: bool = Field(
        False,
        description="let other machines reach Ray's other ports, among them its metrics, which ask for no token",
    )


class _ElsewhereConfig(ClusterConfig):
    """Nodes that bring their own Python."""

    python: str = Field("python", description="the interpreter that cryoformer-dist is installed in, on every node")

    @field_validator("setup", "options", check_fields=False)
    @classmethod
    def _no_secrets_in_lines(cls, lines: list[str]) -> list[str]:
        _refuse_secrets(list(find_secrets_in_lines(lines)))
        return lines


class ExistingCluster(_ElsewhereConfig):
    """A Ray that is up."""

    provider: Literal["existing"]
    address: str = Field(
        description="http://HOST:8265, its job server; or HOST:6379 (`auto` for the one of this machine), the address "
        "`ray start` printed, to drive the run from this process, on a node of the cluster",
    )
    token_file: str | None = Field(
        None, description="Ray's authentication token; RAY_AUTH_TOKEN or ~/.ray/auth_token when left out"
    )

    @field_validator("address")
    @classmethod
    def _reachable(cls, address: str) -> str:
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"{address!r}: write http://HOST:8265 (job server), HOST:6379 or auto")
        return address

    @property
    def has_job_server(self) -> bool:
        """Whether the address is that of a job server."""
        return self.address.startswith("http")


_NEEDED_BY_CLOUDS = ("region", "project", "head_node", "worker_node")
_NEEDED = {
    "aws": ("region", "head_node", "worker_node", "ssh_user"),
    "gcp": (*_NEEDED_BY_CLOUDS, "zone", "ssh_user"),
    "azure": (*_NEEDED_BY_CLOUDS, "ssh_user"),
    "on-premise": ("head_ip", "ssh_user"),
}


class RayUpCluster(_ElsewhereConfig):
    """Ray's own cluster launcher: clouds, or machines reached by ssh."""

    model_config = ConfigDict(validate_default=True)

    provider: Literal["ray-up"]
    config: str | None = Field(
        None, description="a cluster file of Ray's own, relative to this file, instead of the keys below"
    )
    cloud: Literal["aws", "gcp", "azure", "on-premise"] | None = Field(
        None, description="where the machines are; required without config"
    )
    region: str | None = Field(None, description="aws, gcp; Azure's location")
    zone: str | None = Field(None, description="gcp: the zone of its nodes; aws: zones, comma-separated, or any")
    project: str | None = Field(None, description="gcp: project id; azure: resource group")
    head_node: dict[str, Any] = Field({}, description="clouds: node_config of the head, in the cloud's own words")
    worker_node: dict[str, Any] = Field({}, description="clouds: node_config of the workers")
    nodes: PositiveInt = Field(1, description="clouds: worker nodes")
    head_ip: str | None = Field(None, description="on-premise: host that drives the run")
    worker_ips: list[str] = Field([], description="on-premise: the other hosts")
    ssh_user: str | None = Field(None, description="who logs in to the machines")
    ssh_private_key: str | None = Field(None, description="path; the key itself is never read by us")
    image: str | None = Field(None, description="container image; none when left out")
    setup: list[str] = Field([], description="shell lines that every node runs first, such as the pip install")
    keep_up: bool = Field(True, description="leave the cluster up when the run has ended; `ray down` ends it")

    @field_validator("cloud", *_NEEDED_BY_CLOUDS, "zone", "head_ip", "ssh_user")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        """One by one, so that all that is missing is told at once."""
        if value or info.data.get("config") or "config" not in info.data:
            return value
        cloud = info.data.get("cloud")
        if info.field_name == "cloud":
            raise ValueError("is required: aws, gcp, azure or on-premise; or config: a cluster file of Ray's own")
        if cloud is not None and info.field_name in _NEEDED[cloud]:
            raise ValueError(f"is required with cloud: {cloud}")
        return value


class SlurmCluster(_ElsewhereConfig):
    """An allocation of a Slurm cluster: one batch job that starts Ray on its nodes and ends it."""

    provider: Literal["slurm"]
    nodes: PositiveInt = Field(1, description="machines of the allocation")
    cpus_per_node: PositiveInt = Field(description="CPUs that Ray may use on each node")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of each node")
    time: str = Field("24:00:00", description="limit: D-HH:MM:SS")
    partition: str | None = Field(None, description="of sbatch; the site's default when left out")
    account: str | None = Field(None, description="of sbatch: who pays")
    options: list[str] = Field([], description="more options of sbatch, such as --constraint=a100")
    setup: list[str] = Field([], description="shell lines before anything else, such as `module load` or `source`")
    port: Port = Field(6379, description="of Ray's head")
    dashboard_port: Port = Field(8265, description="of the Ray dashboard")
    open_ports: bool = Field(
        False, description="let other machines read Ray's metrics, on every node and without a token; none when false"
    )
    requeue: bool = Field(
        True, description="put the job back in the queue, to go on, when Slurm preempts it or its time is nearly up"
    )

    @field_validator("options")
    @classmethod
    def _options(cls, options: list[str]) -> list[str]:
        if odd := [option for option in options if not option.startswith("-")]:
            raise ValueError(f"{odd[0]!r}: not an option; write --name=value")
        return options

    @field_validator("time", mode="before")
    @classmethod
    def _limit(cls, time: Any) -> Any:
        # Without quotes YAML reads 24:00:00 as a number of base sixty.
        if not isinstance(time, str) or not _SLURM_TIME.fullmatch(time):
            raise ValueError(f"{time!r}: write MM, HH:MM:SS or D-HH:MM:SS, in quotes")
        return time

    @field_validator("port", "dashboard_port")
    @classmethod
    def _free_of_workers(cls, port: int) -> int:
        if port in _PORTS_OF_WORKERS:
            raise ValueError(f"{port}: Ray's workers take ports from 10002 to 19999; choose another")
        return port


class KubeRayCluster(_ElsewhereConfig):
    """A Kubernetes cluster with the KubeRay operator: one RayJob."""

    model_config = ConfigDict(validate_default=True)

    provider: Literal["kuberay"]
    namespace: str = Field("default", description="Kubernetes namespace of the job")
    image: str = Field(description="container image with cryoformer-dist in it")
    nodes: PositiveInt = Field(1, description="pods for workers")
    cpus_per_node: PositiveInt = Field(8, description="CPUs of each of these pods")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of each")
    memory_gib_per_node: PositiveInt = Field(32, description="memory of each")
    head_cpus: PositiveInt = Field(2, description="CPUs of the pod that drives the run")
    head_memory_gib: PositiveInt = Field(8, description="its memory")
    volume_claim: str | None = Field(None, description="claim that holds storage and stores, mounted in every pod")
    mount: str = Field("/shared", description="where it is mounted")
    secret: str | None = Field(None, description="Kubernetes secret whose keys become environment variables")
    service_account: str | None = Field(None, description="Kubernetes service account of the pods")

    @field_validator("volume_claim")
    @classmethod
    def _seen_by_all(cls, claim: str | None, info: ValidationInfo) -> str | None:
        storage = str(info.data.get("storage", ""))
        if claim is None and "://" not in storage:
            raise ValueError(f"is required: storage {storage} is not on a mounted volume (or use storage: s3://...)")
        return claim

    @field_validator("mount")
    @classmethod
    def _holds_storage(cls, mount: str, info: ValidationInfo) -> str:
        storage = str(info.data.get("storage", ""))
        if info.data.get("volume_claim") and "://" not in storage and not PurePosixPath(storage).is_relative_to(mount):
            raise ValueError(f"storage {storage} does not lie below {mount}, where the volume is mounted")
        return mount


def _provider(values: Any) -> str:
    return str(values.get("provider", "local")) if isinstance(values, dict) else str(values.provider)


class ClusterFile(RootModel[Any]):
    """A cluster file: the section that its ``provider`` names, ``local`` when it names none."""

    root: Annotated[
        Annotated[LocalCluster, Tag("local")]
        | Annotated[ExistingCluster, Tag("existing")]
        | Annotated[RayUpCluster, Tag("ray-up")]
        | Annotated[SlurmCluster, Tag("slurm")]
        | Annotated[KubeRayCluster, Tag("kuberay")],
        Discriminator(_provider),
    ]
