"""The training log of a run: one record per report, for programs and as a line for people."""

import errno
import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cryoformer_dist.errors import CryoFormerError, TornLogWarning
from cryoformer_dist.runs.layout import TRAINING_LOG
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.records import from_json
from cryoformer_dist.storage.working_folder import WorkingFolder

# An object store takes the whole file each time.
_SEND_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SearchFindings:
    """What a search of all particles has found of all together; ``None`` where it was not looked for.

    Attributes
    ----------
    latent_information_nats
        What an image says about its conformation, mean over the particles.
    pose_error_deg, pose_error_angstrom
        Standard deviation of the given poses' errors, about and along each axis.
    amplitude_spread
        Standard deviation of the amplitudes about 1.
    junk_share
        Of the images, how many probably show no particle.
    """

    latent_information_nats: float | None = None
    pose_error_deg: float | None = None
    pose_error_angstrom: float | None = None
    amplitude_spread: float | None = None
    junk_share: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What training tells at each report.

    Attributes
    ----------
    stage
        Kind of the stage under way.
    epoch, epochs
        Epoch of the stage under way, from 0, and epochs of the stage.
    coarse
        Whether the last step compared low frequencies only.
    step, steps
        Steps taken in all stages so far, and steps at the end of this stage.
    loss, prior
        Means over the particles since the last report.
    learning_rate_factor
        Share of the configured learning rates in force.
    active_points
        Points at which there may be density.
    residual_outside
        Share of the residual's energy outside the mask at its last refresh; ``None`` before one.
    latent_information_nats, pose_error_deg, pose_error_angstrom, amplitude_spread, junk_share
        What a search since the last report found; see `SearchFindings`.
    noise_departure
        How far the residual's power is from that of the noise that was assumed, relatively, in the frequency shell and
        optics group where it is farthest, if a refresh of the mask looked since the last report.
    memory_gib
        Peak of this rank, on its GPU if it has one.
    workers
        Ranks at work.
    slowness
        What this rank does of a step by itself takes so many times the median of all ranks.
    checkpoint_seconds
        What a checkpoint since the last report took.
    particles_per_second
        Over all ranks, since the last report.
    data_wait_share
        Share of that time spent waiting for images.
    seconds_per_step
        Mean over the steps of this kind.
    seconds
        Of training, over all attempts.
    """

    stage: str
    epoch: int
    epochs: int
    coarse: bool
    step: int
    steps: int
    loss: float
    prior: float
    learning_rate_factor: float
    active_points: int
    residual_outside: float | None
    latent_information_nats: float | None
    pose_error_deg: float | None
    pose_error_angstrom: float | None
    amplitude_spread: float | None
    junk_share: float | None
    noise_departure: float | None
    memory_gib: float
    workers: int
    slowness: float
    checkpoint_seconds: float | None
    particles_per_second: float
    data_wait_share: float
    seconds_per_step: float
    seconds: float


MUCH_DEPARTURE = 0.1
"""Beyond it, the noise is not what the images were whitened by, or the maps do not explain them yet."""
_KEYS = {field.name for field in fields(TrainingRecord)}


class TrainingLog:
    """``metrics.jsonl`` of a run, one JSON object per line.

    Parameters
    ----------
    run
        Run directory.
    step
        Where training goes on: records after it belong to work that was lost and are dropped.
    """

    def __init__(self, run: WorkingFolder, step: int) -> None:
        self._run, self._path = run, run.folder / TRAINING_LOG
        kept = [record for record in read_training_log(run.folder) if record.step <= step]
        text = _to_lines(kept)
        write_whole(self._path, text)
        self._end = len(text.encode())
        self._sent = -math.inf
        self.seconds_before = kept[-1].seconds if kept else 0.0

    def append(self, record: TrainingRecord) -> None:
        """Add a record and hand it to the operating system; can be repeated after it has failed."""
        line = _to_lines([record]).encode()
        # Not made anew when absent, and written at the end of the last record: a failure may have left half a line.
        with self._path.open("r+b", buffering=0) as stream:
            stream.seek(self._end)
            stream.truncate()
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if time.monotonic() - self._sent > _SEND_SECONDS:
            self.send()
        self._end += len(line)

    def send(self) -> None:
        """Send the records home, if that is not here."""
        self._run.send(TRAINING_LOG)
        self._sent = time.monotonic()


def read_training_log(run: Path) -> list[TrainingRecord]:
    """All records of a run.

    Warns
    -----
    TornLogWarning
        Of a last line that a crash has cut; it is left out.

    Raises
    ------
    CryoFormerError
        If an earlier record cannot be read, by its line number.
    """
    records, torn = _read_log(run / TRAINING_LOG)
    if torn is not None:
        warnings.warn(f"{run / TRAINING_LOG}: {torn}; it is left out", TornLogWarning, stacklevel=2)
    return records


def read_records_so_far(run: Path) -> list[TrainingRecord]:
    """As `read_training_log`, of a log that is being written: that its last line is not whole yet is no matter."""
    return _read_log(run / TRAINING_LOG)[0]


def _read_log(path: Path) -> tuple[list[TrainingRecord], str | None]:
    """Records, and what is wrong with the last line."""
    if not path.is_file():
        return [], None
    *lines, tail = path.read_bytes().split(b"\n")
    records: list[TrainingRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_read_record(line))
        except _NotJSONError as error:
            # A crash may leave a whole line of what was never written.
            if number == len(lines) and not tail:
                return records, f"line {number}, the last, is {error}"
            raise CryoFormerError(f"{path}, line {number}: {error}; remove the line") from error
        except ValueError as error:
            raise CryoFormerError(f"{path}, line {number}: {error}; remove the line") from error
    return records, f"line {len(lines) + 1}, the last, was cut" if tail else None


class _NotJSONError(Exception):
    """A line that no program of ours writes to its end."""


def _read_record(line: bytes) -> TrainingRecord:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _NotJSONError(f"not a JSON record ({error})") from error
    if not isinstance(values, dict) or set(values) != _KEYS:
        raise ValueError("not a training record of this version")
    try:
        record: TrainingRecord = from_json(TrainingRecord, values)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return record


def find_search(records: Sequence[TrainingRecord]) -> SearchFindings | None:
    """What the last search of all particles found; ``None`` before one."""
    told = [record for record in records if record.latent_information_nats is not None]
    return (
        SearchFindings(**{part.name: getattr(told[-1], part.name) for part in fields(SearchFindings)}) if told else None
    )


def write_training_log(run: Path, records: Iterable[TrainingRecord]) -> None:
    """Have a run's log hold just these records."""
    write_whole(run / TRAINING_LOG, _to_lines(records))


def _to_lines(records: Iterable[TrainingRecord]) -> str:
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def describe(record: TrainingRecord) -> str:
    """One line per report for people.

    Examples
    --------
    ``reconstruction 3/20  step 1840/5120 36%  loss 0.9871  52431 points, 2% of residual outside  images say 1.9 nats
    poses off by 1.5 deg, 0.8 A  amplitudes 1 +- 0.2  4% junk  412 particles/s  data-wait 3%  21.4 GiB  eta 2h14m``;
    what a search of all particles found is told once, after it.
    """
    share = record.step / record.steps
    left = format_duration((record.steps - record.step) * record.seconds_per_step)
    # How long a step at the whole box takes is not known before one has been taken.
    coarse, eta = (" coarse", f"over {left}") if record.coarse else ("", left)
    return (
        f"{record.stage.replace('_', ' ')} {record.epoch + 1}/{record.epochs}{coarse}  "
        f"step {record.step}/{record.steps} {share:.0%}  loss {record.loss:.4f}  "
        f"{_describe_mask(record)}  {_describe_search(record)}{_describe_noise(record)}"
        f"{record.particles_per_second:.0f} particles/s  data-wait {record.data_wait_share:.0%}  "
        f"{record.memory_gib:.1f} GiB  eta {eta}"
    )


# As `describe` begins a line.
_LINE = re.compile(r"[a-z ]+ \d+/\d+(?: coarse)?  step \d+/\d+ ")


def is_described(line: str) -> bool:
    """Whether a line of a log is one that `describe` wrote."""
    return bool(_LINE.match(line))


def _describe_mask(record: TrainingRecord) -> str:
    outside = record.residual_outside
    return f"{record.active_points} points" + ("" if outside is None else f", {outside:.0%} of residual outside")


def _describe_search(record: TrainingRecord) -> str:
    nats, turn, amplitude, junk = (
        record.latent_information_nats, record.pose_error_deg, record.amplitude_spread, record.junk_share,
    )  # fmt: skip
    words = [] if nats is None else [f"images say {nats:.2g} nats"]
    if turn is not None:
        words.append(f"poses off by {turn:.2g} deg, {record.pose_error_angstrom:.2g} A")
    if amplitude is not None:
        words.append(f"amplitudes 1 +- {amplitude:.2g}")
    if junk is not None:
        words.append(f"{junk:.0%} junk")
    return "".join(f"{word}  " for word in words)


def _describe_noise(record: TrainingRecord) -> str:
    departure = record.noise_departure
    if departure is None or departure < MUCH_DEPARTURE:
        return ""
    return f"residual departs from the noise spectrum by up to {departure:.0%}  "


def format_duration(seconds: float) -> str:
    """Seconds as 45s, 3m05s or 2h14m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
