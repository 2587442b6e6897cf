import numpy as np
import pytest
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs

from cryoformer_dist.analysis.reconstruct import write_series
from cryoformer_dist.errors import BackendUnavailableError, ExplorationError
from cryoformer_dist.exploration import filming
from cryoformer_dist.exploration.filming import film_series
from cryoformer_dist.exploration.series import describe_axes, read_series


@pytest.fixture
def folder(tmp_path):
    maps = blobs(np.array([0.0, 40.0]))
    write_series(tmp_path / "volumes", "pc1", maps, VOXEL_SIZE_ANGSTROM, ["", ""])
    write_series(tmp_path / "volumes", "pc2", maps[:1], VOXEL_SIZE_ANGSTROM, [""])
    return tmp_path


def test_axes_with_two_maps_or_more_are_described(folder):
    (along,) = describe_axes(folder)
    assert along.series == "pc1"
    (part,) = along.parts
    assert part.agreement_after > part.agreement_before
    assert abs(along.imbalance) < 0.1


def test_maps_on_other_grids_are_refused(folder):
    write_series(folder, "odd", blobs(np.array([0.0])), 2 * VOXEL_SIZE_ANGSTROM, [""])
    with pytest.raises(ExplorationError, match="another box or voxel size"):
        read_series([folder / "volumes" / "pc1_000.mrc", folder / "odd_000.mrc"])


def test_a_series_of_a_run_or_of_a_folder_is_filmed(folder):
    made = film_series(folder, "pc1", folder / "films" / "a.gif", 120, turntable=False)
    again = film_series(folder / "volumes", "pc1", folder / "b.gif", 120, turntable=False)
    assert made.read_bytes() == again.read_bytes()
    assert [each.name for each in made.parent.iterdir()] == ["a.gif"]


def test_what_cannot_be_filmed_is_refused_before_anything_is_drawn(folder, monkeypatch):
    with pytest.raises(ExplorationError, match="there are pc1, pc2"):
        film_series(folder, "pc9", folder / "a.gif", 120, turntable=False)
    with pytest.raises(ExplorationError, match=r"\.gif or \.mp4"):
        film_series(folder, "pc1", folder / "a.avi", 120, turntable=False)

    def absent():
        raise BackendUnavailableError("no encoder")

    monkeypatch.setattr(filming, "require_encoder", absent)
    with pytest.raises(BackendUnavailableError):
        film_series(folder, "pc1", folder / "a.mp4", 120, turntable=False)
    assert not list(folder.glob("a.*"))
