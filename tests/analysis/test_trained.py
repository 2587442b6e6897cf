import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import Listener, Stop, tiny_config, train

from cryoformer_dist.analysis.results import reconstruct_run
from cryoformer_dist.analysis.trained import TrainedRun, load_trained, with_weight_at_refined_poses
from cryoformer_dist.data.batch import ImageBlock, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import CheckpointError
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.model.feature_volume import FeatureVolume
from cryoformer_dist.physics.fourier import spectrum
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.pose import Pose, rotation_angle_deg, rotation_from_6d
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.directory import load_run, load_shell_weight
from cryoformer_dist.runs.layout import REFINED_SHELL_WEIGHT
from cryoformer_dist.runs.results import read_latent_table, write_of_checkpoint
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.training.preparation import prepare_run

KEPT_OUT = 8
DISTILLED = {
    "model.latent.form": "table_then_encoder",
    "model.pose.form": "table",
    "dataset.hold_out": KEPT_OUT,
    "training.epochs": 1,
    "training.distillation_epochs": 1,
}


def _encoded(trained: TrainedRun, tiny_store: Path, rows: np.ndarray, pose: Pose) -> np.ndarray:
    """Latents of rows as the run's encoder sees them at given poses, one particle at a time."""
    objectives, store = trained.learner.objectives, ParticleStore.open(tiny_store)
    particles = store.particles()
    found = []
    for number, row in enumerate(rows):
        one = np.array([row])
        batch = make_batch(ImageBlock(store.read_images(one), one, one * 0), particles)
        with torch.no_grad():
            found.append(objectives.encode_latent(batch, pose[torch.tensor([number])])[0].numpy())
    return np.stack(found)


@pytest.fixture(scope="module")
def before_and_after(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that stands before its distillation, at step 4 of 5, and the same run finished."""
    folder = tmp_path_factory.mktemp("distilled")
    config = tiny_config(tiny_store, DISTILLED)
    with pytest.raises(Stop):
        train(config, folder / "before", Listener(4))
    train(config, folder / "after")
    return folder / "before", folder / "after"


def test_before_distillation_latents_are_the_table_s(before_and_after: tuple[Path, Path]) -> None:
    trained = load_trained(before_and_after[0])
    table = trained.checkpoint.read_tables()["latent"]["values"].numpy()
    np.testing.assert_array_equal(trained.latents, table[: 64 - KEPT_OUT])
    # An encoder that nobody has trained has nothing to say about unseen particles either.
    assert trained.held_out() is None


def test_once_distilled_latents_are_what_the_encoder_sees_at_the_trained_poses(
    before_and_after: tuple[Path, Path], tiny_store: Path
) -> None:
    trained = load_trained(before_and_after[1])
    assert trained.checkpoint.position.stage == 1
    tables = trained.checkpoint.read_tables()
    rows = np.arange(64 - KEPT_OUT)
    pose = Pose(rotation_from_6d(tables["rotation"]["values"]), tables["shift_angstrom"]["values"])
    some = rows[::9]
    expected = _encoded(trained, tiny_store, some, pose[torch.from_numpy(some)])
    np.testing.assert_allclose(trained.latents[some], expected, atol=1e-4)
    assert np.abs(trained.latents - tables["latent"]["values"].numpy()[rows]).max() > 0.1
    np.testing.assert_allclose(trained.rotation, pose.rotation[: len(rows)].numpy(), atol=1e-6)
    np.testing.assert_array_equal(trained.shift_angstrom, pose.shift_angstrom[: len(rows)].numpy())


def test_held_out_particles_are_those_never_trained_on_as_the_encoder_sees_them(
    before_and_after: tuple[Path, Path], tiny_store: Path
) -> None:
    trained = load_trained(before_and_after[1])
    unseen = trained.held_out()
    assert unseen is not None
    latents, source_row = unseen
    rows = np.arange(64 - KEPT_OUT, 64)
    particles = ParticleStore.open(tiny_store).particles()
    np.testing.assert_array_equal(source_row, particles.source_row[rows])
    assert not set(source_row) & set(trained.source_row)
    assert len(set(source_row) | set(trained.source_row)) == 64
    np.testing.assert_allclose(latents, _encoded(trained, tiny_store, rows, particles.pose(rows)), atol=1e-4)
    for name in ("latent", "rotation", "shift_angstrom"):
        visits = trained.checkpoint.read_tables()[name]["visits"]
        assert (visits[rows] == 0).all()
        assert (visits[: 64 - KEPT_OUT] == 1).all()


@pytest.mark.parametrize(
    ("form", "kept_out", "told"),
    [("table", KEPT_OUT, False), ("none", KEPT_OUT, False), ("encoder", 0, False), ("encoder", KEPT_OUT, True)],
)
def test_unseen_particles_have_latents_only_where_there_are_some_and_an_encoder(
    tiny_store: Path, tmp_path: Path, form: str, kept_out: int, told: bool
) -> None:
    changes = {"model.latent.form": form, "dataset.hold_out": kept_out, "training.epochs": 1}
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    unseen = trained.held_out()
    assert (unseen is not None) == told
    if unseen is not None:
        assert unseen[0].shape == (KEPT_OUT, 2)
        assert np.ptp(unseen[0], axis=0).min() > 0
    assert trained.latents.shape == (64 - kept_out, 2)
    assert (np.ptp(trained.latents, axis=0).min() > 0) == (form != "none")


@pytest.mark.parametrize(
    ("changes", "attention"),
    [({}, True), ({"model.domain": "fourier"}, False), ({"model.decoder.form": "concatenation"}, False)],
    ids=str,
)
def test_every_kind_of_network_decodes_maps_and_says_whether_it_attends(
    tiny_store: Path, tmp_path: Path, changes: dict[str, Any], attention: bool
) -> None:
    train(tiny_config(tiny_store, changes | {"training.epochs": 1}), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    assert trained.has_attention is attention
    maps = trained.decode(np.array([[0.0, 0.0], [3.0, -3.0]]))
    assert maps.shape == (2, 16, 16, 16)
    assert np.isfinite(maps).all()
    assert np.abs(maps[0] - maps[1]).max() > 0
    if attention:
        states = list(trained.decode_states(np.zeros((1, 2))))
        assert states[0].attention.shape == (len(states[0].density), 16)


@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.NoiseDepartureWarning")
def test_conformations_of_a_run_with_masks_differ_in_the_focus_alone_and_lie_in_the_mask(
    store: ParticleStore, tmp_path: Path
) -> None:
    solvent, box = radius_grid(16, 3) <= 5, torch.arange(16)
    focus = solvent & (box > 8)
    for name, mask in (("solvent", solvent), ("focus", focus)):
        write_volume(tmp_path / f"{name}.mrc", Volume(mask.float(), store.pixel_size_angstrom))
    changes = {
        "training.occupancy": "data",
        "training.occupancy_refresh_epochs": 1,
        "training.mask": str(tmp_path / "solvent.mrc"),
        "training.focus_mask": str(tmp_path / "focus.mrc"),
    }
    with pytest.raises(Stop):
        train(tiny_config(store.path, changes), tmp_path / "run", Listener(stop_at=8))
    # The files are gone when it goes on.
    for name in ("solvent", "focus"):
        (tmp_path / f"{name}.mrc").unlink()
    train(load_run(tmp_path / "run")[0], tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    model, lattice = trained.learner.objectives.model, trained.learner.objectives.lattice
    one, other = model.volumes(torch.tensor([[1.0, 0], [0, -1]]), lattice.points_pixels, lattice.flat_index)
    assert torch.equal(one[~focus], other[~focus])
    assert (one - other)[focus].abs().max() > 0
    assert (one[~solvent] == 0).all()
    assert (one[solvent] != 0).any()
    # What is written of attention has the same density.
    states = list(trained.decode_states(np.array([[1.0, 0.0]])))
    np.testing.assert_allclose(
        states[0].density,
        trained.decode(np.array([[1.0, 0.0]]))[0].ravel()[lattice.flat_index.numpy()],
        rtol=1e-4,
        atol=1e-6,
    )


def test_maps_are_weighted_by_how_much_of_the_consensus_is_signal(before_and_after: tuple[Path, Path]) -> None:
    trained = load_trained(before_and_after[0])
    weight, vectors = load_shell_weight(before_and_after[0]), torch.zeros(1, 2)
    assert 0 < float(weight[1:].min()) < 0.5 < float(weight[1:].max()) < 1
    lattice = trained.learner.objectives.lattice
    plain = trained.learner.objectives.model.volumes(vectors, lattice.points_pixels, lattice.flat_index)[0]
    weighted = torch.from_numpy(trained.decode(vectors.numpy())[0])
    torch.testing.assert_close(spectrum(weighted), spectrum(plain) * weight, rtol=1e-3, atol=1e-4)


def test_weights_follow_the_poses(before_and_after: tuple[Path, Path], tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(before_and_after[0], run)
    trained = load_trained(run)
    assert trained.poses_refined
    astray = replace(trained, rotation=trained.rotation[::-1].copy())
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    lost = with_weight_at_refined_poses(WorkingFolder.on_disk(run), astray)
    assert lost.shell_weight[1:].sum() < 0.7 * trained.shell_weight[1:].sum()
    np.testing.assert_array_equal(load_trained(run).shell_weight, lost.shell_weight)
    # What training started from stays as it was.
    assert {name: (run / name).read_bytes() for name in before} == before
    # Of another checkpoint they say nothing.
    write_of_checkpoint(run, REFINED_SHELL_WEIGHT, 5, shell_weight=lost.shell_weight)
    np.testing.assert_array_equal(load_trained(run).shell_weight, trained.shell_weight)
    train(tiny_config(tiny_store, {"training.epochs": 1}), tmp_path / "given")
    given = load_trained(tmp_path / "given")
    assert with_weight_at_refined_poses(WorkingFolder.on_disk(tmp_path / "given"), given) is given


def test_a_transform_is_decoded_in_the_units_of_the_consensus_it_started_from(tiny_store: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_store, {"model.domain": "fourier", "training.epochs": 1}), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    expected_spectrum = trained.learner.objectives.model.spectrum
    assert float(expected_spectrum.max()) > 2 * float(expected_spectrum.min())
    power = np.square(trained.decode(np.zeros((1, 2)))).mean() ** 0.5
    # A network of unit scale times the spectrum, which a few steps do not change by orders.
    shells = torch.arange(len(expected_spectrum))
    expected = float((expected_spectrum.square() * 4 * torch.pi * shells.square()).sum().sqrt()) / 16**3
    assert 0.05 * expected < power < 20 * expected


def test_poses_from_an_encoder_then_a_table_are_the_table_s(tiny_store: Path, tmp_path: Path) -> None:
    changes = {"model.pose.form": "encoder_then_table", "training.pose_encoding_epochs": 1, "training.epochs": 1}
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    table = trained.checkpoint.read_tables()["rotation"]["values"]
    np.testing.assert_array_equal(trained.rotation, rotation_from_6d(table).numpy())
    given = torch.from_numpy(trained.stored_rotation)
    assert float(rotation_angle_deg(torch.from_numpy(trained.rotation), given).median()) > 5
    assert trained.poses_refined


def test_a_run_without_a_checkpoint_is_refused_with_the_way_out(tiny_store: Path, tmp_path: Path) -> None:
    prepare_run(tiny_config(tiny_store), ParticleStore.open(tiny_store), tmp_path / "run", resume=False)
    with pytest.raises(CheckpointError, match="no checkpoint yet; train it first"):
        load_trained(tmp_path / "run")


def test_a_run_trained_with_any_hash_grid_backend_is_decoded_here(
    before_and_after: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "elsewhere"
    shutil.copytree(before_and_after[0], run)
    config = load_run(run)[0]
    grid = config.model.hash_grid.model_copy(update={"backend": "tinycudann"})
    elsewhere = config.model_copy(update={"model": config.model.model_copy(update={"hash_grid": grid})})
    (run / "config.yaml").write_text(elsewhere.model_dump_json())
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    here, there = (load_trained(path) for path in (before_and_after[0], run))
    assert there.config.model.hash_grid.backend == "tinycudann"
    np.testing.assert_array_equal(there.latents, here.latents)


def test_decoding_makes_no_operator_that_only_training_needs(
    before_and_after: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_trained(before_and_after[1]).decode(np.zeros((1, 2)))

    def refuse(*_: object) -> None:
        raise AssertionError("an operator was made")

    monkeypatch.setattr(FeatureVolume, "lattice", refuse)
    trained = load_trained(before_and_after[1])
    np.testing.assert_array_equal(trained.decode(np.zeros((1, 2))), expected)
    assert trained.held_out() is not None


@pytest.mark.filterwarnings("ignore:after 1 epochs an image carries only", "ignore:.*show no particle")
def test_what_searches_found_comes_with_the_latents_and_goes_into_their_table(tiny_store: Path, tmp_path: Path) -> None:
    changes = {
        "model.latent.refinement": "search",
        "model.latent.start": "linear",
        "model.amplitude": "posterior",
        "model.junk": "weighed",
        "training.epochs": 1,
    }
    train(tiny_config(tiny_store, changes), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    assert set(trained.found) == {"latent_deviation", "amplitude", "weight", "alone"}
    for name, values in trained.found.items():
        table = trained.checkpoint.read_tables()[name]["values"].numpy()
        np.testing.assert_array_equal(values.reshape(64, -1), table)
    np.testing.assert_array_equal(trained.trusted, trained.weight > 0.5)
    reconstruct_run(WorkingFolder.on_disk(tmp_path / "run"), trained)
    written = read_latent_table(tmp_path / "run")
    for name, values in trained.found.items():
        np.testing.assert_array_equal(written[name], values)
    np.testing.assert_array_equal(written["source_row"], trained.source_row)


def test_where_nobody_searched_nothing_was_found(tiny_store: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_store, {"training.epochs": 1}), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    assert trained.found == {}
    assert trained.trusted.all()
