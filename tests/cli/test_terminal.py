import pytest
from support.training_records import training_record

from cryoformer_dist.cli.terminal import make_display
from cryoformer_dist.runs.training_log import describe


def test_a_driver_speaks_to_the_terminal_through_one_display(capsys: pytest.CaptureFixture[str]) -> None:
    display, record = make_display(), training_record()
    display.say("[as it is]")
    with display.progress("volumes") as progress:
        progress(1, 1)
    with display.stages() as stages:
        stages("consensus map", 2, 2)
    display.record(record)
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said[:3]] == ["[as it is]", "volumes", "consensus map"]
    assert said[3:] == [describe(record)]
