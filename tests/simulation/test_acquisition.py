import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.physics.pose import axis_angle_from_rotation, nearest_rotation, squared_frobenius
from cryoformer_dist.simulation.acquisition import draw_ctf, draw_half_sets, draw_poses, draw_states


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


def test_errors_of_a_refinement_have_the_asked_spread_about_each_axis_and_along_each():
    poses = draw_poses(configured(particles=4000, perturbation={"rotation_sd_deg": 2, "shift_sd_pixels": 0.35}))
    given, clean = torch.from_numpy(poses.given_rotation), torch.from_numpy(poses.rotation)
    turn = torch.rad2deg(axis_angle_from_rotation(given @ clean.mT))
    torch.testing.assert_close(turn.std(0), torch.full((3,), 2.0), rtol=0.05, atol=0)
    assert turn.mean(0).abs().max() < 0.15
    # The length of three Gaussians of standard deviation 1 has its median at 1.538.
    assert turn.norm(dim=-1).median() == pytest.approx(2 * 1.538, rel=0.03)
    pixels = (poses.given_shift_angstrom - poses.shift_angstrom) / (230 / 24)
    np.testing.assert_allclose(pixels.std(0), 0.35, rtol=0.05)
    np.testing.assert_array_equal(poses.rotation, draw_poses(configured(particles=4000)).rotation)


def test_views_crowd_in_the_cap_and_fill_it_evenly():
    poses = draw_poses(configured(particles=4000, nuisances={"views": {"share": 0.5, "cap_deg": 25}}))
    height = poses.rotation[:, 2, 2]
    cap = np.cos(np.deg2rad(25))
    # The others are uniform: a few of them look from the cap as well.
    assert (height > cap).mean() == pytest.approx(0.5 + 0.5 * (1 - cap) / 2, abs=0.025)
    assert (height > (1 + cap) / 2).sum() / (height > cap).sum() == pytest.approx(0.5, abs=0.04)
    assert np.abs(poses.rotation @ poses.rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-5
    around = np.arctan2(poses.rotation[:, 0, 1], poses.rotation[:, 0, 0])
    assert np.histogram(around, bins=4, range=(-np.pi, np.pi))[0].min() > 850
    uniform = draw_poses(configured(particles=4000))
    assert ((poses.rotation == uniform.rotation).all((1, 2))).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(poses.shift_angstrom, uniform.shift_angstrom)


def test_states_crowd_in_the_asked_part():
    crowd = {"share": 0.8, "width": 0.1, "centre": 0.25}
    config = configured(particles=4000, nuisances={"crowd": crowd})
    drawn = draw_states(config, (10.0, 110.0), 0.0, None)
    inside = (drawn.state >= 30) & (drawn.state <= 40)
    assert inside.mean() == pytest.approx(0.8 + 0.2 * 0.1, abs=0.02)
    assert np.histogram(drawn.state[inside], bins=2)[0].min() / inside.sum() > 0.46
    np.testing.assert_array_equal(drawn.coordinate, drawn.state)
    even = draw_states(configured(particles=4000), (10.0, 110.0), 0.0, None)
    np.testing.assert_array_equal(drawn.state[~inside], even.state[~inside])
    np.testing.assert_array_equal(drawn.volume_state, even.volume_state)


def test_the_file_gives_a_wrong_defocus_and_amplitude_contrast_and_the_images_have_the_right_one():
    errors = {"defocus_sd_angstrom": 300, "true_amplitude_contrast": 0.07}
    ctf, exact = (
        draw_ctf(configured(particles=4000, nuisances={"ctf_errors": errors})),
        draw_ctf(configured(particles=4000)),
    )
    off = ctf.given.defocus_u_angstrom - ctf.true.defocus_u_angstrom
    assert off.std().item() == pytest.approx(300, rel=0.04)
    assert abs(off.mean().item()) < 15
    torch.testing.assert_close(ctf.given.defocus_v_angstrom - ctf.true.defocus_v_angstrom, off, atol=0.01, rtol=0)
    torch.testing.assert_close(ctf.true.defocus_u_angstrom, exact.true.defocus_u_angstrom, atol=0, rtol=0)
    np.testing.assert_allclose(ctf.true.amplitude_contrast, 0.07, rtol=1e-6)
    np.testing.assert_allclose(ctf.given.amplitude_contrast, 0.1, rtol=1e-6)


def test_defocus_and_astigmatism_fill_their_ranges():
    ctf = draw_ctf(configured(particles=4000)).true
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
