import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.pose import nearest_rotation, squared_frobenius
from cryoformer_dist.simulation.acquisition import draw_ctf, draw_half_sets, draw_poses


def configured(**values) -> SimulationConfig:
    return SimulationConfig.model_validate({"particles": 40, "box_size": 24, "states": {"truth_volumes": 2}} | values)


@pytest.mark.parametrize(("variance", "expected", "tolerance"), [(0.01, 0.03, 0.05), (0.1, 0.30, 0.12)])
def test_perturbed_rotations_have_the_expected_squared_error(variance, expected, tolerance):
    config = configured(particles=4000, perturbation={"rotation_variance": variance})
    poses = draw_poses(config)
    given, clean = torch.from_numpy(poses.given_rotation), torch.from_numpy(poses.rotation)
    assert squared_frobenius(given, clean).mean() == pytest.approx(expected, rel=tolerance)
    torch.testing.assert_close(given, nearest_rotation(given), atol=1e-5, rtol=0)


def test_perturbed_shifts_are_uniform_in_pixels_of_the_reference_box():
    poses = draw_poses(configured(particles=4000, perturbation={"shift_pixels": 10}))
    pixels = (poses.given_shift_angstrom - poses.shift_angstrom) / (230 / 128)
    assert np.abs(pixels).max() == pytest.approx(10, abs=0.05)
    assert pixels.std() == pytest.approx(20 / 12**0.5, rel=0.03)


def test_defocus_and_astigmatism_fill_their_ranges():
    ctf = draw_ctf(configured(particles=4000))
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    split = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    assert mean.min().item() == pytest.approx(10_000, abs=50)
    assert mean.max().item() == pytest.approx(30_000, abs=50)
    assert split.min() >= 0
    assert split.max().item() == pytest.approx(300, abs=2)
    assert ctf.defocus_angle_deg.min() < 5 < 175 < ctf.defocus_angle_deg.max() <= 180


def test_half_sets_are_equally_large_and_in_random_order():
    half = draw_half_sets(configured(particles=1001))
    assert np.bincount(half).tolist() == [0, 501, 500]
    assert 400 < (half[1:] != half[:-1]).sum() < 600


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rotation": np.eye(3)[None].repeat(40, 0)}, "poses.table: .* lacks shift_angstrom"),
        (
            {"rotation": np.eye(3)[None], "shift_angstrom": np.zeros((1, 2))},
            "1 rows for 40 particles; set poses.rows",
        ),
        ({"rotation": np.ones((40, 3, 3)), "shift_angstrom": np.zeros((40, 2))}, "no rotations"),
        (
            {"rotation": np.eye(3)[None].repeat(40, 0), "shift_angstrom": np.zeros((4, 2))},
            "different lengths",
        ),
    ],
)
def test_unfit_pose_tables_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "poses.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        draw_poses(configured(poses={"table": str(tmp_path / "poses.npz")}))


def test_missing_tables_are_refused_with_their_key(tmp_path):
    for section, draw in (("poses", draw_poses), ("ctf", draw_ctf)):
        for name in ("none.star", "none.npz"):
            with pytest.raises(ConfigError, match=rf"{section}\.table: .*{name}"):
                draw(configured(**{section: {"table": str(tmp_path / name)}}))
