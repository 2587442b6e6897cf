"""A Kubernetes cluster with the KubeRay operator: one RayJob, its files in a ConfigMap."""

import hashlib
import itertools
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, TypedDict

from cryoformer_dist.config.cluster import KubeRayCluster
from cryoformer_dist.config.loading import dump_yaml
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.providers.provider import Handle, JobState, run_program
from cryoformer_dist.orchestration.request import RunRequest

_FILES = "/etc/cryoformer-dist"
# Of a RayJob: KubeRay appends to it, and the result must be a DNS label.
_LONGEST_NAME = 47
# The cluster's pods stay so long after the end, for who wants to look at Ray's own logs.
_SECONDS_AFTER_END = 300
_POLL_SECONDS = 5.0
# What Kubernetes reads: free JSON, of its schema.
Manifest = dict[str, Any]


class Status(TypedDict, total=False):
    """What KubeRay says of a RayJob."""

    jobDeploymentStatus: str
    jobStatus: str
    message: str


class KubeRayProvider:
    """Applies, follows and suspends the RayJob of a launch, by ``kubectl`` in its current context.

    Parameters
    ----------
    config
        Its storage lies below the mounted volume, or in an object store.
    """

    def __init__(self, config: KubeRayCluster) -> None:
        self._config = config

    def preview(self, request: RunRequest) -> str:
        """See `Provider`."""
        return f"{self._write(request)}\n$ {shlex.join(self._make_command('apply', '--filename=-'))}"

    def submit(self, request: RunRequest) -> Handle:
        """Apply the manifest, in place of that of an earlier launch of this name.

        Raises
        ------
        ClusterError
            If a job of this name is at work, or Kubernetes refuses the manifest; its reason is in the message.
        """
        handle = {"rayjob": name_resource(request.name)}
        state = self.ask_state(handle)
        if not state.ended:
            raise ClusterError(f"RayJob {handle['rayjob']} is {state.word}; stop it first, or give --name")
        if state.word != "lost":
            # A RayJob runs once.
            self._run("removing the earlier job", "delete", "rayjob,configmap", handle["rayjob"], "--ignore-not-found")
        try:
            self._run("applying the manifest", "apply", "--filename=-", input=self._write(request))
        except ClusterError as error:
            old = "authOptions" in str(error)
            raise ClusterError(f"{error}{'; upgrade the KubeRay operator to 1.5.1 or newer' * old}") from error
        return handle

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the submitter's log, which holds the driver's; first, that pods are awaited."""
        remark, read = "", 0
        while True:
            status = self._ask(handle)
            state = _judge(status)
            before = remark
            if state.word == "pending":
                deployment = (status or {}).get("jobDeploymentStatus") or "New"
                remark = f"RayJob {handle['rayjob']}: waiting for its pods ({deployment})"
            else:
                try:
                    # A connection that broke starts again from the first line.
                    for line in itertools.islice(self._read_log(handle, state.ended), read, None):
                        read += 1
                        yield line
                except ClusterError as error:
                    # The submitter's pod is not ready yet, or this user may not read logs: the job goes on.
                    remark = str(error)
            if remark != before:
                yield remark
            if state.ended:
                break
            time.sleep(_POLL_SECONDS)
        if message := (status or {}).get("message"):
            yield f"RayJob {handle['rayjob']}: {message}"

    def ask_state(self, handle: Handle) -> JobState:
        """See `Provider`; KubeRay does not tell the driver's exit code."""
        return _judge(self._ask(handle))

    def stop(self, handle: Handle) -> None:
        """Suspend the job: its pods go, the record stays."""
        patch = json.dumps({"spec": {"suspend": True}})
        self._run("stopping the job", "patch", "rayjob", handle["rayjob"], "--type=merge", f"--patch={patch}")

    def _write(self, request: RunRequest) -> str:
        return dump_yaml(*make_manifests(self._config, request))

    def _ask(self, handle: Handle) -> Status | None:
        """What KubeRay says of the job; ``None`` when there is none of its name."""
        told = self._run("asking for the job", "get", "rayjob", handle["rayjob"], "--ignore-not-found", "--output=json")
        if not told.strip():
            return None
        status: Status = json.loads(told).get("status", {})
        return status

    def _read_log(self, handle: Handle, ended: bool) -> Iterator[str]:
        """The log from its first line; until it breaks off, or what there is once the job has ended."""
        # KubeRay names the Kubernetes job that submits to Ray, and prints what it says, after the RayJob.
        command = self._make_command("logs", f"job/{handle['rayjob']}", *([] if ended else ["--follow"]))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        with process:
            try:
                for line in process.stdout:
                    yield line.rstrip("\n")
                said = process.stderr.read().strip()
                process.wait()
            finally:
                process.terminate()
        if process.returncode > 0:
            raise ClusterError(f"reading the log: {said}")

    def _run(self, purpose: str, *words: str, **options: Any) -> str:
        return run_program(self._make_command(*words), purpose, **options)

    def _make_command(self, *words: str) -> list[str]:
        return ["kubectl", f"--namespace={self._config.namespace}", *words]


def name_resource(name: str) -> str:
    """A run's name as Kubernetes allows names: lower-case letters, digits and hyphens, told apart by a digest."""
    plain = f"cf-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"
    if plain == f"cf-{name}" and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[: _LONGEST_NAME - 7].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def make_manifests(config: KubeRayCluster, request: RunRequest) -> tuple[Manifest, Manifest]:
    """ConfigMap and RayJob of a launch, as plain values.

    Parameters
    ----------
    config
        Of the cluster.
    request
        What the job makes.
    """
    name = name_resource(request.name)
    metadata = {"name": name, "labels": {"app.kubernetes.io/name": "cryoformer-dist"}}
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": request.files}
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": shlex.join(request.make_command(_FILES, config.python)),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _SECONDS_AFTER_END,
            "rayClusterSpec": _describe_cluster(config, name),
        },
    }
    return files, job


def _describe_cluster(config: KubeRayCluster, files: str) -> Manifest:
    """Head and workers, the head with the files of the ConfigMap of this name."""
    head = _describe_pod(config, "ray-head", {"cpu": config.head_cpus, "memory": f"{config.head_memory_gib}Gi"})
    head["volumes"] = [*head.get("volumes", []), {"name": "spec", "configMap": {"name": files}}]
    container = head["containers"][0]
    container["volumeMounts"] = [*container.get("volumeMounts", []), {"name": "spec", "mountPath": _FILES}]
    limits: dict[str, int | float | str] = {"cpu": config.cpus_per_node, "memory": f"{config.memory_gib_per_node}Gi"}
    if config.gpus_per_node:
        limits["nvidia.com/gpu"] = config.gpus_per_node
    return {
        "rayVersion": version("ray"),
        # The operator makes the token, keeps it in a secret, and gives it to these pods and the submitter only.
        "authOptions": {"mode": "token"},
        # The head leads: training and reading happen on the workers.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": head}},
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": config.nodes,
                "minReplicas": config.nodes,
                "maxReplicas": config.nodes,
                "rayStartParams": {},
                "template": {"spec": _describe_pod(config, "ray-worker", limits)},
            }
        ],
    }


def _describe_pod(config: KubeRayCluster, name: str, limits: dict[str, int | float | str]) -> Manifest:
    """A pod with one container that sees volume, secret and environment."""
    container: Manifest = {
        "name": name,
        "image": config.image,
        # Requests equal to limits: such a pod is evicted last.
        "resources": {"limits": limits, "requests": dict(limits)},
    }
    pod: Manifest = {"containers": [container]}
    if config.environment:
        container["env"] = [{"name": key, "value": value} for key, value in config.environment.items()]
    if config.secret:
        container["envFrom"] = [{"secretRef": {"name": config.secret}}]
    if config.volume_claim:
        container["volumeMounts"] = [{"name": "shared", "mountPath": config.mount}]
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": config.volume_claim}}]
    if config.service_account:
        pod["serviceAccountName"] = config.service_account
    return pod


def _judge(status: Status | None) -> JobState:
    """How a job is doing, of what KubeRay says of the deployment and of the job in it."""
    if status is None:
        return JobState("lost")
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment in ("Failed", "ValidationFailed"):
        return JobState("failed")
    if deployment == "Suspended" or (deployment == "Complete" and job == "STOPPED"):
        return JobState("stopped")
    if deployment == "Complete":
        return JobState("failed") if job == "FAILED" else JobState("succeeded", 0)
    # Between the end of the job and that of its pods, Ray has said how it ended, but KubeRay may not have written it.
    return JobState("running" if deployment in ("Running", "Suspending") and job != "PENDING" else "pending")
