import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.data.convert import ConversionOptions, convert_serially, plan_conversion
from cryoformer_dist.data.selection import RunState
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.physics.pose import random_rotations
from cryoformer_dist.selection.choice import choose_all, choose_where
from cryoformer_dist.selection.columns import ParticleColumns, columns_of
from cryoformer_dist.selection.export import Export, export_selection

RUN = RunState("runs/demo", 7)
FIELDS = (
    *("stack_index", "rotation", "shift_angstrom", "defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_deg"),
    "phase_shift_deg",
)


@pytest.fixture(scope="module")
def cropped(store: ParticleStore, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    """Images smaller than those of the source: cryoDRGN is told of the source's."""
    source = read_particles(Path(store.attributes.source.path))
    output = tmp_path_factory.mktemp("cropped") / "particles.zarr"
    return convert_serially(plan_conversion(source, output, ConversionOptions(box_size=12, contrast="light")))


def columns_with_latents(store: ParticleStore, rows: np.ndarray, **more: np.ndarray) -> ParticleColumns:
    source_row = store.particles().source_row[rows]
    latent = np.stack([source_row, -source_row], axis=1).astype(np.float32)
    return columns_of({"source_row": source_row, "latent": latent, **more}, store, RUN)


def test_the_four_files_lead_back_to_the_same_particles(cropped: ParticleStore, tmp_path: Path) -> None:
    deviation = np.linspace(0.1, 2, 128, dtype=np.float32).reshape(64, 2)
    columns = columns_with_latents(cropped, np.arange(64), latent_deviation=deviation)
    chosen = choose_where(columns, "source_row < 40 and source_row != 7")
    written = export_selection(chosen, Export(cryodrgn=tmp_path / "drgn"), columns)
    assert [path.name for path in written] == ["poses.pkl", "ctf.pkl", "ind.pkl", "z.pkl"]
    poses, ctf, rows, latents = written
    source = Path(cropped.attributes.source.path)
    as_read = read_particles(source).select(chosen.source_row)
    back = read_particles(source.with_suffix(".mrcs"), poses=poses, ctf=ctf, indices=rows)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(back, name), getattr(as_read, name), rtol=1e-6, atol=1e-4, err_msg=name)
    (group,) = back.optics
    assert (group.box_size, group.voltage_kv) == (16, as_read.optics[0].voltage_kv)
    assert group.pixel_size_angstrom == pytest.approx(as_read.optics[0].pixel_size_angstrom)
    with latents.open("rb") as handle:
        mean, log_variance = pickle.load(handle), pickle.load(handle)
    np.testing.assert_array_equal(mean, np.stack([chosen.source_row, -chosen.source_row], axis=1))
    of_table = np.argsort(columns.source_row)[chosen.source_row]
    np.testing.assert_allclose(np.exp(log_variance), deviation[of_table] ** 2, rtol=1e-5)
    assert mean.dtype == log_variance.dtype == np.float32


def test_refined_poses_take_the_place_of_given_ones(store: ParticleStore, tmp_path: Path) -> None:
    rows = np.arange(10, 30)
    rotation = random_rotations(len(rows), torch.Generator().manual_seed(0)).numpy()
    shift = np.linspace(-4, 4, 2 * len(rows), dtype=np.float32).reshape(-1, 2)
    columns = columns_with_latents(store, rows, rotation=rotation, shift_angstrom=shift)
    export = Export(refined_poses=True, cryodrgn=tmp_path)
    poses, _, _, latents = export_selection(choose_all(columns), export, columns)
    source = Path(store.attributes.source.path)
    before, after = read_particles(source), read_particles(source, poses=poses)
    np.testing.assert_allclose(after.rotation[columns.source_row], rotation, atol=1e-6)
    np.testing.assert_allclose(after.shift_angstrom[columns.source_row], shift, atol=1e-4)
    others = np.setdiff1d(np.arange(64), columns.source_row)
    np.testing.assert_allclose(after.rotation[others], before.rotation[others], atol=1e-6)
    with latents.open("rb") as handle:
        assert pickle.load(handle).shape == (20, 2)
        # Latents that were not searched have no width.
        assert handle.read() == b""


def test_what_cryodrgn_could_not_count_is_refused_before_anything_is_written(
    store: ParticleStore, tmp_path: Path
) -> None:
    some = columns_with_latents(store, np.arange(10))
    everything = choose_all(columns_with_latents(store, np.arange(64)))
    export = Export((tmp_path / "a.star",), cryodrgn=tmp_path / "drgn")
    with pytest.raises(SelectionError, match="54 of 64 selected particles were not trained on and have no latent"):
        export_selection(everything, export, some)
    table = read_particles(Path(store.attributes.source.path)).select(np.arange(30, 64))
    part = convert_serially(plan_conversion(table, tmp_path / "part.zarr", ConversionOptions(contrast="light")))
    columns = columns_with_latents(part, np.arange(34))
    with pytest.raises(SelectionError, match=r"part\.zarr: holds a part of .*particles\.star"):
        export_selection(choose_all(columns), export, columns)
    assert [path.name for path in tmp_path.iterdir()] == ["part.zarr"]
