import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_runs import Listener, Stop, tiny_config, train

from cryoformer_dist.errors import CheckpointError, SelectionError
from cryoformer_dist.runs.directory import open_run_directory
from cryoformer_dist.runs.layout import CHECKPOINTS, SELECTIONS
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.files import read_progress
from cryoformer_dist.viewer.requests import Chosen, DrawnLasso, Gate
from cryoformer_dist.viewer.snapshot import Snapshot, choose, find_places, take_snapshot

if TYPE_CHECKING:
    from upath import UPath

AXES = ("pc1", "pc2")


def square(snapshot: Snapshot, how: str, low: float, high: float) -> DrawnLasso:
    """Round the particles between two quantiles of pc1."""
    left, right = np.quantile(snapshot.columns.values("pc1"), [low, high]).tolist()
    return DrawnLasso(how, AXES, ((left, -1e6), (right, -1e6), (right, 1e6), (left, 1e6)))  # type: ignore[arg-type]


def places(snapshot: Snapshot, *lassos: DrawnLasso, gates: tuple[Gate, ...] = ()) -> set[int]:
    return set(find_places(snapshot.columns, choose(snapshot.columns, Chosen(lassos, gates))).tolist())


def test_lassos_are_taken_together_as_sets(snapshot: Snapshot) -> None:
    one, other = square(snapshot, "union", 0.1, 0.6), square(snapshot, "union", 0.4, 0.9)
    first, second = places(snapshot, one), places(snapshot, other)
    pc1 = snapshot.columns.values("pc1")
    low, high = np.quantile(pc1, [0.1, 0.6])
    assert first == set(np.flatnonzero((pc1 > low) & (pc1 < high)).tolist())
    assert places(snapshot, one, other) == first | second
    assert places(snapshot, one, replace(other, how="intersection")) == first & second
    assert places(snapshot, one, replace(other, how="difference")) == first - second
    assert places(snapshot, replace(one, how="difference")) == set(range(len(snapshot.columns))) - first
    assert places(snapshot) == set(range(len(snapshot.columns)))


def test_gates_pass_what_lies_between_them(snapshot: Snapshot) -> None:
    defocus = snapshot.columns.values("defocus_angstrom")
    low, high = np.quantile(defocus, [0.2, 0.7]).tolist()
    inside = set(np.flatnonzero((defocus >= low) & (defocus <= high)).tolist())
    assert 0 < len(inside) < len(defocus)
    assert places(snapshot, gates=(Gate("defocus_angstrom", low, high),)) == inside
    below = places(snapshot, gates=(Gate("defocus_angstrom", None, high),))
    above = places(snapshot, gates=(Gate("defocus_angstrom", low, None),))
    assert below & above == inside
    assert places(snapshot, gates=(Gate("defocus_angstrom", None, None),)) == below | above
    lasso = square(snapshot, "union", 0.1, 0.6)
    assert places(snapshot, lasso, gates=(Gate("defocus_angstrom", low, high),)) == inside & places(snapshot, lasso)


def test_a_column_that_is_none_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(SelectionError, match="no column jnk"):
        places(snapshot, gates=(Gate("jnk", 0.0, 1.0),))
    with pytest.raises(SelectionError, match=r"is no condition|no column"):
        places(snapshot, gates=(Gate("__import__('os')", 0.0, 1.0),))


def test_what_training_has_reached_is_shown_before_results_are_made(tiny_store: Path, tmp_path: Path) -> None:
    working = WorkingFolder.on_disk(tmp_path / "run")
    with pytest.raises(Stop):
        train(tiny_config(tiny_store), working.folder, Listener(stop_at=6))
    snapshot = take_snapshot(working)
    assert snapshot.step == 4
    assert {"pc1", "z1", "defocus_angstrom"} <= set(snapshot.columns.columns)
    assert "cluster" not in snapshot.columns.columns
    np.testing.assert_array_equal(snapshot.latents, snapshot.trained.latents)
    for checkpoint in (working.folder / CHECKPOINTS).iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        take_snapshot(working)


@pytest.mark.slow
def test_a_run_in_an_object_store_is_shown_and_its_selections_are_kept_there(
    run: Path, object_store: Callable[[], "UPath"]
) -> None:
    home = object_store() / "run"
    for path in run.rglob("*"):
        if path.is_file():
            (home / path.relative_to(run).as_posix()).write_bytes(path.read_bytes())
    with open_run_directory(home) as working:
        snapshot = take_snapshot(working)
        desk = Desk(working, snapshot, take_snapshot)
        asked = {"name": "all", "chosen": {"lassos": [], "gates": []}, "files": [".star"], "refined_poses": False}
        desk.save(json.dumps(asked))
        assert json.loads(desk.show_newest().body)["step"] == snapshot.step  # type: ignore[arg-type]
        assert read_progress(working).finished
    source = Path(snapshot.columns.source.path)
    assert (home / SELECTIONS / "all.star").read_bytes() == source.read_bytes()
    assert (home / SELECTIONS / "all.json").exists()
