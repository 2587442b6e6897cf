import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, write_set

from cryoformer_dist.data import convert
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, CryoFormerError, CryoFormerWarning, StoreError, StoreNotFoundError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.physics.fourier import spectrum
from cryoformer_dist.runs.directory import (
    load_first_latents,
    load_first_maps,
    load_lattice,
    load_run,
    load_shell_weight,
    load_spectrum,
    open_run_store,
    selected_rows,
    store_at_first_poses,
)
from cryoformer_dist.training.preparation import prepare_run


def _prepared(store: ParticleStore, run: Path, **changes: object) -> Path:
    prepare_run(tiny_config(store.path, changes), store, run, resume=False)  # type: ignore[arg-type]
    return run


def test_the_lattice_of_a_run_is_its_occupancy(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    lattice = load_lattice(load_run(run)[0], run)
    assert torch.equal(lattice.flat_index, torch.nonzero(sphere(16).ravel())[:, 0])
    assert lattice.offsets_pixels.shape == (2, 3)


def test_a_run_s_store_is_opened_only_where_and_if_it_is_the_one(store: ParticleStore, tmp_path: Path) -> None:
    at = shutil.copytree(store.path, tmp_path / "at.zarr")
    run = _prepared(ParticleStore.open(at), tmp_path / "run")
    assert open_run_store(load_run(run)[1]).fingerprint == store.fingerprint
    at.rename(tmp_path / "moved.zarr")
    remedy = r"dataset\.store in the run file and `train --resume`"
    with pytest.raises(StoreNotFoundError, match=rf"at\.zarr: the store of run 'tiny' is not there.*{remedy}"):
        open_run_store(load_run(run)[1])
    shutil.copytree(write_set(tmp_path / "other", particles=32), at)
    with pytest.raises(StoreError, match=rf"at\.zarr: another store than that of run 'tiny'.*{remedy}"):
        open_run_store(load_run(run)[1])


def test_half_sets_are_kept_apart(store: ParticleStore) -> None:
    half_set = store.particles().half_set
    rows = {half: selected_rows(tiny_config(store.path, {"dataset.half": half}), store) for half in ("both", 1, 2)}
    assert rows["both"].tolist() == list(range(64))
    assert (half_set[rows[1]] == 1).all()
    assert (half_set[rows[2]] == 2).all()
    assert sorted([*rows[1], *rows[2]]) == list(range(64))
    assert min(len(rows[1]), len(rows[2])) > 16


def test_a_half_set_that_the_store_does_not_know_is_refused(store: ParticleStore, tmp_path: Path) -> None:
    from support.simulated_particles import write_particles

    table = write_particles(tmp_path / "p", particles=20, box=16, half_set=False)
    options = convert.ConversionOptions(contrast="light")
    unknown = convert.convert_serially(convert.plan_conversion(table, tmp_path / "s.zarr", options))
    with pytest.raises(StoreError, match=r"s\.zarr: no particle belongs to half-set 1.*dataset\.half to both"):
        selected_rows(tiny_config(unknown.path, {"dataset.half": 1}), unknown)


def test_a_half_set_that_nothing_is_in_is_refused_with_the_one_that_all_are_in(tmp_path: Path) -> None:
    from support.simulated_particles import write_particles

    table = write_particles(tmp_path / "p", particles=20, box=16)
    table = replace(table, half_set=np.ones_like(table.half_set))
    with pytest.warns(CryoFormerWarning, match="all 20 particles are in half-set 1"):
        plan = convert.plan_conversion(table, tmp_path / "s.zarr", convert.ConversionOptions(contrast="light"))
    first = convert.convert_serially(plan)
    with pytest.raises(StoreError, match="half-set 2: all particles are in half-set 1"):
        selected_rows(tiny_config(first.path, {"dataset.half": 2}), first)


@pytest.mark.parametrize("kept", [64, 100])
def test_holding_out_everything_is_refused(store: ParticleStore, kept: int) -> None:
    with pytest.raises(StoreError, match=rf"dataset\.hold_out {kept} leaves none of 64 particles"):
        selected_rows(tiny_config(store.path, {"dataset.hold_out": kept}), store)


def test_the_spectrum_of_a_run_is_that_of_its_consensus(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    found = load_spectrum(tiny_config(store.path, {"model.domain": "fourier"}), run)
    assert found is not None
    assert torch.equal(found, spectrum(read_volume(run / "consensus.mrc").voxels))
    assert float(found.max()) > 0
    assert load_spectrum(tiny_config(store.path), run) is None


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        load_run(tmp_path)


def test_the_manifest_is_plain_json(store: ParticleStore, tmp_path: Path) -> None:
    manifest = json.loads((_prepared(store, tmp_path / "run") / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert np.isfinite(manifest["pixel_size_angstrom"])


def test_a_manifest_that_contradicts_its_store_is_damaged(store: ParticleStore, tmp_path: Path) -> None:
    run = _prepared(store, tmp_path / "run")
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"box_size": 16', '"box_size": 18'))
    with pytest.raises(ConfigError, match=r"run 'tiny': its manifest\.json is damaged: it says box 18 .* has 16"):
        open_run_store(load_run(run)[1])


@pytest.mark.parametrize(
    ("name", "load", "last"),
    [
        ("first_latents.npy", load_first_latents, "first_latents.npy"),
        ("first_maps.npy", load_first_maps, "first_latents.npy"),
        ("shell_weight.npy", load_shell_weight, "occupancy.mrc"),
    ],
)
def test_a_cut_first_estimate_is_named_with_how_to_make_it_again(tmp_path: Path, name, load, last) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / name, np.ones((9, 2), np.float32))
    assert load(tmp_path).shape == (9, 2)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(CryoFormerError, match=rf"{name}: cut, damaged.*remove {last} from the run directory"):
        load(tmp_path)


def test_cut_first_poses_are_named(store: ParticleStore, tmp_path: Path) -> None:
    (tmp_path / "first_poses.npz").write_bytes(b"PK\3\4")
    with pytest.raises(CryoFormerError, match=r"first_poses\.npz: cut, damaged.*--resume makes it again"):
        store_at_first_poses(tmp_path, store)
