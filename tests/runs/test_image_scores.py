from pathlib import Path

import pytest

from cryoformer_dist.runs.image_scores import JunkFound, OtherCause, OtherCauses, StateErrors
from cryoformer_dist.storage.records import read_record, write_record


def test_errors_are_nothing_at_best_whatever_states_are():
    assert StateErrors(angle_error_deg=12.0).error == 12
    assert StateErrors(mean_absolute_error=0.1).error == pytest.approx(0.1)
    assert StateErrors(class_accuracy=0.9).error == pytest.approx(0.1)


@pytest.mark.parametrize(
    "record",
    [
        JunkFound(0.1, 0.2, {"empty": 1.0}),
        OtherCauses(10, (OtherCause("optics group", 0.1, 0.0, 1, 0.2, None),)),
        OtherCauses(10, (), 0.3),
    ],
)
def test_records_are_read_as_they_were_written(record: JunkFound | OtherCauses, tmp_path: Path):
    path = write_record(tmp_path / "record.json", record, 1)
    assert read_record(path, type(record), 1, "write it again") == record
