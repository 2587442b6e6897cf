"""A running job of two ranks as those see it who watch the cluster, a real Prometheus among them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from support.ray_nodes import free_port
from support.tiny_runs import tiny_settings

from cryoformer_dist.cli.starter import find_starter_folder
from cryoformer_dist.orchestration.prometheus import METRICS

pytestmark = pytest.mark.slow

MONITORING = find_starter_folder("cluster") / "monitoring"
TOKEN = "0" * 64


@dataclass
class Job:
    """One that trains for as long as the tests last."""

    process: "subprocess.Popen[bytes]"
    dashboard: str
    log: Path

    def trainers(self) -> list[psutil.Process]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in below if "RayTrainWorker" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def job(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder, port = tmp_path_factory.mktemp("job"), free_port()
    changes = {
        **{"training.epochs": 5000, "training.occupancy": "data", "training.occupancy_refresh_epochs": 1},
        **{"training.report_every_steps": 4, "training.checkpoint_every_steps": 40},
        # What images say is known from searches only.
        **{"model.latent.start": "linear", "model.latent.refinement": "search"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_settings(tiny_store, changes)))
    cluster = {"storage": str(folder), "workers": {"count": 2, "cpus": 0.5}, "dashboard_port": port}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    program = [sys.executable, "-m", "cryoformer_dist.cli", "launch", "cluster.yaml", "--run", "run.yaml"]
    environment = {"OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(folder)}
    with _running(program, folder / "log", folder, environment) as process:
        yield Job(process, f"http://127.0.0.1:{port}", folder / "log")


@contextmanager
def _running(
    program: list[str], log: Path, folder: Path, environment: dict[str, str]
) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("w") as output:
        process = subprocess.Popen(
            program, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=os.environ | environment
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def _get(url: str, token: str | None = None) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def _wait_until(missing: Callable[[], Any], job: Job, seconds: float) -> None:
    """Until nothing is missing; servers that are not up yet, or busy starting, are asked again."""
    end, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < end:
        assert job.process.poll() is None, job.log.read_text()
        try:
            last = missing()
        except OSError as error:
            last = str(error)
        if not last:
            return
        time.sleep(2)
    pytest.fail(f"still missing after {seconds} s: {last}\n{job.log.read_text()}")


def _scraped(dashboard: str) -> dict[str, list[dict[str, str]]]:
    """Our metrics at all endpoints that the dashboard lists, with the labels of their samples."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[dict[str, str]]] = {}
    for group in json.loads(_get(f"{dashboard}/api/prometheus/sd", TOKEN)):
        for target in group["targets"]:
            for family in text_string_to_metric_families(_get(f"http://{target}/metrics")):
                if family.name.startswith("ray_cryoformer_"):
                    found.setdefault(family.name, []).extend(sample.labels for sample in family.samples)
    return found


def _shown(scraped: dict[str, list[dict[str, str]]]) -> set[tuple[str, str | None]]:
    """Names of metrics, and of which ranks they are."""
    return {(name, labels.get("rank")) for name, samples in scraped.items() for labels in samples}


def test_a_run_under_ray_shows_every_metric_on_the_endpoints_that_the_dashboard_lists(job: Job) -> None:
    wanted = {
        (metric.prometheus_name, rank) for metric in METRICS for rank in (("0", "1") if metric.per_rank else (None,))
    }
    _wait_until(lambda: wanted - _shown(_scraped(job.dashboard)), job, 600)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _get(f"{job.dashboard}/api/prometheus/sd")
    found = _scraped(job.dashboard)
    assert _shown(found) == wanted
    assert all(labels["run"] == "tiny" for samples in found.values() for labels in samples)


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **arguments: str) -> Any:
        answer = json.loads(_get(f"{self._address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, promql: str) -> list[dict[str, Any]]:
        return list(self.ask("query", query=promql)["result"])


@pytest.fixture(scope="module")
def prometheus(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the shipped files, but for ports and for waiting: a rank hangs after twenty seconds here."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    shutil.copytree(MONITORING, folder, dirs_exist_ok=True)
    (folder / "ray_token").write_text(TOKEN)
    settings = yaml.safe_load((folder / "prometheus.yml").read_text())
    settings["global"] |= {"scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "5s"}
    settings["scrape_configs"][0]["http_sd_configs"][0]["url"] = f"{job.dashboard}/api/prometheus/sd"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    alerts = folder / "alerts.yml"
    assert "> 300" in alerts.read_text()
    alerts.write_text(alerts.read_text().replace("> 300", "> 20"))
    program = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running([*program, f"--web.listen-address=127.0.0.1:{port}"], folder / "log", folder, {}):
        yield Prometheus(f"http://127.0.0.1:{port}")


def _panel_queries() -> dict[str, str]:
    """By title and letter, for all runs."""
    dashboard = json.loads((MONITORING / "grafana_cryoformer.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$run", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        if torch.cuda.is_available() or not panel["title"].startswith("GPU")
    }


def test_prometheus_answers_every_query_of_the_dashboard_and_finds_no_fault_with_the_alerts(
    job: Job, prometheus: Prometheus
) -> None:
    queries = _panel_queries()
    assert len(queries) > 20
    _wait_until(lambda: [title for title, query in queries.items() if not prometheus.query(query)], job, 600)
    assert {target["value"][1] for target in prometheus.query("up")} == {"1"}
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    critical = prometheus.query('ALERTS{alertstate="firing", severity="critical"}')
    # How full the disk of this machine is, is its own affair.
    assert {alert["metric"]["alertname"] for alert in critical} <= {"CryoFormerStorageNearlyFull"}


def test_a_rank_that_stands_still_is_named_by_an_alert(job: Job, prometheus: Prometheus) -> None:
    _wait_until(lambda: len(prometheus.query("ray_cryoformer_own_steps")) != 2, job, 600)
    stuck = job.trainers()[0]
    stuck.send_signal(signal.SIGSTOP)
    firing = 'ALERTS{alertname="CryoFormerStuckRank", alertstate="firing"}'
    try:
        _wait_until(lambda: not prometheus.query(firing), job, 120)
        (alert,) = prometheus.query(firing)
        spoken = {sample["metric"]["rank"] for sample in prometheus.query("ray_cryoformer_own_steps")}
    finally:
        stuck.send_signal(signal.SIGCONT)
    assert alert["metric"]["run"] == "tiny"
    assert alert["metric"]["rank"] in {"0", "1"} - spoken
    _wait_until(lambda: prometheus.query(firing), job, 120)
