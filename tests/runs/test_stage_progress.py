from pathlib import Path

import pytest

from cryoformer_dist.runs import stage_progress
from cryoformer_dist.runs.stage_progress import StageClock, StageProgress, StageProgressFile, read_stage_progress
from cryoformer_dist.storage.working_folder import WorkingFolder


def test_time_left_is_that_of_the_mean_pace_since_the_stage_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stage_progress.time, "monotonic", lambda: now)
    clock = StageClock()
    told = []
    for now, stage, done in (  # noqa: B007
        *((110.0, "poses", 10), (120.0, "poses", 40)),
        *((140.0, "maps", 1), (150.0, "maps", 3)),
        # Once more, from its beginning.
        (155.0, "maps", 1),
    ):
        told.append(clock.look(stage, done, 40))
    assert [each.seconds for each in told] == [10, 20, 20, 30, 5]
    assert [each.seconds_left for each in told] == [30, 0, 780, 370, 195]
    assert [each.share_done for each in told[:2]] == [0.25, 1]
    assert StageProgress("poses", 0, 40, 3.0).seconds_left is None
    assert StageProgress("poses", 0, 0, 3.0).share_done == 1


def test_what_was_written_is_read_and_what_cannot_be_understood_is_nothing(tmp_path: Path) -> None:
    assert read_stage_progress(tmp_path) == []
    file = StageProgressFile(WorkingFolder.on_disk(tmp_path))
    stages = [StageProgress("poses", 4, 4, 2.5), StageProgress("maps", 3, 4, 6.0)]
    for each in stages:
        file.tell(each)
    # Not written as often as it is told of.
    assert read_stage_progress(tmp_path) == stages[:1]
    stages[1] = StageProgress("maps", 4, 4, 8.0)
    file.tell(stages[1])
    assert read_stage_progress(tmp_path) == stages
    for damaged in ("", "{", "null", '[["poses", 1]]', '[["poses", "many", 2, 3]]', '{"poses": 1}'):
        (tmp_path / "stage_progress.json").write_text(damaged)
        assert read_stage_progress(tmp_path) == []
