from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.analysis.map_fsc import write_curves
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.physics.fourier import FSCCurve
from cryoformer_dist.runs.layout import HALF_MAPS_CURVES, HALVES
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.files import list_maps, read_curves, read_map, read_progress


def test_a_run_that_is_done_says_so_and_tells_every_report(working: WorkingFolder) -> None:
    progress = read_progress(working)
    records = read_training_log(working.folder)
    assert (progress.newest_step, progress.finished) == (records[-1].step, True)
    np.testing.assert_array_equal(progress.records["step"], [record.step for record in records])
    np.testing.assert_allclose(progress.records["loss"], [record.loss for record in records], rtol=1e-6)
    assert f"step {records[-1].step}/" in progress.told


def test_before_the_first_report_there_is_nothing_to_tell(tmp_path: Path) -> None:
    progress = read_progress(WorkingFolder.on_disk(tmp_path))
    assert (progress.newest_step, progress.finished, progress.told) == (None, False, "")
    assert all(len(values) == 0 for values in progress.records.values())


def test_maps_of_a_run_are_those_it_wrote_and_no_other_file(run: Path) -> None:
    names = list_maps(run)
    assert {"consensus.mrc", "occupancy.mrc", "volumes/kmeans_000.mrc"} <= set(names)
    assert all(len(set(read_map(run, name).voxels.shape)) == 1 for name in names)
    for name in ("volumes/../manifest.json", "/etc/passwd", "", "checkpoints"):
        with pytest.raises(SelectionError, match="no map of this run"):
            read_map(run, name)


def test_curves_are_read_as_written(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    curves = {"unmasked": FSCCurve(torch.linspace(1, 0, 8), 16, 2.0), "masked": FSCCurve(torch.ones(8), 16, 2.0)}
    write_curves(tmp_path / HALVES / HALF_MAPS_CURVES, curves)
    (table,) = read_curves(tmp_path).values()
    np.testing.assert_allclose(table["unmasked"], curves["unmasked"].correlation, atol=1e-6)
    np.testing.assert_allclose(table["frequency_per_angstrom"], np.arange(8) / 32, atol=1e-6)
    assert np.isinf(table["resolution_angstrom"][0])
