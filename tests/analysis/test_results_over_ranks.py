"""Maps, weights and what encoders see: the same by several ranks as by one, and made once for a checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks
from support.tiny_runs import tiny_config, train
from upath import UPath

from cryoformer_dist.analysis import results, trained
from cryoformer_dist.analysis.flexibility_files import read_flexibility
from cryoformer_dist.analysis.results import evaluate_run, make_results, reconstruct_alone, reconstruct_once
from cryoformer_dist.analysis.trained import load_trained
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import StorageError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.progress import StagedProgress, silent
from cryoformer_dist.ranks import rank_and_world
from cryoformer_dist.runs.directory import load_run
from cryoformer_dist.runs.results import read_latent_table, read_made_results
from cryoformer_dist.runs.scores import read_scores
from cryoformer_dist.storage.working_folder import WorkingFolder

CPU = torch.device("cpu")
REFINED = {"model.pose.form": "table", "model.pose.start": "given", "training.epochs": 1}
ENCODED = {"model.pose.form": "encoder", "model.latent.form": "encoder", "training.epochs": 1}
MAPS = ("kmeans_000", "kmeans_001", "pc1_000", "pc1_001", "mean", "flexibility")


def _train(tiny_store: Path, folder: Path, changes: dict[str, Any]) -> Path:
    train(tiny_config(tiny_store, changes), folder)
    return folder


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    return _train(tiny_store, tmp_path_factory.mktemp("refined") / "run", REFINED)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    return _train(tiny_store, tmp_path_factory.mktemp("encoded") / "run", ENCODED)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path, str], Path]:
    """The same run in a folder of its own."""
    return lambda run, name: Path(shutil.copytree(run, tmp_path / name / "run"))


def _make(run: Path, progress: StagedProgress = silent) -> None:
    reconstruct_once(WorkingFolder.on_disk(run), load_run(run)[0], CPU, progress)


def _make_on_rank(run: str) -> dict[str, torch.Tensor]:
    stages: list[tuple[str, int, int]] = []
    _make(Path(run), lambda *told: stages.append(told))
    done = {stage: of for stage, done, of in stages if done == of}
    # The others' tables and reports are the leader's business, but all know the same.
    found = load_trained(Path(run))
    return {
        "weight": torch.from_numpy(found.shell_weight),
        "latents": torch.from_numpy(found.latents),
        "rotation": torch.from_numpy(found.rotation),
        "maps": torch.tensor(done.get("maps", 0)),
        "images": torch.tensor(done.get("encoded particles", done.get("consensus at refined poses", 0))),
        "rank": torch.tensor(rank_and_world()[0]),
    }


def _assert_same_results(run: Path, other: Path, tolerance: float) -> None:
    for name in MAPS:
        expected, found = (read_volume(each / "volumes" / f"{name}.mrc").voxels for each in (run, other))
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    names = [{path.relative_to(each).as_posix() for path in each.rglob("*")} for each in (run, other)]
    assert names[0] == names[1]
    tables = [read_latent_table(each) for each in (run, other)]
    for key, expected in tables[0].items():
        np.testing.assert_allclose(tables[1][key], expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    first, second = (read_flexibility(each) for each in (run, other))
    assert first is not None
    assert second is not None
    assert second.states == first.states == 40
    assert second.mean_level == pytest.approx(first.mean_level, rel=1e-4)
    assert read_made_results(run) == read_made_results(other)


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_make_the_results_of_one_each_its_share(
    refined: Path, copied: Callable[[Path, str], Path], world: int
) -> None:
    alone, together = copied(refined, "alone"), copied(refined, "together")
    expected = _make_on_rank(str(alone))
    ranks = run_on_ranks(world, _make_on_rank, str(together))
    for found in ranks:
        # Sums in another order.
        torch.testing.assert_close(found["weight"], expected["weight"], rtol=0, atol=1e-5)
        assert torch.equal(found["weight"], ranks[0]["weight"])
    assert sum(int(found["maps"]) for found in ranks) == int(expected["maps"]) == 4
    assert sum(int(found["images"]) for found in ranks) == int(expected["images"]) == 64
    _assert_same_results(alone, together, 1e-5)
    assert (together / "poses.star").read_bytes() == (alone / "poses.star").read_bytes()


def test_images_are_shared_out_where_encoders_look_at_them_and_by_nobody_again(
    encoded: Path, copied: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = copied(encoded, "alone"), copied(encoded, "together")
    expected = _make_on_rank(str(alone))
    ranks = run_on_ranks(3, _make_on_rank, str(together))
    for found in ranks:
        for name in ("latents", "rotation"):
            # Blocks of other lengths are multiplied in another order.
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)
    # Both passes have been counted: encoding, then back-projection.
    assert sum(int(found["images"]) for found in ranks) == int(expected["images"]) == 64
    _assert_same_results(alone, together, 1e-4)
    monkeypatch.setattr(ParticleStore, "read_images", lambda *_: pytest.fail("images were read"))
    driver = load_trained(together)
    np.testing.assert_array_equal(driver.latents, ranks[0]["latents"].numpy())
    np.testing.assert_array_equal(driver.rotation, ranks[0]["rotation"].numpy())


class _Killed(BaseException):
    """What ends a process in the middle of a stage."""


@pytest.mark.parametrize("stage", ["consensus at refined poses", "maps", "flexible regions"])
def test_results_killed_in_a_stage_are_made_to_the_same_end_and_what_was_done_is_not_done_again(
    refined: Path, copied: Callable[[Path, str], Path], stage: str
) -> None:
    whole, killed = copied(refined, "whole"), copied(refined, "killed")
    _make(whole)

    def kill(under_way: str, done: int, total: int) -> None:
        if under_way == stage:
            raise _Killed

    with pytest.raises(_Killed):
        _make(killed, kill)
    assert read_made_results(killed) is None
    stages: set[str] = set()
    _make(killed, lambda under_way, *_: stages.add(under_way))
    assert ("consensus at refined poses" in stages) == (stage == "consensus at refined poses")
    for path in whole.rglob("*"):
        if path.is_file() and path.suffix != ".npz":
            assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    # Nothing is left to do.
    _make(killed, lambda *told: pytest.fail(str(told)))


def test_a_run_that_is_trained_further_gets_its_results_anew(tiny_store: Path, tmp_path: Path) -> None:
    run = _train(tiny_store, tmp_path / "run", REFINED)
    _make(run)
    first, weight = read_made_results(run), load_trained(run).shell_weight
    last = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    # An older checkpoint is another one.
    stages: set[str] = set()
    _make(run, lambda stage, *_: stages.add(stage))
    second = read_made_results(run)
    assert first is not None
    assert second is not None
    assert (first.checkpoint_step, second.checkpoint_step) == (6, 4)
    assert {"consensus at refined poses", "maps", "flexible regions"} == stages
    assert np.abs(load_trained(run).shell_weight - weight).max() > 0


def test_fewer_maps_leave_none_of_the_earlier_ones(refined: Path, copied: Callable[[Path, str], Path]) -> None:
    run = copied(refined, "run")
    for name in ("kmeans_002", "pc1_002", "state_000"):
        (run / "volumes").mkdir(exist_ok=True)
        (run / "volumes" / f"{name}.mrc").touch()
    run_on_ranks(2, _make_on_rank, str(run))
    written = {path.stem for path in (run / "volumes").glob("*.mrc")}
    assert written == {*MAPS, "state_000"}


def test_the_driver_judges_what_the_ranks_have_written(
    refined: Path, copied: Callable[[Path, str], Path], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(refined, "run")
    monkeypatch.setattr(results, "find_truth_beside", lambda source: None)
    evaluate_run(run)
    decoded = read_scores(run)
    _make(run)
    monkeypatch.setattr(trained.TrainedRun, "decode_each", lambda *_: pytest.fail("decoded again"))
    evaluate_run(run)
    found = read_scores(run)
    assert found is not None
    assert decoded is not None
    # The weights have followed the poses.
    assert found.map_variation == pytest.approx(decoded.map_variation, rel=0.3)


def test_a_driver_brings_what_its_copy_of_a_run_lacks(
    refined: Path, copied: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(refined, "run")
    _make(run)
    made = read_made_results(run)
    assert made is not None
    home = UPath("memory://of-a-driver/run")
    home.fs.put(str(run), home.path, recursive=True)
    # What object stores list late is not in a copy that was made when they were asked.
    for name in ("results.json", made.files[0]):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    monkeypatch.setattr(results, "find_truth_beside", lambda source: None)
    monkeypatch.setattr(results, "report_run", lambda run: run / "report.html")
    make_results(WorkingFolder(home, run))
    assert (run / made.files[0]).is_file()
    assert load_trained(run).checkpoint.position.step == made.checkpoint_step


def test_a_driver_that_does_not_come_to_see_the_maps_says_so(
    refined: Path, copied: Callable[[Path, str], Path], tiny_store: Path
) -> None:
    run = copied(refined, "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("storage_patience_seconds: 600", "storage_patience_seconds: 0"))
    with pytest.raises(StorageError, match=r"results\.json was written by another worker and is not seen"):
        make_results(WorkingFolder.on_disk(run))
    written = reconstruct_alone(WorkingFolder.on_disk(run))
    flexibility = read_flexibility(run)
    assert flexibility is not None
    assert flexibility.truth is not None
    made = read_made_results(run)
    assert made is not None
    assert [run / name for name in made.files] == [*written, run / "latent.npz", run / "flexibility.json"]
    written[2].unlink()
    with pytest.raises(StorageError, match=r"pc1_000\.mrc was written by another worker"):
        make_results(WorkingFolder.on_disk(run))
