import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.runs.training_log import TrainingLog, describe, duration, read_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.reporting import Stopwatch, memory_gib

RECORD: dict[str, Any] = {
    "stage": "pose_pretraining",
    "epoch": 2,
    "epochs": 20,
    "coarse": False,
    "step": 1840,
    "steps": 5120,
    "loss": 0.98712,
    "active_points": 52431,
    "residual_outside": None,
    "latent_information_nats": None,
    "particles_per_second": 411.7,
    "data_wait_share": 0.031,
    "seconds_per_step": 2.452,
    "memory_gib": 21.44,
    "seconds": 4512.0,
}


def _records(run: Path) -> list[int]:
    return [record["step"] for record in read_training_log(run)]


def _fill(run: Path, *steps: int) -> None:
    metrics = TrainingLog(WorkingFolder.on_disk(run), 0)
    for step in steps:
        metrics.append({"step": step, "seconds": step / 2})


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_training_log(tmp_path) == []


def test_records_come_back_as_written(tmp_path: Path) -> None:
    TrainingLog(WorkingFolder.on_disk(tmp_path), 0).append(RECORD)
    assert read_training_log(tmp_path) == [RECORD]


def test_going_on_drops_the_records_of_work_that_was_lost(tmp_path: Path) -> None:
    _fill(tmp_path, 2, 4, 6, 8)
    metrics = TrainingLog(WorkingFolder.on_disk(tmp_path), 5)
    assert _records(tmp_path) == [2, 4]
    assert metrics.seconds_before == 2.0
    metrics.append({"step": 6, "seconds": 3.5})
    assert _records(tmp_path) == [2, 4, 6]


def test_the_step_gone_on_from_is_kept(tmp_path: Path) -> None:
    _fill(tmp_path, 2, 4)
    TrainingLog(WorkingFolder.on_disk(tmp_path), 4)
    assert _records(tmp_path) == [2, 4]


def test_starting_anew_starts_empty(tmp_path: Path) -> None:
    _fill(tmp_path, 2, 4)
    assert TrainingLog(WorkingFolder.on_disk(tmp_path), 0).seconds_before == 0
    assert _records(tmp_path) == []


def test_a_last_line_cut_by_a_crash_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    _fill(tmp_path, 2, 4)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for cut in ('{"step": 6, "sec', '{"step": 6, "seconds": 3}'):
        path.write_text(whole + cut)
        assert _records(tmp_path) == [2, 4]
        TrainingLog(WorkingFolder.on_disk(tmp_path), 99).append({"step": 6, "seconds": 3.0})
        assert _records(tmp_path) == [2, 4, 6]
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_broken_record_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step":\n{"step": 6}\n')
    with pytest.raises(CryoFormerError, match=r"metrics\.jsonl, line 2: not a JSON record .*remove the line"):
        read_training_log(tmp_path)


def test_the_line_for_people_says_where_training_is_and_when_it_ends() -> None:
    assert describe(RECORD) == (
        "pose pretraining 3/20  step 1840/5120 36%  loss 0.9871  52431 points  412 particles/s  data-wait 3%  "
        "21.4 GiB  eta 2h14m"
    )


def test_the_line_for_people_says_what_the_last_refresh_found_outside_the_mask() -> None:
    assert "  52431 points, 7% of residual outside  " in describe(RECORD | {"residual_outside": 0.071})


def test_the_line_for_people_says_what_images_told_the_last_search() -> None:
    assert "  52431 points  images say 1.9 nats  412 p" in describe(RECORD | {"latent_information_nats": 1.94})


def test_coarse_passes_promise_no_end_since_the_others_take_longer() -> None:
    line = describe(RECORD | {"coarse": True})
    assert line.startswith("pose pretraining 3/20 coarse  step 1840/5120")
    assert line.endswith("eta over 2h14m")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3599.7, "1h00m"), (8040, "2h14m"), (4e5, "111h06m")],
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_stopwatch_tells_the_interval_from_the_whole() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    watch.restart()
    watch.trained(30)
    watch.trained(10)
    watch.waited(0.005)
    time.sleep(0.02)
    reading = watch.reading()
    elapsed = 40 / reading["particles_per_second"]
    assert 0.02 <= elapsed <= reading["seconds"] - 0.02
    assert reading["data_wait_share"] == pytest.approx(0.005 / elapsed)
    watch.restart()
    assert watch.reading()["particles_per_second"] == 0
    assert watch.reading()["data_wait_share"] == 0


def test_the_pace_is_that_of_the_stretch_under_way() -> None:
    watch = Stopwatch()
    watch.enter("reconstruction", True)
    watch.trained(10)
    time.sleep(0.2)
    watch.enter("reconstruction", False)
    for _ in range(4):
        watch.enter("reconstruction", False)
        watch.trained(10)
        time.sleep(0.01)
    reading = watch.reading()
    assert 0.01 <= reading["seconds_per_step"] <= (reading["seconds"] - 0.2) / 4


def test_memory_of_this_process_is_in_gib() -> None:
    assert 0.05 < memory_gib(torch.device("cpu")) < 100
