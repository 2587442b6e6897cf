import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import yaml
from support.tiny_runs import tiny_settings
from support.training_records import training_record

from cryoformer_dist.cli.starter import find_starter_folder
from cryoformer_dist.orchestration import prometheus as metrics
from cryoformer_dist.orchestration.prometheus import METRICS, publishing
from cryoformer_dist.orchestration.worker import RayReporter
from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.training_log import SearchFindings

MONITORING = find_starter_folder("cluster") / "monitoring"
# Of Ray's own, those that the dashboard draws.
RAYS_OWN = {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_node_mem_used", "ray_node_mem_total"}
RECORD = training_record(
    **{
        "step": 50,
        "steps": 1500,
        "loss": 0.98,
        "learning_rate_factor": 0.5,
        "particles_per_second": 400.0,
        "data_wait_share": 0.02,
    },
    **{"memory_gib": 1.5, "active_points": 4000, "residual_outside": None, "checkpoint_seconds": 0.25, "workers": 2},
    latent_information_nats=None,
    pose_error_deg=None,
    pose_error_angstrom=None,
    amplitude_spread=None,
    junk_share=None,
    noise_departure=None,
)


class Shown:
    """Stands in for Ray's gauges: what was shown last, and how often, per name and tags."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}

    def gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        shown = self.values

        class Gauge:
            def set_default_tags(self, tags: dict[str, str]) -> "Gauge":
                self.tags = tags
                return self

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert set(self.tags) | set(tags) == set(tag_keys)
                shown.setdefault((name, tuple(sorted((self.tags | tags).items()))), []).append(value)

        return Gauge()

    def names(self) -> set[str]:
        return {f"ray_{name}" for name, _ in self.values}

    def last(self, name: str, **tags: str) -> float:
        return self.values[name, tuple(sorted(tags.items()))][-1]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(metrics, "Gauge", shown.gauge)
    return shown


def test_the_leader_shows_the_whole_table_and_another_rank_its_own_numbers_only(shown: Shown) -> None:
    record = replace(
        RECORD, residual_outside=0.03, noise_departure=0.02, **asdict(SearchFindings(1.9, 2.0, 0.5, 0.2, 0.1))
    )
    with publishing("demo", 1) as publish:
        publish(record)
    own = {metric.prometheus_name for metric in METRICS if metric.per_rank}
    assert (
        shown.names()
        == own
        == {
            "ray_cryoformer_memory_bytes",
            "ray_cryoformer_data_wait_share",
            "ray_cryoformer_slowness",
        }
    )
    with publishing("demo", 0) as publish:
        publish(StageProgress("maps", 3, 4, 6.0))
        publish(record)
    assert shown.names() == {metric.prometheus_name for metric in METRICS}
    assert shown.last("cryoformer_stage_share", run="demo", stage="maps") == 0.75
    assert shown.last("cryoformer_stage_seconds_left", run="demo", stage="maps") == 2
    assert shown.last("cryoformer_memory_bytes", run="demo", rank="1") == 1.5 * 2**30
    assert shown.last("cryoformer_residual_outside_share", run="demo") == 0.03
    assert shown.last("cryoformer_loss", run="demo") == 0.98


def test_what_a_record_does_not_know_stays_as_it_was(shown: Shown) -> None:
    with publishing("demo", 0) as publish:
        publish(RECORD)
        assert "ray_cryoformer_residual_outside_share" not in shown.names()
        publish(replace(RECORD, checkpoint_seconds=None, step=100))
    assert shown.last("cryoformer_checkpoint_seconds", run="demo") == 0.25
    assert shown.last("cryoformer_step", run="demo") == 100


def test_numbers_are_shown_again_until_training_ends(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SECONDS_BETWEEN_SHOWINGS", 0.01)
    with publishing("demo", 0) as publish:
        publish(RECORD)
        loss = shown.values["cryoformer_loss", (("run", "demo"),)]
        end = time.monotonic() + 5
        while len(loss) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(loss) >= 4
    assert "show-metrics" not in {thread.name for thread in threading.enumerate()}


def test_every_report_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faulthandler

    told: list[int] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *arguments, **named: None)
    monkeypatch.setattr(ray.train, "report", lambda *arguments, **named: None)
    reporter = RayReporter(tmp_path, 60.0, lambda record: told.append(record.step))
    reporter.report(training_record(step=50), None)
    reporter.report(training_record(step=100), tmp_path / "checkpoints" / "step-100")
    assert told == [50, 100]


def _dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "grafana_cryoformer.json").read_text()))


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _metric_names(promql: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", promql))


def test_the_dashboard_draws_all_metrics_of_the_table_and_no_others() -> None:
    assert _metric_names('max by (run) (ray_a{run=~"$run"}) / ray_b') == {"ray_a", "ray_b"}
    dashboard = _dashboard()
    drawn = set().union(*map(_metric_names, _expressions(dashboard)))
    assert drawn - RAYS_OWN == {metric.prometheus_name for metric in METRICS}
    (run,) = [variable for variable in dashboard["templating"]["list"] if variable["name"] == "run"]
    assert _metric_names(run["definition"]) <= drawn
    assert run["definition"] == run["query"]["query"]


def test_the_dashboard_s_panels_stand_side_by_side_and_obey_its_variables() -> None:
    dashboard = _dashboard()
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for expression in _expressions(dashboard):
        assert expression.count("ray_cryoformer_") == expression.count('{run=~"$run"}')
    ranked = {metric.prometheus_name for metric in METRICS if metric.per_rank}
    staged = {metric.prometheus_name for metric in METRICS if metric.per_stage}
    for expression in _expressions(dashboard):
        assert ("by (run, rank)" in expression) == bool(_metric_names(expression) & ranked), expression
        assert ("by (run, stage)" in expression) == bool(_metric_names(expression) & staged), expression


def test_the_table_is_told_in_the_documentation() -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    for metric in METRICS:
        unit = metric.unit or "-"
        assert f"| `{metric.prometheus_name}` | {unit} | {metric.meaning}" in documentation


def test_prometheus_is_sent_to_the_dashboard_s_list_of_nodes_with_a_token_from_a_file() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (nodes,) = job["http_sd_configs"]
    assert nodes["url"].endswith(":8265/api/prometheus/sd")
    assert nodes["authorization"] == {"type": "Bearer", "credentials_file": "ray_token"}


TOKEN = "0" * 64


def _get(url: str, token: str | None = None) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


@pytest.mark.slow
def test_a_run_under_ray_shows_every_metric_on_the_endpoints_that_the_dashboard_lists(
    tiny_store: Path, tmp_path: Path
) -> None:
    port = _free_port()
    changes = {
        **{"training.epochs": 2000, "training.occupancy": "data", "training.occupancy_refresh_epochs": 1},
        **{"training.report_every_steps": 4, "training.checkpoint_every_steps": 40},
        # What images say is known from searches only.
        **{"model.latent.start": "linear", "model.latent.refinement": "search"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings(tiny_store, changes)))
    cluster = {"storage": str(tmp_path), "workers": {"count": 2, "cpus": 0.5}, "dashboard_port": port}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    program = [sys.executable, "-m", "cryoformer_dist.cli", "launch", "cluster.yaml", "--run", "run.yaml"]
    environment = {"OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(tmp_path)}
    wanted = {metric.prometheus_name for metric in METRICS}
    found: dict[str, list[dict[str, str]]] = {}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            program, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path, env=os.environ | environment
        )
        try:
            end = time.monotonic() + 600
            while found.keys() < wanted and time.monotonic() < end:
                assert process.poll() is None, log.read_text()
                time.sleep(2)
                try:
                    found = _scraped(f"http://127.0.0.1:{port}")
                except OSError:
                    # Not up yet, or busy starting.
                    continue
            with pytest.raises(urllib.error.HTTPError, match="401"):
                _get(f"http://127.0.0.1:{port}/api/prometheus/sd")
        finally:
            process.terminate()
            process.wait(timeout=60)
    assert found.keys() == wanted, log.read_text()
    assert all(labels["run"] == "tiny" for samples in found.values() for labels in samples)
    for metric in METRICS:
        ranks = {labels.get("rank") for labels in found[metric.prometheus_name]}
        assert ranks == ({"0", "1"} if metric.per_rank else {None})
