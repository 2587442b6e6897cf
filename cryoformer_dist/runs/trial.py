"""What a trial of a sweep keeps beside the files of a run: what it is, how its epochs went, how it ended."""

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cryoformer_dist.config.loading import dump_config, parse_config, set_value
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.trials import Trial
from cryoformer_dist.errors import CheckpointError, CryoFormerError
from cryoformer_dist.runs.checkpoint import adopt_checkpoint
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.layout import CONFIG, SWEEP_TRIALS, TRIAL, TRIAL_EPOCHS, TRIAL_OUTCOME, TRIAL_TAKEOVERS
from cryoformer_dist.runs.training_log import TrainingRecord, read_training_log, write_training_log
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.records import from_json


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended.

    Attributes
    ----------
    state
        ``finished``: trained and judged; ``stopped``: ended early by the scheduler; ``failed``: ``error`` says why.
    """

    state: Literal["finished", "stopped", "failed"]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """One whole pass of the reconstruction stage.

    Attributes
    ----------
    number
        From 1.
    of
        Passes in all.
    step
        At its end.
    loss
        Mean of its reports.
    """

    number: int
    of: int
    step: int
    loss: float


def folder_of_trial(sweep: Path, name: str) -> Path:
    """Where a sweep keeps a trial."""
    return sweep / SWEEP_TRIALS / name


def write_trial(folder: Path, trial: Trial) -> None:
    """Make a trial's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": trial.name,
        "variant": trial.variant,
        "seed": trial.seed,
        "parameters": dict(trial.parameters),
        "config": trial.config.model_dump(mode="json"),
    }
    write_whole(folder / TRIAL, json.dumps(content, indent=1))


def read_trial(folder: Path) -> Trial:
    """The trial of a folder that `trial_folders` found."""
    with _damage_named(folder / TRIAL):
        content = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
        config = parse_config(content.pop("config"), RunConfig, str(folder / TRIAL))
        return Trial(**content, config=config)


def trial_folders(sweep: Path) -> list[Path]:
    """Folders of a sweep's trials, by name."""
    return sorted(path.parent for path in (sweep / SWEEP_TRIALS).glob(f"*/{TRIAL}"))


def write_outcome(folder: Path, outcome: TrialOutcome) -> None:
    """Say that a trial has ended, and how."""
    write_whole(folder / TRIAL_OUTCOME, json.dumps(asdict(outcome), indent=1))


def read_outcome(folder: Path) -> TrialOutcome | None:
    """How a trial ended; None while it has not."""
    path = folder / TRIAL_OUTCOME
    if not path.is_file():
        return None
    with _damage_named(path):
        outcome: TrialOutcome = from_json(TrialOutcome, json.loads(path.read_text(encoding="utf-8")))
        return outcome


def forget_outcome(folder: Path) -> None:
    """Have a trial go on that had ended."""
    (folder / TRIAL_OUTCOME).unlink(missing_ok=True)


def epochs_done(records: list[TrainingRecord]) -> list[EpochSummary]:
    """Whole passes of the reconstruction stage that a run's records tell of."""
    losses: dict[int, list[float]] = {}
    found: list[EpochSummary] = []
    before = done = 0
    for record in records:
        if record.stage != "reconstruction":
            before = record.steps
            continue
        passed = (record.step - before) / (record.steps - before) * record.epochs
        # A hair's breadth, for what is whole up to rounding.
        losses.setdefault(math.ceil(passed - 1e-9), []).append(record.loss)
        while done < math.floor(passed + 1e-9):
            done += 1
            seen = losses.get(done, [record.loss])
            found.append(EpochSummary(done, record.epochs, record.step, sum(seen) / len(seen)))
    return found


def append_epoch(folder: Path, line: Mapping[str, float]) -> None:
    """Keep what an epoch came to, and what it cost."""
    with (folder / TRIAL_EPOCHS).open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """What the epochs of a trial came to, in order; an epoch that was gone through again stands there once."""
    path = folder / TRIAL_EPOCHS
    if not path.is_file():
        return []
    with _damage_named(path):
        whole = path.read_bytes().split(b"\n")[:-1]
        lines = [json.loads(line) for line in whole]
        return sorted({line["epoch"]: line for line in lines}.values(), key=lambda line: int(line["epoch"]))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CryoFormerError(
            f"{path}: damaged, or of another program ({error}); remove its trial's folder, and --resume the sweep"
        ) from error


def take_over(run: Path, donor: Path, values: Mapping[str, Any]) -> None:
    """Go on with another trial's newest weights and tables, under other values (population based training).

    Raises
    ------
    CheckpointError
        If the other has no checkpoint.
    """
    newest = latest_checkpoint(donor)
    if newest is None:
        raise CheckpointError(f"{donor}: no checkpoint to take over; raise scheduler.grace_epochs")
    adopt_checkpoint(run, newest)
    kept = [record for record in read_training_log(donor) if record.step <= newest.position.step]
    write_training_log(run, kept)
    changed = load_run(run)[0].model_dump(mode="json")
    for key, value in values.items():
        set_value(changed, key, value)
    write_whole(run / CONFIG, dump_config(parse_config(changed, RunConfig, str(run))))
    with (run / TRIAL_TAKEOVERS).open("a") as stream:
        stream.write(json.dumps({"from": donor.name, "step": newest.position.step, "values": dict(values)}) + "\n")


def epochs_of_run(run: Path) -> list[EpochSummary]:
    """`epochs_done` of a run directory."""
    return epochs_done(read_training_log(run))


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Keep other processes out for a while; a process that dies lets go."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
