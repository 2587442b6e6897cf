import gzip
import json
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cryoformer_dist.config.cluster import KubeRayCluster
from cryoformer_dist.config.loading import dump_yaml, parse_yaml
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.providers import kuberay
from cryoformer_dist.orchestration.providers.kuberay import KubeRayProvider, make_manifests, name_resource
from cryoformer_dist.orchestration.providers.provider import JobState
from cryoformer_dist.orchestration.request import RunRequest

SCHEMA = Path(__file__).resolve().parents[2] / "golden" / "rayjob_v1.strict.schema.json.gz"
MakeRequest = Callable[..., RunRequest]
BARE: dict[str, Any] = {"storage": "s3://bucket/runs"}
FULL: dict[str, Any] = {
    "storage": "/shared/runs",
    "volume_claim": "cryo",
    "nodes": 3,
    "gpus_per_node": 2,
    "secret": "s3-keys",
    "service_account": "trainer",
    "environment": {"NCCL_DEBUG": "WARN"},
    "python": "/opt/venv/bin/python",
}


def _config(**keys: Any) -> KubeRayCluster:
    return KubeRayCluster(provider="kuberay", image="registry.example/cryoformer-dist:0.1", **{**BARE, **keys})


@pytest.fixture(scope="module")
def kuberay_schema() -> Any:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Callable[..., Path]) -> Path:
    """A Kubernetes of one stand-in; the folder holds what it was told."""
    programs("kubectl.py", "kubectl")
    folder = tmp_path / "kubernetes"
    folder.mkdir()
    monkeypatch.setenv("KUBECTL_STAND_IN", str(folder))
    monkeypatch.setattr(kuberay, "_POLL_SECONDS", 0.0)
    return folder


@pytest.mark.parametrize("keys", [BARE, FULL], ids=["bare", "full"])
def test_every_manifest_passes_kuberay_s_own_schema(
    keys: dict[str, Any], kuberay_schema: Any, make_request: MakeRequest
) -> None:
    config = _config(**keys)
    _, job = make_manifests(config, make_request(config))
    kuberay_schema.validate(job)
    job["spec"]["rayClusterSpec"]["authOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        kuberay_schema.validate(job)


def test_the_job_finds_the_files_it_is_told_to_read(make_request: MakeRequest) -> None:
    config = _config(**FULL)
    files, job = make_manifests(config, make_request(config, resume=True))
    words = shlex.split(job["spec"]["entrypoint"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes["spec"]["configMap"]["name"] == files["metadata"]["name"] == job["metadata"]["name"]
    assert words[:4] == ["/opt/venv/bin/python", "-m", "cryoformer_dist.cli", "drive"]
    assert words[4:6] == [f"{mounts['spec']}/{name}" for name in files["data"]]
    assert words[-1] == "--resume"


def test_every_pod_sees_volume_secret_environment_and_its_share_of_a_node(make_request: MakeRequest) -> None:
    config = _config(**FULL)
    cluster = make_manifests(config, make_request(config))[1]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == 3
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "cryo"}} in pod["volumes"]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
        assert container["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]
        assert pod["serviceAccountName"] == "trainer"
        assert container["resources"]["limits"] == container["resources"]["requests"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 2}


def test_the_cluster_asks_for_a_token_and_is_gone_after_the_job(make_request: MakeRequest) -> None:
    config = _config()
    spec = make_manifests(config, make_request(config))[1]["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == version("ray")
    assert spec["shutdownAfterJobFinishes"]


@pytest.mark.parametrize("run", ["demo", "a.b-c_1", "7", "Igg_Arc", "x" * 90, "a-" * 22 + "b"])
def test_a_run_s_name_becomes_one_that_kubernetes_takes(run: str) -> None:
    name = name_resource(run)
    assert len(name) <= 47
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name[0].isalpha()
    assert name[-1] != "-"


def test_runs_whose_names_differ_in_forbidden_letters_only_stay_apart() -> None:
    names = ["a-b", "a_b", "a.b", "A-b", "a--b"]
    assert len({name_resource(name) for name in names}) == len(names)


def test_files_in_the_manifest_are_read_back_letter_for_letter(make_request: MakeRequest) -> None:
    config = _config(environment={"WORDS": "a: b # c"})
    files, _ = make_manifests(config, make_request(config))
    text = dump_yaml(files)
    assert parse_yaml(text, "manifest")["data"] == files["data"]
    # As it is read by people.
    assert "\n  run.yaml: |\n    name: arm_1\n" in text


def test_a_job_is_followed_from_its_pods_to_its_end_each_line_once(known: Path, make_request: MakeRequest) -> None:
    config = _config(namespace="cryo")
    provider = KubeRayProvider(config)
    handle = provider.submit(make_request(config))
    assert (known / "applied").read_text() == provider.preview(make_request(config)).partition("\n$ ")[0]
    name = handle["rayjob"]
    assert list(provider.follow(handle)) == [
        f"RayJob {name}: waiting for its pods (New)",
        f"RayJob {name}: waiting for its pods (Initializing)",
        "reading the log: Error from server (BadRequest): container is waiting to start: ContainerCreating",
        "one",
        "two",
        "three",
        "four",
        f"RayJob {name}: Job finished successfully.",
    ]
    assert provider.ask_state(handle) == JobState("succeeded", 0)
    assert all(call.startswith("--namespace=cryo ") for call in (known / "calls").read_text().splitlines())


def test_a_job_at_work_is_not_replaced_a_stopped_one_is(known: Path, make_request: MakeRequest) -> None:
    config = _config()
    provider = KubeRayProvider(config)
    assert provider.ask_state({"rayjob": "cf-arm"}) == JobState("lost")
    handle = provider.submit(make_request(config))
    with pytest.raises(ClusterError, match="stop it first"):
        provider.submit(make_request(config))
    provider.stop(handle)
    assert provider.ask_state(handle) == JobState("stopped")
    assert provider.submit(make_request(config, resume=True)) == handle
    assert "--resume" in (known / "applied").read_text()


def test_an_operator_too_old_for_tokens_is_named(known: Path, make_request: MakeRequest) -> None:
    (known / "refused").write_text('strict decoding error: unknown field "spec.rayClusterSpec.authOptions"')
    config = _config()
    with pytest.raises(ClusterError, match=r"authOptions.*upgrade the KubeRay operator to 1\.5\.1"):
        KubeRayProvider(config).submit(make_request(config))


@pytest.mark.parametrize(
    ("deployment", "job", "expected"),
    [
        ("Initializing", "", "pending"),
        ("Retrying", "", "pending"),
        ("Running", "PENDING", "pending"),
        ("Suspending", "", "running"),
        ("Suspended", "", "stopped"),
        ("Complete", "STOPPED", "stopped"),
        ("Complete", "FAILED", "failed"),
        ("Failed", "FAILED", "failed"),
        ("ValidationFailed", "", "failed"),
    ],
)
def test_kuberay_s_words_have_one_meaning_here(deployment: str, job: str, expected: str) -> None:
    assert kuberay._judge({"jobDeploymentStatus": deployment, "jobStatus": job}).word == expected
