import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_runs import Listener, Stop, tiny_config, train
from support.training_records import training_record

from cryoformer_dist.config.trials import make_trial
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log
from cryoformer_dist.runs.trial import (
    TrialOutcome,
    append_epoch,
    epochs_done,
    forget_outcome,
    held,
    read_epochs,
    read_outcome,
    read_trial,
    take_over,
    trial_folders,
    write_outcome,
    write_trial,
)


def _record(step: int, steps: int, epochs: int, loss: float, stage: str = "reconstruction") -> TrainingRecord:
    return training_record(stage=stage, step=step, steps=steps, epochs=epochs, loss=loss)


def test_a_trial_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    trial = make_trial(tiny_config(tmp_path), {"model.decoder.queries": 4}, 5)
    write_trial(tmp_path / "trials" / trial.name, trial)
    (folder,) = trial_folders(tmp_path)
    assert read_trial(folder) == trial


def test_a_trial_has_not_ended_until_its_outcome_is_there(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, TrialOutcome("failed", "no memory"))
    assert read_outcome(tmp_path) == TrialOutcome("failed", "no memory")
    forget_outcome(tmp_path)
    assert read_outcome(tmp_path) is None


def test_epochs_are_whole_passes_of_the_reconstruction_whatever_the_reports_fall_on() -> None:
    # Ten steps of another stage; then three epochs of ten, reported every four steps and at the end.
    records = [_record(10, 10, 5, 9.0, "pose_pretraining")]
    records += [_record(10 + step, 40, 3, float(step)) for step in (4, 8, 12, 16, 20, 24, 28, 30)]
    epochs = epochs_done(records)
    assert [(epoch.number, epoch.of, epoch.step) for epoch in epochs] == [(1, 3, 22), (2, 3, 30), (3, 3, 40)]
    assert [epoch.loss for epoch in epochs] == [(4 + 8) / 2, (12 + 16 + 20) / 3, (24 + 28 + 30) / 3]


def test_several_epochs_between_two_reports_each_count() -> None:
    assert [epoch.number for epoch in epochs_done([_record(9, 12, 4, 1.0)])] == [1, 2, 3]


def test_an_epoch_gone_through_again_stands_there_once_and_a_line_cut_by_a_crash_not_at_all(tmp_path: Path) -> None:
    for epoch, loss in ((1, 3.0), (2, 2.0), (2, 1.0)):
        append_epoch(tmp_path, {"epoch": epoch, "loss": loss})
    with (tmp_path / "epochs.jsonl").open("a") as stream:
        stream.write('{"epoch": 3, "lo')
    assert [(line["epoch"], line["loss"]) for line in read_epochs(tmp_path)] == [(1, 3.0), (2, 1.0)]


def test_a_lock_keeps_others_out_until_its_holder_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cryoformer_dist.runs.trial import held\n"
        "with held(Path(sys.argv[1])):\n"
        "    print('mine', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        attempt = subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False)
        assert attempt.returncode == 1
        holder.kill()
    with held(lock):
        pass


def test_a_takeover_goes_on_from_the_other_s_checkpoint_under_the_new_values(tiny_store: Path, tmp_path: Path) -> None:
    donor, run = tmp_path / "donor", tmp_path / "run"
    train(tiny_config(tiny_store), donor)
    with pytest.raises(Stop):
        train(tiny_config(tiny_store, {"training.learning_rates.network": 1e-5}), run, Listener(stop_at=6))
    take_over(run, donor, {"training.learning_rates.network": 3e-3})
    newest = checkpoints(donor)[-1]
    assert [checkpoint.position for checkpoint in checkpoints(run)] == [newest.position]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [newest.folder.name]
    assert read_training_log(run) == [
        record for record in read_training_log(donor) if record.step <= newest.position.step
    ]
    assert load_run(run)[0].training.learning_rates.network == 3e-3
    assert json.loads((run / "takeovers.jsonl").read_text())["from"] == "donor"


def test_there_is_nothing_to_take_over_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to take over"):
        take_over(tmp_path / "run", tmp_path / "donor", {})
