"""Latents are searched for while a network is trained: when, of whom, and when what is found counts."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_runs import Listener, Stop, assert_same_end, final_state, tiny_config, train

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import MostlyJunkWarning
from cryoformer_dist.inference.answer import Answer
from cryoformer_dist.inference.comparison import Spread
from cryoformer_dist.initialization.frame_alignment import align_frame
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, rotation_from_6d
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.training_log import SearchFindings, read_training_log
from cryoformer_dist.training import latent_search
from cryoformer_dist.training.latent_search import ParticleSearchResult
from cryoformer_dist.training.learner import Learner
from cryoformer_dist.training.stages import Moment

SEARCHED = {
    **{"model.latent.start": "linear", "model.latent.refinement": "search", "training.epochs": 3},
    **{"model.pose.form": "given", "model.amplitude": "one", "model.junk": "kept"},
}
# Of 64 tiny images nothing is to be learned.
undecided = pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.UndecidedLatentsWarning")


@pytest.fixture(scope="module")
def searched(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """An uninterrupted run of 16 steps whose latents are looked for at steps 6, 11 and 16."""
    config = tiny_config(tiny_store, SEARCHED)
    run = tmp_path_factory.mktemp("searched") / "run"
    train(config, run)
    return config, run


@undecided
def test_a_rank_gives_a_sign_of_life_with_every_batch_of_a_search(tiny_store: Path, tmp_path: Path) -> None:
    listener = train(tiny_config(tiny_store, SEARCHED | {"training.epochs": 1}), tmp_path / "run")
    assert listener.signs_of_life == math.ceil(64 / 12)


# Between a search and its checkpoint, and after that.
@undecided
@pytest.mark.parametrize("stop_at", [6, 10])
def test_a_run_interrupted_around_a_search_of_latents_ends_bit_equal_too(
    searched: tuple[RunConfig, Path], tmp_path: Path, stop_at: int
) -> None:
    config, run = searched
    with pytest.raises(Stop):
        train(config, tmp_path / "run", Listener(stop_at))
    train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", run)


@undecided
def test_latents_are_looked_for_after_every_epoch_and_the_last_is_trained_at_the_means(
    searched: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = searched
    asked: list[tuple[float, bool]] = []
    original = latent_search.search_particles

    def search(learner: Learner, moment: Moment, particles: Any, draws: Any) -> ParticleSearchResult:
        found = original(learner, moment, particles, draws)
        assert sorted(found.row.tolist()) == list(range(64))
        asked.append((moment.epoch, draws is not None))
        return found

    monkeypatch.setattr(latent_search, "search_particles", search)
    train(config, tmp_path / "run")
    # The last step of each of three epochs, of which two end within a step.
    assert [(math.ceil(epoch), draws) for epoch, draws in asked] == [(1, True), (2, False), (3, False)]
    assert_same_end(tmp_path / "run", run)
    # Gradients left the table alone.
    assert not final_state(run)["latent.visits"].any()


@undecided
def test_particles_kept_out_are_no_part_of_the_cloud(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds: list[int] = []
    original = latent_search.build_conformations

    def build_conformations(objectives: Any, latents: torch.Tensor, *rest: Any) -> Any:
        clouds.append(len(latents))
        return original(objectives, latents, *rest)

    monkeypatch.setattr(latent_search, "build_conformations", build_conformations)
    train(tiny_config(tiny_store, SEARCHED | {"dataset.hold_out": 4, "training.epochs": 1}), tmp_path / "run")
    assert clouds == [60]


@undecided
@pytest.mark.parametrize(
    ("kept_epochs", "information_nats", "dealt"),
    [(4.0, 0.05, [0, 0, 0]), (4.0, 0.2, [1, 2, 3]), (2.0, 0.05, [0, 2, 3]), (0.0, 0.05, [1, 2, 3])],
)
def test_maps_that_do_not_move_yet_leave_the_first_latents_alone(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept_epochs: float,
    information_nats: float,
    dealt: list[int],
) -> None:
    searches = []

    def search(learner: Learner, moment: Moment, particles: Any, draws: Any) -> ParticleSearchResult:
        searches.append(moment.epoch)
        rows = torch.from_numpy(particles.rows)
        latent, one = torch.full((len(rows), 2), float(len(searches))), torch.ones(len(rows))
        pose = Pose(torch.eye(3).expand(len(rows), 3, 3), torch.zeros(len(rows), 2))
        answer = Answer(latent, torch.zeros_like(latent), pose, one, one, one)
        return ParticleSearchResult(rows, answer, information_nats, 0.0, SearchFindings(information_nats))

    monkeypatch.setattr(latent_search, "search_particles", search)
    changes = {"training.report_every_steps": 1, "training.checkpoint_every_steps": 5}
    config = tiny_config(tiny_store, SEARCHED | changes | {"training.freeze_latent_epochs": kept_epochs})
    train(config, tmp_path / "run")
    by_step = {one.position.step: one.read_tables()["latent"]["values"] for one in checkpoints(tmp_path / "run")}
    # Of the linear model until a search counts; searches at steps 6, 11 and 16.
    assert by_step[5].std() > 0
    for step, number in zip([10, 15, 16], dealt, strict=True):
        expected = torch.full_like(by_step[5], number) if number else by_step[5]
        assert torch.equal(by_step[step], expected), step


EVERYTHING = SEARCHED | {"model.pose.form": "posterior", "model.amplitude": "posterior", "model.junk": "weighed"}


@undecided
@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.MostlyJunkWarning")
def test_a_search_of_poses_amplitudes_and_junk_is_resumed_bit_equal(tiny_store: Path, tmp_path: Path) -> None:
    # Searches at steps 6 and 11: the checkpoint between them has all that the first one found.
    config = tiny_config(tiny_store, EVERYTHING | {"training.epochs": 2})
    train(config, tmp_path / "run")
    with pytest.raises(Stop):
        train(config, tmp_path / "interrupted", Listener(10))
    train(config, tmp_path / "interrupted")
    assert_same_end(tmp_path / "interrupted", tmp_path / "run")


@undecided
def test_a_search_moves_particles_but_no_conformation_as_a_whole(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Spread(rotation_rad=0.2, shift_angstrom=8.0)
    monkeypatch.setattr(latent_search, "fit_spread", lambda *_: wide)
    config = tiny_config(tiny_store, SEARCHED | {"model.pose.form": "posterior", "training.epochs": 2})
    train(config, tmp_path / "run")
    found, given = final_state(tmp_path / "run"), ParticleStore.open(tiny_store).particles().pose()
    moved = Pose(rotation_from_6d(found["rotation.values"]), found["shift_angstrom.values"])
    assert float((moved.shift_angstrom - given.shift_angstrom).square().mean().sqrt()) > 1
    assert float(rotation_angle_deg(moved.rotation, given.rotation).median()) > 1
    # What all particles of a conformation share has been taken off: there is no more of it.
    held = align_frame(given, moved, found["latent.values"])
    assert float(rotation_angle_deg(held.rotation, moved.rotation).max()) < 0.1
    assert float((held.shift_angstrom - moved.shift_angstrom).abs().max()) < 0.02


@undecided
@pytest.mark.parametrize(("junk_share", "believed"), [(0.4, True), (0.6, False)])
def test_a_search_that_sees_no_particle_in_most_images_is_told_of_and_not_believed(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk_share: float, believed: bool
) -> None:
    original = latent_search.search_particles

    def search(learner: Learner, moment: Moment, particles: Any, draws: Any) -> ParticleSearchResult:
        found = original(learner, moment, particles, draws)
        half = replace(found.answer, weight=torch.where(found.row % 2 == 0, 0.25, 1.0))
        return replace(found, answer=half, junk_share=junk_share)

    monkeypatch.setattr(latent_search, "search_particles", search)
    expected = nullcontext() if believed else pytest.warns(MostlyJunkWarning, match="so all were kept")
    with expected:
        train(tiny_config(tiny_store, EVERYTHING | {"training.epochs": 1}), tmp_path / "run")
    found = final_state(tmp_path / "run")
    amplitude, weight = found["amplitude.values"], found["weight.values"]
    assert float(weight.min()) == (0.25 if believed else 1.0)
    assert float((amplitude * weight).sum() / weight.sum()) == pytest.approx(1, abs=1e-3)
    record = read_training_log(tmp_path / "run")[-1]
    assert record.junk_share is not None
    assert record.pose_error_deg is not None
    assert record.amplitude_spread is not None


@undecided
def test_what_is_not_looked_for_is_not_told(searched: tuple[RunConfig, Path]) -> None:
    _, run = searched
    records = read_training_log(run)
    assert any(record.latent_information_nats is not None for record in records)
    assert {record.junk_share for record in records} == {None}
    assert {record.pose_error_deg for record in records} == {None}
    assert "amplitude.values" not in final_state(run)
