import mrcfile
import numpy as np
import pytest
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs, decode_circle

from cryoformer_dist.analysis.map_scores import fit_box
from cryoformer_dist.analysis.reconstruct import SeriesPlan, choose_latents, read_all_series, reconstruct, write_series
from cryoformer_dist.errors import StoreError
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.storage.working_folder import WorkingFolder


@pytest.fixture
def latents() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return np.stack([2 * np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def table_of(latents: np.ndarray) -> dict[str, np.ndarray]:
    return {"latent": latents, "source_row": np.arange(len(latents))}


def test_every_map_is_the_decoded_latent_with_its_voxel_size(latents, tmp_path):
    plan = SeriesPlan(clusters=5, axes=2, points=4)
    written = reconstruct(
        WorkingFolder.on_disk(tmp_path), decode_circle, table_of(latents), VOXEL_SIZE_ANGSTROM, plan, ["test"]
    )
    names = [f"kmeans_{i:03d}" for i in range(5)] + [f"pc{k}_{i:03d}" for k in (1, 2) for i in range(4)]
    maps, scripts = written[:-3], written[-3:]
    assert [path.stem for path in maps] == names
    assert [path.name for path in scripts] == ["kmeans.cxc", "pc1.cxc", "pc2.cxc"]
    with np.load(tmp_path / "latent.npz") as table:
        for path in maps:
            name, number = path.stem.split("_")
            volume = read_volume(path)
            expected = decode_circle(table[f"{name}_latent"][int(number)][None])[0]
            np.testing.assert_allclose(volume.voxels.numpy(), expected, atol=1e-6)
            assert volume.voxel_size_angstrom == pytest.approx(VOXEL_SIZE_ANGSTROM)


def test_latent_table_keeps_rows_and_marks_centres(latents, tmp_path):
    source_row = np.arange(400)[::-1].copy()
    weight = np.linspace(0, 1, 400).astype(np.float32)
    table = {"latent": latents, "source_row": source_row, "weight": weight}
    reconstruct(WorkingFolder.on_disk(tmp_path), decode_circle, table, 4.0, SeriesPlan(clusters=5))
    with np.load(tmp_path / "latent.npz", allow_pickle=False) as table:
        np.testing.assert_array_equal(table["latent"], latents)
        np.testing.assert_array_equal(table["source_row"], source_row)
        np.testing.assert_array_equal(table["weight"], weight)
        np.testing.assert_array_equal(table["kmeans_latent"], latents[table["kmeans_row"]])
        assert table["pca"].shape == (400, 2)
        assert table["kmeans_label"].max() == 4
        assert table["explained_variance"].sum() == pytest.approx(1)


def test_a_second_call_leaves_no_map_of_the_first(latents, tmp_path):
    for clusters, axes in ((8, 2), (3, 1)):
        flat = latents * [1, axes - 1]
        plan = SeriesPlan(clusters=clusters, axes=2, points=clusters)
        reconstruct(WorkingFolder.on_disk(tmp_path), decode_circle, table_of(flat.astype(np.float32)), 4.0, plan)
    left = sorted(path.name for path in (tmp_path / "volumes").iterdir())
    assert left == [
        f"{name}{end}" for name in ("kmeans", "pc1") for end in (".cxc", "_000.mrc", "_001.mrc", "_002.mrc")
    ]


def test_latents_that_do_not_vary_give_one_cluster_and_no_axis():
    series = choose_latents(np.ones((50, 3), dtype=np.float32), np.arange(50), SeriesPlan())
    assert list(series.latents) == ["kmeans"]
    assert len(series.latents["kmeans"]) == 1


def test_rows_of_another_run_are_refused(latents):
    with pytest.raises(StoreError, match="one run"):
        choose_latents(latents, np.arange(399), SeriesPlan())


def test_series_replaces_only_its_own_name(tmp_path):
    for name, count in (("state", 3), ("pc1", 2), ("state", 1)):
        write_series(tmp_path, name, iter(blobs(np.arange(1.0 * count))), 4.0, ["angle"] * count)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["pc1.cxc", "pc1_000.mrc", "pc1_001.mrc", "state.cxc", "state_000.mrc"]


def test_a_script_names_the_maps_beside_it_and_what_they_show(tmp_path):
    write_series(tmp_path, "pc1", blobs(np.arange(2.0)), 4.0, ["3 particles", "5 particles"])
    lines = (tmp_path / "pc1.cxc").read_text().splitlines()
    assert "# pc1_001.mrc: pc1 2 of 2: 5 particles" in lines
    opened = next(line.split() for line in lines if line.startswith("open"))
    assert all((tmp_path / name).is_file() for name in opened[1:3])
    assert "pc1 2 of 2: 5 particles" in mrcfile.open(tmp_path / "pc1_001.mrc").get_labels()


def test_series_are_read_as_written_and_no_finer_than_asked(latents, tmp_path):
    plan = SeriesPlan(clusters=3, axes=1, points=2)
    written = reconstruct(WorkingFolder.on_disk(tmp_path), decode_circle, table_of(latents), 4.0, plan)
    series = read_all_series(tmp_path)
    assert {name: maps.shape[0] for name, maps in series.items()} == {"kmeans": 3, "pc1": 2}
    np.testing.assert_array_equal(series["pc1"][1], read_volume(written[4]).voxels.numpy())
    coarse = read_all_series(tmp_path, "kmeans", finest_box=8)
    assert list(coarse) == ["kmeans"]
    np.testing.assert_array_equal(coarse["kmeans"][2], fit_box(series["kmeans"][2], 8))
    np.testing.assert_array_equal(read_all_series(tmp_path, finest_box=32)["pc1"], series["pc1"])
