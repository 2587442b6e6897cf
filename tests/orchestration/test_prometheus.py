import json
import re
import shutil
import subprocess
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import yaml
from support.training_records import training_record

from cryoformer_dist.cli.starter import find_starter_folder
from cryoformer_dist.orchestration import prometheus as metrics
from cryoformer_dist.orchestration.prometheus import METRICS, News, SignOfLife, StorageRoom, publishing
from cryoformer_dist.orchestration.worker import RayReporter
from cryoformer_dist.runs.stage_progress import StageProgress
from cryoformer_dist.runs.training_log import SearchFindings, TrainingRecord

MONITORING = find_starter_folder("cluster") / "monitoring"
ALERTS, ALERT_CASES = MONITORING / "alerts.yml", Path(__file__).parent / "alert_cases.yml"
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
        publish(SignOfLife(49, 1))
        publish(record)
    own = {metric.prometheus_name for metric in METRICS if metric.per_rank}
    assert (
        shown.names()
        == own
        == {
            "ray_cryoformer_memory_bytes",
            "ray_cryoformer_data_wait_share",
            "ray_cryoformer_slowness",
            "ray_cryoformer_silence_seconds",
            "ray_cryoformer_own_steps",
        }
    )
    with publishing("demo", 0) as publish:
        publish(StageProgress("maps", 3, 4, 6.0))
        publish(SignOfLife(49, 1))
        publish(StorageRoom(2**40))
        publish(record)
    assert shown.names() == {metric.prometheus_name for metric in METRICS}
    assert shown.last("cryoformer_stage_share", run="demo", stage="maps") == 0.75
    assert shown.last("cryoformer_stage_seconds_left", run="demo", stage="maps") == 2
    assert shown.last("cryoformer_memory_bytes", run="demo", rank="1") == 1.5 * 2**30
    assert shown.last("cryoformer_residual_outside_share", run="demo") == 0.03
    assert shown.last("cryoformer_loss", run="demo") == 0.98
    assert shown.last("cryoformer_own_steps", run="demo", rank="0") == 49
    assert shown.last("cryoformer_left_out_steps", run="demo") == 1
    assert shown.last("cryoformer_storage_free_bytes", run="demo") == 2**40


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


def test_silence_grows_until_a_rank_is_heard_of_and_a_step_is_shown_with_the_next_round(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(metrics, "_SECONDS_BETWEEN_SHOWINGS", 3600.0)
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    monkeypatch.setattr(metrics.time, "time", lambda: 5.0)
    numbers = metrics._ShownNumbers("demo", 1)
    now += 40
    numbers.show()
    assert shown.last("cryoformer_silence_seconds", run="demo", rank="1") == 40
    numbers.publish(SignOfLife(7, 0))
    now += 2
    assert "ray_cryoformer_own_steps" not in shown.names()
    numbers.show()
    assert shown.last("cryoformer_silence_seconds", run="demo", rank="1") == 2
    assert shown.last("cryoformer_own_steps", run="demo", rank="1") == 7
    leader = metrics._ShownNumbers("demo", 0)
    leader.show()
    assert shown.last("cryoformer_start_seconds", run="demo") == 5


def test_room_is_that_of_the_file_system_for_this_user(tmp_path: Path) -> None:
    assert StorageRoom.of(tmp_path).free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)
    with pytest.raises(FileNotFoundError):
        StorageRoom.of(tmp_path / "away")


def test_every_report_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faulthandler

    told: list[News] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *arguments, **named: None)
    monkeypatch.setattr(ray.train, "report", lambda *arguments, **named: None)
    reporter = RayReporter(tmp_path, 60.0, told.append)
    first, second = training_record(step=50), training_record(step=100)
    reporter.report(first, None)
    reporter.step(51, 2)
    reporter.report(second, tmp_path / "checkpoints" / "step-100")
    assert [news for news in told if isinstance(news, TrainingRecord)] == [first, second]
    assert SignOfLife(51, 2) in told
    assert sum(isinstance(news, StorageRoom) for news in told) == 2


def test_a_report_is_told_where_storage_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faulthandler

    told: list[News] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *arguments, **named: None)
    RayReporter(tmp_path / "away", 60.0, told.append).report(training_record(step=50), None)
    assert [news for news in told if not isinstance(news, SignOfLife)] == [training_record(step=50)]


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
    assert yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"] == [ALERTS.name]


def _alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def test_every_alert_looks_at_what_is_shown_has_its_cases_and_is_told_in_the_documentation() -> None:
    known = {metric.prometheus_name for metric in METRICS} | {"ray_node_disk_utilization_percentage"}
    documentation = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    cases = [case for group in yaml.safe_load(ALERT_CASES.read_text())["tests"] for case in group["alert_rule_test"]]
    for alert in _alerts():
        name = alert["alert"]
        assert _metric_names(alert["expr"]) <= known, name
        assert f"| `{name}` | {alert['labels']['severity']} |" in documentation
        outcomes = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name}
        assert outcomes == {True, False}, name


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed"
)


@needs_promtool
@pytest.mark.parametrize("task", [("check", ALERTS), ("test", ALERT_CASES)], ids=["check", "test"])
def test_promtool_finds_the_alerts_right_and_each_fires_when_it_should_and_not_else(task: tuple[str, Path]) -> None:
    verb, file = task
    done = subprocess.run(["promtool", verb, "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
