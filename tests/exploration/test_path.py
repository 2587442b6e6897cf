from pathlib import Path

import pytest

from cryoformer_dist.data.selection import RunState
from cryoformer_dist.errors import CryoFormerError, ExplorationError
from cryoformer_dist.exploration.path import LatentPath, read_path, write_path

PATH = LatentPath(
    run=RunState("runs/demo", 12),
    kind="barrier",
    start="particle 1",
    end="cluster 0",
    latents=((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)),
    particles=(4, 0, 7),
    reach=0.5,
    energy=(0.0, 1.5, 0.25),
)


def test_a_path_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = read_path(write_path(tmp_path / "new" / "p.json", PATH))
    assert read == PATH
    assert read.points.shape == (3, 2)


def test_the_barrier_is_counted_from_the_rarer_end() -> None:
    assert PATH.barrier == 1.25


def test_what_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExplorationError, match="no such path"):
        read_path(tmp_path / "absent.json")
    (tmp_path / "p.json").write_text('{"schema_version": 1, "kind": "curved"}')
    with pytest.raises(CryoFormerError, match="make the path again"):
        read_path(tmp_path / "p.json")
