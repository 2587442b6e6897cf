"""How far the stages before training are: a small file that the leader keeps up to date for who follows the run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.runs.layout import STAGE_PROGRESS
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.working_folder import WorkingFolder

_SECONDS_BETWEEN_WRITES = 0.5


@dataclass(frozen=True, slots=True)
class StageProgress:
    """One stage: its name, what of it is done, and all there is to do."""

    stage: str
    done: int
    total: int


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

    def tell(self, stage: str, done: int, total: int) -> None:
        """Take note of how far a stage is; written now and then, and when the stage is done."""
        self._stages[stage] = StageProgress(stage, done, total)
        if done < total and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES:
            return
        rows = [[each.stage, each.done, each.total] for each in self._stages.values()]
        write_whole(self._working.folder / STAGE_PROGRESS, json.dumps(rows))
        self._working.send(STAGE_PROGRESS)
        self._written = time.monotonic()


def read_stage_progress(run: Path) -> list[StageProgress]:
    """How far each stage is, in the order in which they began; none before the first."""
    path = run / STAGE_PROGRESS
    return [StageProgress(*row) for row in json.loads(path.read_text())] if path.is_file() else []
