from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.cluster_maps import back_project_clusters, tell_evidence
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.selection.columns import ParticleColumns, read_columns


@pytest.fixture(scope="module")
def columns(finished_run: Path) -> ParticleColumns:
    return read_columns(finished_run, str(finished_run))


def test_a_cluster_s_map_is_made_of_its_images_alone(finished_run: Path, columns: ParticleColumns) -> None:
    evidence = back_project_clusters(finished_run, columns)
    label = columns.table["kmeans_label"]
    assert [each.particles for each in evidence] == np.bincount(label).tolist()
    for number in range(len(evidence)):
        alone = back_project(columns.store, columns.store_row[label == number])
        written = read_volume(finished_run / "analysis" / f"images_{number:03d}.mrc").voxels
        np.testing.assert_allclose(written, alone.voxels, rtol=1e-5, atol=1e-6)
        half = read_volume(finished_run / "analysis" / f"images_half2_{number:03d}.mrc").voxels
        np.testing.assert_allclose(half, alone.halves[1], rtol=1e-5, atol=1e-6)
        resolution = read_volume(finished_run / "analysis" / f"images_resolution_{number:03d}.mrc")
        told, size = evidence[number].local_resolution, resolution.voxel_size_angstrom
        assert 2 * size - 1e-4 <= told.finest <= told.median <= told.coarsest <= 16 * size / 4 + 1e-4
    assert len(tell_evidence(evidence)) == len(evidence)
    script = (finished_run / "analysis" / "images_resolution.cxc").read_text()
    assert "color sample #1 map #3 palette" in script


def test_images_that_show_no_particle_do_not_count(finished_run: Path, columns: ParticleColumns) -> None:
    junk = np.arange(len(columns)) % 3 == 0
    weighed = replace(columns, table={**columns.table, "weight": (~junk).astype(np.float32)})
    back_project_clusters(finished_run, weighed)
    rows = columns.store_row[(columns.table["kmeans_label"] == 0)]
    weight = (~junk).astype(np.float32)[columns.table["kmeans_label"] == 0]
    written = read_volume(finished_run / "analysis" / "images_000.mrc").voxels.numpy()
    expected = back_project(columns.store, rows[weight > 0]).voxels.numpy()
    # Halves are counted among all images; the whole map is of those that count.
    assert np.corrcoef(written.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.corrcoef(written.ravel(), back_project(columns.store, rows).voxels.numpy().ravel())[0, 1] < 0.999


def test_without_the_run_s_own_maps_there_is_nothing_to_compare_with(columns: ParticleColumns, tmp_path: Path) -> None:
    with pytest.raises(ExplorationError, match="no maps of clusters"):
        back_project_clusters(tmp_path, columns)
