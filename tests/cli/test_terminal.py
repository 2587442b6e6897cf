import pytest
from support.training_records import training_record

from cryoformer_dist.cli import terminal
from cryoformer_dist.cli.terminal import make_display
from cryoformer_dist.runs.training_log import describe


def test_a_stage_of_a_log_says_how_long_it_still_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with terminal.staged_progress() as update:
        update("maps", 0, 40)
        for now, done in ((30.0, 10), (35.0, 12), (120.0, 40)):  # noqa: B007
            update("maps", done, 40)
    assert capsys.readouterr().out.splitlines() == ["maps  10/40  eta 1m30s", "maps  40/40  120.0 s"]


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


def test_words_of_ours_are_explained_once_where_they_first_come(capsys: pytest.CaptureFixture[str]) -> None:
    display, record = make_display(), training_record(latent_information_nats=1.9, residual_outside=0.02)
    for _ in range(2):
        with display.stages() as stages:
            stages("first latents", 1, 1)
        display.record(record)
    said = capsys.readouterr().out.splitlines()
    explained = [line.split(":")[0].strip() for line in said if line.startswith("  (")]
    assert explained == ["(first latents", "(residual outside", "(images say"]
    assert said[0].startswith("  (first latents: ")
    assert said.index(describe(record)) < next(i for i, line in enumerate(said) if line.startswith("  (images say"))
