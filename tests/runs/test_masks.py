from pathlib import Path

import pytest
import torch
from support.tiny_runs import tiny_config

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.io.mrc import write_volume
from cryoformer_dist.physics.grids import radius_grid
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.masks import bring_mask, load_focus, load_given_mask, read_masks, write_masks

BOX, VOXEL = 16, 3.0


def _ball(box: int, radius: float, at: tuple[float, float, float] = (0, 0, 0), edge: float = 1.0) -> torch.Tensor:
    """Ball whose soft edge is 1 within ``radius`` voxels and 0 beyond ``radius + edge``."""
    axes = torch.meshgrid(*[torch.arange(box) - box // 2 - shift for shift in at], indexing="ij")
    distance = torch.stack(list(axes)).float().square().sum(0).sqrt()
    return (1 - (distance - radius) / edge).clamp(0, 1)


def _written(path: Path, voxels: torch.Tensor, voxel_size: float) -> Path:
    write_volume(path, Volume(voxels, voxel_size))
    return path


def _brought(path: Path) -> torch.Tensor:
    return bring_mask(f"training.mask: {path}", path, BOX, VOXEL)


def test_a_mask_of_the_same_lattice_is_taken_as_it_is(tmp_path: Path) -> None:
    mask = _ball(BOX, 4.0, (1, 0, -1))
    torch.testing.assert_close(_brought(_written(tmp_path / "m.mrc", mask, VOXEL)), mask, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("box", "voxel"), [(32, 1.5), (40, 1.5), (10, 4.0), (24, 3.0)])
def test_a_mask_of_any_box_and_voxel_size_covers_the_same_place_in_space(
    tmp_path: Path, box: int, voxel: float
) -> None:
    place = tuple(angstrom / voxel for angstrom in (3.0, -3.0, 0.0))
    mask = _ball(box, 12.0 / voxel, place, 6.0 / voxel)  # type: ignore[arg-type]
    expected = _ball(BOX, 12.0 / VOXEL, (1, -1, 0), 6.0 / VOXEL)
    found = _brought(_written(tmp_path / "m.mrc", mask, voxel))
    assert (found - expected).abs().max() < 0.2
    assert ((found > 0.5) != (expected > 0.5)).sum() <= 0.03 * (expected > 0.5).sum()


def test_what_is_no_mask_of_these_particles_is_refused_by_name(tmp_path: Path) -> None:
    ball = _ball(BOX, 4.0)
    for name, voxels, voxel, message in (
        ("map", 30 * ball, VOXEL, r"training\.mask: .*map\.mrc: values from 0 to 30: .*`cryoformer-dist mask"),
        ("header", ball, 1.0, r"has the 16 voxels a side of the particles, of 1 angstrom where theirs have 3"),
        ("empty", 0.3 * ball, VOXEL, r"no voxel above 0\.5 where density can be"),
        ("wide", _ball(32, 12.0), VOXEL, r"9\d?% of it lies outside the ball|\d\d% of it lies outside the ball"),
    ):
        with pytest.raises(ConfigError, match=message):
            _brought(_written(tmp_path / f"{name}.mrc", voxels, voxel))
    with pytest.raises(ConfigError, match=r"gone\.mrc: no such file"):
        _brought(tmp_path / "gone.mrc")


def test_masks_are_kept_in_the_run_directory_and_read_from_there(store: ParticleStore, tmp_path: Path) -> None:
    voxel = store.pixel_size_angstrom
    solvent, focus = _ball(BOX, 5.0), _ball(BOX, 2.0, (0, 0, 3))
    changes = {
        "training.occupancy": "data",
        "training.mask": str(_written(tmp_path / "a.mrc", solvent, voxel)),
        "training.focus_mask": str(_written(tmp_path / "b.mrc", focus, voxel)),
    }
    run = tmp_path / "run"
    run.mkdir()
    assert load_given_mask(run) is load_focus(run) is None
    write_masks(run, read_masks(tiny_config(store.path, changes), store), voxel)
    (tmp_path / "a.mrc").unlink()
    given, kept = load_given_mask(run), load_focus(run)
    assert given is not None
    assert kept is not None
    assert torch.equal(given, (solvent > 0.5) & sphere(BOX))
    torch.testing.assert_close(kept, focus, rtol=0, atol=1e-6)


def test_a_focus_outside_the_solvent_mask_is_refused(store: ParticleStore, tmp_path: Path) -> None:
    voxel = store.pixel_size_angstrom
    changes = {
        "training.occupancy": "data",
        "training.mask": str(_written(tmp_path / "a.mrc", (radius_grid(BOX, 3) < 2).float(), voxel)),
        "training.focus_mask": str(_written(tmp_path / "b.mrc", _ball(BOX, 1.0, (0, 0, 5)), voxel)),
    }
    with pytest.raises(ConfigError, match=r"training\.focus_mask: lies where no density is allowed"):
        read_masks(tiny_config(store.path, changes), store)
