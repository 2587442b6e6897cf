from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.data.selection import RunState
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SelectionError
from cryoformer_dist.physics.pose import rotation_from_relion_euler
from cryoformer_dist.selection.columns import ParticleColumns, columns_of, read_columns

RUN = RunState("runs/demo", 7)


@pytest.fixture
def table(store: ParticleStore) -> dict[str, np.ndarray]:
    """Latents of the first 40 particles of the store and all that a search finds, poses turned by 3 degrees."""
    rng = np.random.default_rng(0)
    rows, particles = np.arange(40), store.particles()
    turn = rotation_from_relion_euler(torch.tensor([3.0, 0.0, 0.0])).numpy()
    return {
        "source_row": particles.source_row[rows],
        "latent": rng.normal(size=(40, 3)).astype(np.float32),
        "pca": rng.normal(size=(40, 3)).astype(np.float32),
        "kmeans_label": rng.integers(0, 4, 40),
        "latent_deviation": rng.uniform(0.1, 2, (40, 3)).astype(np.float32),
        "amplitude": rng.uniform(0.5, 1.5, 40).astype(np.float32),
        "weight": rng.random(40, dtype=np.float32),
        "alone": rng.random(40, dtype=np.float32),
        "rotation": particles.rotation[rows] @ turn,
        "shift_angstrom": particles.shift_angstrom[rows] + np.float32([3, -4]),
    }


@pytest.fixture
def columns(table: dict[str, np.ndarray], store: ParticleStore) -> ParticleColumns:
    return columns_of(table, store, RUN)


def test_every_column_is_finite_and_explained(columns: ParticleColumns) -> None:
    assert len(columns.columns) > 20
    for name, column in columns.columns.items():
        assert column.values.shape == (40,), name
        assert np.isfinite(column.values).all(), name
        assert column.values.dtype == (np.int64 if column.scale == "category" or name == "source_row" else np.float32)
        assert column.meaning, name


def test_columns_are_of_the_particles_whose_source_rows_stand_beside_them(
    columns: ParticleColumns, table: dict[str, np.ndarray], store: ParticleStore
) -> None:
    particles = store.particles()
    shuffled = np.random.default_rng(1).permutation(40)
    other = columns_of({name: values[shuffled] for name, values in table.items()}, store, RUN)
    np.testing.assert_array_equal(particles.source_row[other.store_row], other.source_row)
    for name in columns.columns:
        if name != "confidence":
            np.testing.assert_array_equal(other.values(name), columns.values(name)[shuffled], err_msg=name)
    np.testing.assert_allclose(other.values("confidence"), columns.values("confidence")[shuffled], rtol=1e-6)


def test_what_was_found_is_told_in_its_units(columns: ParticleColumns, table: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(columns.values("pc2"), table["pca"][:, 1])
    np.testing.assert_array_equal(columns.values("z3"), table["latent"][:, 2])
    np.testing.assert_allclose(columns.values("junk"), 1 - table["weight"])
    np.testing.assert_allclose(
        columns.values("width") ** 2, np.square(table["latent_deviation"]).mean(axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(columns.values("pose_change_deg"), 3, atol=1e-3)
    np.testing.assert_allclose(columns.values("pose_change_angstrom"), 5, atol=1e-4)
    assert columns.refined is not None
    angles = torch.from_numpy(np.stack([columns.values(f"{name}_deg") for name in ("rot", "tilt", "psi")], axis=1))
    np.testing.assert_allclose(rotation_from_relion_euler(angles).numpy(), table["rotation"], atol=1e-5)


def test_confidence_falls_with_width_and_is_a_half_where_that_is_the_clouds(
    store: ParticleStore, table: dict[str, np.ndarray]
) -> None:
    cloud = np.sqrt(table["latent"].var(axis=0).mean())
    widths = cloud * np.linspace(0, 2, 40, dtype=np.float32)
    table["latent_deviation"] = widths[:, None].repeat(3, axis=1)
    confidence = columns_of(table, store, RUN).values("confidence")
    assert (np.diff(confidence) < 0).all()
    assert (confidence[0], confidence[-1]) == (1, pytest.approx(0.2, abs=1e-5))
    np.testing.assert_allclose(np.interp(cloud, widths, confidence), 0.5, atol=1e-2)


def test_what_a_run_did_not_look_for_has_no_column(store: ParticleStore, table: dict[str, np.ndarray]) -> None:
    bare = columns_of({name: table[name] for name in ("source_row", "latent")}, store, RUN)
    assert bare.refined is None
    for name in ("junk", "amplitude", "pose_change_deg", "confidence", "cluster"):
        with pytest.raises(SelectionError, match=f"no column {name}; "):
            bare.values(name)
    given = store.particles().pose(bare.store_row)
    angles = torch.from_numpy(np.stack([bare.values(f"{name}_deg") for name in ("rot", "tilt", "psi")], axis=1))
    torch.testing.assert_close(rotation_from_relion_euler(angles), given.rotation, atol=1e-5, rtol=0)


def test_latents_of_other_particles_are_refused(store: ParticleStore, table: dict[str, np.ndarray]) -> None:
    with pytest.raises(SelectionError, match="particles that the store does not hold"):
        columns_of(table | {"source_row": table["source_row"] + 1000}, store, RUN)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        read_columns(tmp_path, "runs/demo")
