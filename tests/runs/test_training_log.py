import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.training_records import training_record

from cryoformer_dist.errors import CryoFormerError, TornLogWarning
from cryoformer_dist.runs.training_log import (
    SearchFindings,
    TrainingLog,
    describe,
    find_search,
    format_duration,
    is_described,
    read_records_so_far,
    read_training_log,
)
from cryoformer_dist.storage.working_folder import WorkingFolder

RECORD = training_record(
    stage="pose_pretraining",
    epoch=2,
    epochs=20,
    coarse=False,
    step=1840,
    steps=5120,
    loss=0.98712,
    active_points=52431,
    residual_outside=None,
    latent_information_nats=None,
    pose_error_deg=None,
    pose_error_angstrom=None,
    amplitude_spread=None,
    junk_share=None,
    noise_departure=None,
    particles_per_second=411.7,
    slowness=1.0,
    data_wait_share=0.031,
    seconds_per_step=2.452,
    memory_gib=21.44,
    seconds=4512.0,
)


def _records(run: Path) -> list[int]:
    return [record.step for record in read_training_log(run)]


def _fill(run: Path, *steps: int) -> None:
    metrics = TrainingLog(WorkingFolder.on_disk(run), 0)
    for step in steps:
        metrics.append(training_record(step=step, seconds=step / 2))


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
    metrics.append(training_record(step=6, seconds=3.5))
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
        assert [record.step for record in read_records_so_far(tmp_path)] == [2, 4]
        with pytest.warns(TornLogWarning, match=r"metrics\.jsonl: line 3, the last, was cut; it is left out"):
            assert _records(tmp_path) == [2, 4]
        with pytest.warns(TornLogWarning):
            metrics = TrainingLog(WorkingFolder.on_disk(tmp_path), 99)
        metrics.append(training_record(step=6, seconds=3.0))
        assert _records(tmp_path) == [2, 4, 6]
        assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\0" * 40 + b"\n", b'{"step": 6, "sec\n', b"\xff\xfe\n"])
def test_a_last_line_of_what_was_never_written_is_left_out_with_a_word(tmp_path: Path, tail: bytes) -> None:
    _fill(tmp_path, 2, 4)
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(tail)
    with pytest.warns(TornLogWarning, match="line 3, the last, "):
        assert _records(tmp_path) == [2, 4]


@pytest.mark.parametrize(
    ("was", "becomes"), [('"loss": ', '"loss": "a"'), ('"step": ', '"step": 1.5'), ("{", "\udcff")]
)
def test_damage_before_the_last_line_is_named_by_its_line(tmp_path: Path, was: str, becomes: str) -> None:
    _fill(tmp_path, 2, 4, 6)
    path = tmp_path / "metrics.jsonl"
    first, second, *rest = path.read_text().split("\n")
    start = second.index(was)
    end = second.index(",", start) if was != "{" else 1
    text = "\n".join([first, second[:start] + becomes + second[end:], *rest])
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CryoFormerError, match=r"metrics\.jsonl, line 2: .*remove the line"):
        read_training_log(tmp_path)


def test_a_broken_record_is_named_by_its_line(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step":\n' + whole)
    with pytest.raises(CryoFormerError, match=r"metrics\.jsonl, line 2: not a JSON record .*remove the line"):
        read_training_log(tmp_path)


def test_a_record_of_another_version_is_named_by_its_line(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4}\n')
    with pytest.raises(CryoFormerError, match=r"metrics\.jsonl, line 2: not a training record of this version"):
        read_training_log(tmp_path)


@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_written_for_people_is_known_again_in_a_log(coarse: bool) -> None:
    assert is_described(describe(replace(RECORD, coarse=coarse)))
    assert not is_described("first latents  3/7")
    assert not is_described("store          particles.zarr: box 32 at 5 A")


def test_the_line_for_people_says_where_training_is_and_when_it_ends() -> None:
    assert describe(RECORD) == (
        "pose pretraining 3/20  step 1840/5120 36%  loss 0.9871  52431 points  412 particles/s  data-wait 3%  "
        "21.4 GiB  eta 2h14m"
    )


def test_the_line_for_people_says_what_the_last_refresh_found_outside_the_mask() -> None:
    assert "  52431 points, 7% of residual outside  " in describe(replace(RECORD, residual_outside=0.071))


def test_the_line_for_people_says_what_images_told_the_last_search() -> None:
    assert "by up to 12%  412 p" in describe(replace(RECORD, noise_departure=0.12))
    assert "noise" not in describe(replace(RECORD, noise_departure=0.08))
    assert "  52431 points  images say 1.9 nats  412 p" in describe(replace(RECORD, latent_information_nats=1.94))


def test_coarse_passes_promise_no_end_since_the_others_take_longer() -> None:
    line = describe(replace(RECORD, coarse=True))
    assert line.startswith("pose pretraining 3/20 coarse  step 1840/5120")
    assert line.endswith("eta over 2h14m")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3599.7, "1h00m"), (8040, "2h14m"), (4e5, "111h06m")],
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_last_search_is_found_among_reports_that_tell_of_none():
    first, last = (training_record(latent_information_nats=nats, junk_share=0.1) for nats in (1.0, 2.0))
    assert find_search([first, training_record(), last, training_record()]) == SearchFindings(2.0, junk_share=0.1)
    assert find_search([training_record()]) is None
