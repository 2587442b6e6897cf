"""How far the stages before and after training are: a small file that the leader keeps up to date for who follows."""

import json
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from cryoformer_dist.runs.layout import STAGE_PROGRESS
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.working_folder import WorkingFolder

_SECONDS_BETWEEN_WRITES = 0.5


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage.

    Attributes
    ----------
    stage
        Its name.
    done, total
        What of it is done, and all there is to do.
    seconds
        Since it began.
    """

    stage: str
    done: int
    total: int
    seconds: float

    @property
    def share_done(self) -> float:
        """Of all there is to do."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """If it goes on at its mean pace; unknown before anything is done."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


class StageClock:
    """Takes the time of stages, one after the other; one that is less far than it was has begun anew."""

    def __init__(self) -> None:
        self._began = self._looked = time.monotonic()
        self._stage, self._done = "", 0

    def look(self, stage: str, done: int, total: int) -> StageProgress:
        """Take note of how far a stage is."""
        if stage != self._stage or done < self._done:
            # What is told of first was under way since the last word of the stage before.
            self._began = self._looked
        self._stage, self._done, self._looked = stage, done, time.monotonic()
        return StageProgress(stage, done, total, self._looked - self._began)


class StageProgressFile:
    """Written by the leader, from stage to stage.

    Parameters
    ----------
    working
        Run directory.
    """

    def __init__(self, working: WorkingFolder) -> None:
        self._working, self._written = working, 0.0
        self._stages: dict[str, StageProgress] = {}

    def tell(self, progress: StageProgress) -> None:
        """Take note of how far a stage is; written now and then, and when the stage is done."""
        self._stages[progress.stage] = progress
        if progress.done < progress.total and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES:
            return
        rows = [astuple(each) for each in self._stages.values()]
        write_whole(self._working.folder / STAGE_PROGRESS, json.dumps(rows))
        self._working.send(STAGE_PROGRESS)
        self._written = time.monotonic()


def read_stage_progress(run: Path) -> list[StageProgress]:
    """How far each stage is, in the order in which they began; none before the first.

    None either where the file cannot be understood: nothing depends on it, and the next word of a stage replaces it.
    """
    try:
        rows = json.loads((run / STAGE_PROGRESS).read_text())
        return [StageProgress(str(stage), int(done), int(total), float(took)) for stage, done, total, took in rows]
    except (FileNotFoundError, ValueError, TypeError):
        return []
