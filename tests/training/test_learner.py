from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import CPU, final_state, tiny_config, train

from cryoformer_dist.config.schema import LearningRates
from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, rotation_from_6d
from cryoformer_dist.training.learner import Inputs, Learner, table_rate
from cryoformer_dist.training.stages import Stage, StageKind

ALL_FORMS = {
    "pose": ("given", "table", "encoder", "encoder_then_table"),
    "latent": ("table", "encoder", "table_then_encoder", "none"),
}


def _learner(store: ParticleStore, pose: str = "given", latent: str = "table", **changes: Any) -> Learner:
    config = tiny_config(store.path, {"model.pose.form": pose, "model.latent.form": latent, **changes})
    lattice = Lattice.of(sphere(store.box_size), 1, 0)
    return Learner(config, store.particles(), store.box_size, store.pixel_size_angstrom, lattice, CPU)


def _inputs(learner: Learner, kind: StageKind, batch: ParticleBatch, epoch: float = 0.5) -> Inputs:
    return learner.inputs(Stage(kind, 2), batch, epoch)


def test_pretraining_sees_images_and_given_poses_alone(store: ParticleStore, batch: ParticleBatch) -> None:
    inputs = _inputs(_learner(store, "encoder_then_table"), "pose_pretraining", batch)
    assert (inputs.latent, inputs.pose, inputs.leaves) == (None, None, {})


@pytest.mark.parametrize("latent", ALL_FORMS["latent"])
def test_while_poses_are_encoded_the_map_is_rigid_and_no_table_learns(
    store: ParticleStore, batch: ParticleBatch, latent: str
) -> None:
    inputs = _inputs(_learner(store, "encoder_then_table", latent), "pose_encoding", batch)
    assert inputs.latent is not None
    assert torch.equal(inputs.latent, torch.zeros(6, 2))
    assert inputs.pose is None
    assert inputs.leaves == {}


@pytest.mark.parametrize("pose", ALL_FORMS["pose"])
@pytest.mark.parametrize("latent", ALL_FORMS["latent"])
def test_reconstruction_reads_what_the_configuration_names_and_updates_what_are_tables(
    store: ParticleStore, batch: ParticleBatch, pose: str, latent: str
) -> None:
    learner = _learner(store, pose, latent)
    inputs = _inputs(learner, "reconstruction", batch)
    expected = {"latent"} if latent.startswith("table") else set()
    expected |= {"rotation", "shift_angstrom"} if pose.endswith("table") else set()
    assert set(inputs.leaves) == expected == set(learner.tables)
    assert all(leaf.requires_grad for leaf in inputs.leaves.values())
    assert (inputs.latent is None) == (latent == "encoder")
    assert (inputs.pose is None) == (pose == "encoder")
    if latent == "none":
        assert torch.equal(inputs.latent, torch.zeros(6, 2))
    if inputs.pose is not None:
        torch.testing.assert_close(inputs.pose.rotation.detach(), batch.pose.rotation, rtol=0, atol=1e-6)
        assert torch.equal(inputs.pose.shift_angstrom.detach(), batch.pose.shift_angstrom)


def test_what_is_frozen_is_read_and_does_not_learn(store: ParticleStore, batch: ParticleBatch) -> None:
    frozen = {"training.freeze_latent_epochs": 1.0, "training.freeze_pose_epochs": 1.5}
    learner = _learner(store, "table", **frozen)
    leaves = {epoch: set(_inputs(learner, "reconstruction", batch, epoch).leaves) for epoch in (0.9, 1.0, 1.5)}
    assert leaves == {0.9: set(), 1.0: {"latent"}, 1.5: {"latent", "rotation", "shift_angstrom"}}
    waiting = _inputs(learner, "reconstruction", batch, 0.9)
    assert torch.equal(waiting.latent, learner.tables["latent"].values[batch.row])
    assert not waiting.latent.requires_grad
    # An encoder that waits leaves the particles where the store has them.
    assert _inputs(_learner(store, "encoder", **frozen), "reconstruction", batch, 0.9).pose is batch.pose


@pytest.mark.parametrize("pose", ALL_FORMS["pose"])
def test_distillation_reads_the_tables_and_leaves_them_alone(
    store: ParticleStore, batch: ParticleBatch, pose: str
) -> None:
    learner = _learner(store, pose, "table_then_encoder")
    # Away from the given poses.
    for name in set(learner.tables) - {"latent"}:
        learner.tables[name].values += 0.1
    inputs = _inputs(learner, "latent_distillation", batch, 1.5)
    assert inputs.leaves == {}
    assert torch.equal(inputs.latent, learner.tables["latent"].values[batch.row])
    assert inputs.pose is not None
    assert not inputs.latent.requires_grad
    assert not inputs.pose.rotation.requires_grad
    if pose.endswith("table"):
        expected = rotation_from_6d(learner.tables["rotation"].values[batch.row])
        assert torch.equal(inputs.pose.rotation, expected)
        assert torch.equal(inputs.pose.shift_angstrom, batch.pose.shift_angstrom + 0.1)


def test_encoded_poses_take_the_place_of_the_batch_s_rows_only(store: ParticleStore, batch: ParticleBatch) -> None:
    learner = _learner(store, "encoder_then_table")
    before = {name: table.values.clone() for name, table in learner.tables.items()}
    learner.take_encoded_poses(batch)
    seen = learner.objectives.encode_pose(batch)
    held = _held_poses(learner.tables["rotation"].values, learner.tables["shift_angstrom"].values)
    torch.testing.assert_close(held.rotation[batch.row], seen.rotation.detach(), rtol=0, atol=1e-6)
    assert torch.equal(held.shift_angstrom[batch.row], seen.shift_angstrom.detach())
    assert float(rotation_angle_deg(held.rotation[batch.row], batch.pose.rotation).min()) > 1
    others = torch.arange(6, len(store))
    for name in ("rotation", "shift_angstrom"):
        assert torch.equal(learner.tables[name].values[others], before[name][others])
    assert torch.equal(learner.tables["latent"].values, before["latent"])


def _held_poses(rotation: torch.Tensor, shift_angstrom: torch.Tensor) -> Pose:
    return Pose(rotation_from_6d(rotation), shift_angstrom)


def test_after_the_hand_over_the_table_holds_what_the_encoder_says_of_every_particle_trained_on(
    store: ParticleStore, tmp_path: Path
) -> None:
    changes = {
        "model.pose.form": "encoder_then_table",
        "dataset.hold_out": 5,
        "training.pose_encoding_epochs": 1,
        "training.epochs": 1,
        # The table stays where it was put.
        "training.freeze_pose_epochs": 9.0,
    }
    config = tiny_config(store.path, changes)
    train(config, tmp_path / "run")
    learner = _learner(store, "encoder_then_table")
    state = final_state(tmp_path / "run")
    learner.objectives.model.load_state_dict({name: state[name] for name in learner.objectives.model.state_dict()})
    rows = np.arange(len(store))
    everything = make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles())
    with torch.no_grad():
        seen = learner.objectives.encode_pose(everything)
    held = _held_poses(state["rotation.values"], state["shift_angstrom.values"])
    trained, kept_out = slice(0, 59), slice(59, None)
    torch.testing.assert_close(held.rotation[trained], seen.rotation[trained], rtol=0, atol=1e-5)
    torch.testing.assert_close(held.shift_angstrom[trained], seen.shift_angstrom[trained], rtol=0, atol=1e-3)
    given = everything.pose
    assert float(rotation_angle_deg(held.rotation[trained], given.rotation[trained]).median()) > 5
    assert torch.equal(held.shift_angstrom[kept_out], given.shift_angstrom[kept_out])


def test_a_row_s_step_does_not_depend_on_the_size_of_its_batch(store: ParticleStore, batch: ParticleBatch) -> None:
    def after(*visits: ParticleBatch) -> torch.Tensor:
        learner = _learner(store)
        for number, visit in enumerate(visits):
            leaf = learner.tables["latent"].read(visit.row)
            slope = torch.randn(64, 2, generator=torch.Generator().manual_seed(number))[visit.row]
            # A mean over the batch, as the loss is.
            (leaf * slope).sum(1).mean().backward()
            learner.update_tables(visit, {"latent": leaf}, 0.5)
        return learner.tables["latent"].values

    three = torch.arange(3)
    first_three = ParticleBatch(
        batch.images[:3], three, batch.pose[three], batch.ctf[three], batch.pixel_size_angstrom[:3], 0
    )
    large, mixed, start = after(batch, batch), after(batch, first_three), after()
    torch.testing.assert_close(mixed[:3], large[:3], rtol=1e-5, atol=1e-6)
    assert float((mixed[3:6] - large[3:6]).abs().min()) > 1e-3
    assert torch.equal(mixed[6:], start[6:])


def test_every_table_has_its_own_rate() -> None:
    rates = LearningRates(latent=3.0, rotation=2.0, shift_angstrom=1.0)
    assert [table_rate(name, rates) for name in ("latent", "rotation", "shift_angstrom")] == [3, 2, 1]


def test_first_latents_are_those_given_or_drawn_from_the_prior(store: ParticleStore) -> None:
    drawn = _learner(store).tables["latent"].values
    assert drawn.shape == (64, 2)
    assert 0.7 < float(drawn.std()) < 1.3
    assert torch.equal(_learner(store).tables["latent"].values, drawn)
    given = torch.arange(128.0).reshape(64, 2)
    config, lattice = tiny_config(store.path), Lattice.of(sphere(16), 1, 0)
    learner = Learner(config, store.particles(), 16, store.pixel_size_angstrom, lattice, CPU, given)
    assert torch.equal(learner.tables["latent"].values, given)


def test_tables_of_another_model_are_refused_by_name(store: ParticleStore) -> None:
    with pytest.raises(CheckpointError, match=r"holds tables \['latent'\].*needs \['latent', 'rotation'"):
        _learner(store, "table").load_table_state(_learner(store).table_state())
