import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.io.mrc import open_stack, read_volume, write_volume
from cryoformer_dist.io.reading import check_stacks, read_particles
from cryoformer_dist.io.relion import write_star
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import crop_images, fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, lattice_points
from cryoformer_dist.physics.projection import project_points
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.simulation.acquisition import draw_ctf, draw_half_sets, draw_poses
from cryoformer_dist.simulation.imaging import Views
from cryoformer_dist.simulation.nuisances import Junk
from cryoformer_dist.simulation.particle_set import simulate
from cryoformer_dist.simulation.scene import make_scene

CLEAN_CTF = {"ctf": {"apply": False}}
CLEAN = {"snr": None, "ctf": {"apply": False}}


def configured(**values) -> SimulationConfig:
    return SimulationConfig.model_validate({"particles": 40, "box_size": 24, "states": {"truth_volumes": 2}} | values)


def images_of(simulated) -> torch.Tensor:
    stacks = [open_stack(path) for path in simulated.stacks]
    return torch.from_numpy(np.concatenate([stack.read(range(len(stack))) for stack in stacks]))


def truth_of(simulated) -> dict[str, np.ndarray]:
    with np.load(simulated.truth / "truth.npz") as file:
        return dict(file)


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_band_error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Relative error inside the Nyquist circle: no map on a lattice says what is in an image's corners."""
    box = found.shape[-1]
    inside = frequency_grid(box).norm(dim=-1) < 0.5
    a, b = image_to_fourier(found) * inside, image_to_fourier(expected) * inside
    return (a - b).abs().square().sum((-2, -1)).sqrt() / b.abs().square().sum((-2, -1)).sqrt()


def reprojected(simulated, rows: np.ndarray, volume: np.ndarray) -> torch.Tensor:
    """Images of the truth maps at the true poses, by the program's projector."""
    truth, box = truth_of(simulated), simulated.box_size
    maps = [read_volume(simulated.truth / f"volume_{number:03d}.mrc").voxels.reshape(-1) for number in volume]
    shift = torch.from_numpy(-truth["shift_angstrom"][rows] / simulated.pixel_size_angstrom)
    rotation = torch.from_numpy(truth["rotation"][rows])
    return fourier_to_image(project_points(torch.stack(maps), lattice_points(box), rotation, shift, box), box)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return simulate(configured(particles=1100, seed=5), tmp_path_factory.mktemp("noisy") / "set")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return simulate(configured(particles=1100, seed=5, snr=None), tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    config = configured(states={"kind": "discrete", "count": 3}, **CLEAN)
    return simulate(config, tmp_path_factory.mktemp("classes") / "set")


def test_measured_signal_to_noise_ratio_is_the_asked_one(noisy, clean):
    signal = images_of(clean).double() * 0.1**0.5
    noise = images_of(noisy).double() - signal
    ratio = signal.var(dim=(1, 2), correction=0).mean() / noise.var()
    assert ratio == pytest.approx(0.1, rel=0.05)
    assert noise.std() == pytest.approx(1.0, rel=0.01)
    assert abs(noise.mean()) < 0.005


def test_noise_is_white_and_equally_strong_in_every_image(noisy, clean):
    noise = images_of(noisy) - images_of(clean) * 0.1**0.5
    power = image_to_fourier(noise).abs().square().mean(0) / 24**2
    frequency = frequency_grid(24).norm(dim=-1)
    assert power[frequency < 0.2].mean() == pytest.approx(power[frequency > 0.4].mean().item(), rel=0.03)
    strength = noise.var(dim=(1, 2))
    assert strength.std() / strength.mean() < 1.3 * (2 / 24**2) ** 0.5


def test_noise_made_at_a_larger_box_weakens_with_the_crop(tmp_path):
    small = configured(particles=120, box_size=16, snr_box=32)
    noisy = images_of(simulate(small, tmp_path / "noisy")).double()
    clean = images_of(simulate(small.model_copy(update={"snr": None}), tmp_path / "clean")).double()
    signal = clean * 2 * 0.1**0.5
    noise = noisy - signal
    # The empty Nyquist lines of a cropped image hold no noise.
    assert noise.std() == pytest.approx(15 / 16, rel=0.02)
    large = small.model_copy(update={"box_size": 32, "snr": None})
    full = images_of(simulate(large, tmp_path / "full")).double()
    torch.testing.assert_close(clean, crop_images(full, 16), atol=1e-4, rtol=1e-4)
    ratio = signal.var(dim=(1, 2)).mean() / noise.var()
    kept = clean.var(dim=(1, 2)).mean() / full.var(dim=(1, 2)).mean()
    assert ratio == pytest.approx(4 * 0.1 * kept.item(), rel=0.2)
    assert ratio > 0.2


def test_projection_of_a_truth_volume_is_the_noise_free_image(classes):
    rows = np.arange(24)
    expected = reprojected(classes, rows, truth_of(classes)["state"][rows].astype(int))
    images = images_of(classes)[rows]
    assert in_band_error(expected, images).max() < 2e-2
    wrong = reprojected(classes, rows, (truth_of(classes)["state"][rows].astype(int) + 1) % 3)
    assert in_band_error(wrong, images).median() > 0.1


def test_truth_volumes_of_a_cropped_set_keep_the_images_scale(tmp_path):
    config = configured(
        box_size=16, snr_box=32, states={"kind": "discrete", "count": 2}, resolution_angstrom=45, **CLEAN
    )
    simulated = simulate(config, tmp_path / "set")
    rows = np.arange(10)
    expected = reprojected(simulated, rows, truth_of(simulated)["state"][rows].astype(int))
    assert in_band_error(expected, images_of(simulated)[rows]).max() < 2e-2


def test_images_are_light_on_dark_and_density_is_positive(classes):
    volume = read_volume(classes.truth / "volume_000.mrc")
    assert volume.voxel_size_angstrom == pytest.approx(230 / 24, rel=1e-5)
    assert volume.voxels.min() > -0.06 * volume.voxels.max()
    images = images_of(classes)
    assert (images[:, 10:14, 10:14].mean((1, 2)) > images[:, :2].mean((1, 2))).all()


def test_ctf_is_applied_with_a_positive_sign(tmp_path):
    config = configured(snr=None, particles=12)
    with_ctf = simulate(config, tmp_path / "ctf")
    without = simulate(
        config.model_copy(update={"ctf": config.ctf.model_copy(update={"apply": False})}), tmp_path / "no"
    )
    params = read_particles(with_ctf.star).ctf_params()
    ctf = contrast_transfer_function(params, frequency_grid(24)[None] / with_ctf.pixel_size_angstrom)
    expected = fourier_to_image(image_to_fourier(images_of(without)) * ctf, 24)
    found = images_of(with_ctf)
    scale = (found * expected).sum() / expected.square().sum()
    assert scale > 0
    torch.testing.assert_close(found, scale * expected, atol=2e-3, rtol=0)


def test_set_without_ctf_says_so_in_its_star(classes):
    params = read_particles(classes.star).ctf_params()
    ctf = contrast_transfer_function(params, frequency_grid(24)[None] / classes.pixel_size_angstrom)
    torch.testing.assert_close(ctf, torch.ones_like(ctf), atol=1e-5, rtol=0)


def test_shift_moves_the_content_by_minus_the_shift(tmp_path):
    moved = simulate(configured(**CLEAN, poses={"max_shift_fraction": 0.1}), tmp_path / "moved")
    still = simulate(configured(**CLEAN, poses={"max_shift_fraction": 0.0}), tmp_path / "still")
    np.testing.assert_array_equal(truth_of(moved)["rotation"], truth_of(still)["rotation"])
    shift = torch.from_numpy(truth_of(moved)["shift_angstrom"]) / moved.pixel_size_angstrom
    phase = torch.exp(2j * torch.pi * torch.einsum("hwk,bk->bhw", frequency_grid(24), shift))
    expected = fourier_to_image(image_to_fourier(images_of(still)) * phase, 24)
    assert shift.abs().max() > 1.5
    assert in_band_error(images_of(moved), expected).max() < 1e-2


def test_random_streams_do_not_touch_each_other(tmp_path):
    base = simulate(configured(), tmp_path / "base")
    quiet = simulate(configured(snr=10.0), tmp_path / "quiet")
    other_noise = simulate(configured(noise_seed=99), tmp_path / "other")
    for changed in (quiet, other_noise):
        assert changed.star.read_text() == base.star.read_text()
        for name, values in truth_of(base).items():
            np.testing.assert_array_equal(values, truth_of(changed)[name])
    assert not torch.equal(images_of(base), images_of(other_noise))
    still = draw_poses(configured(poses={"max_shift_fraction": 0.0}, perturbation={"rotation_variance": 0.1}))
    np.testing.assert_array_equal(still.rotation, draw_poses(configured()).rotation)
    np.testing.assert_array_equal(draw_poses(configured(seed=1)).rotation == still.rotation, False)


def test_same_configuration_gives_the_same_bytes(tmp_path):
    config = configured(perturbation={"rotation_variance": 0.1, "shift_pixels": 10})
    for name in ("first", "second"):
        simulate(config, tmp_path / name)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    simulate(config.model_copy(update={"seed": 1}), tmp_path / "third")
    first, third = bytes_of(tmp_path / "first"), bytes_of(tmp_path / "third")
    assert first.keys() == third.keys()
    assert not {name for name in first if first[name] == third[name]}


def test_star_gives_the_perturbed_poses_and_the_truth_the_clean_ones(tmp_path):
    config = configured(perturbation={"rotation_variance": 0.1, "shift_pixels": 10})
    simulated, poses = simulate(config, tmp_path / "set"), draw_poses(config)
    table = read_particles(simulated.star)
    check_stacks(table)
    np.testing.assert_allclose(table.rotation, poses.given_rotation, atol=1e-5)
    np.testing.assert_allclose(table.shift_angstrom, poses.given_shift_angstrom, atol=1e-4)
    np.testing.assert_array_equal(truth_of(simulated)["rotation"], poses.rotation)
    np.testing.assert_array_equal(truth_of(simulated)["shift_angstrom"], poses.shift_angstrom)
    found, drawn = table.ctf_params(), draw_ctf(config).given
    for name in drawn.__dataclass_fields__:
        torch.testing.assert_close(getattr(found, name), getattr(drawn, name), atol=1e-3, rtol=1e-6)
    (group,) = table.optics
    assert (group.pixel_size_angstrom, group.box_size) == (pytest.approx(230 / 24, abs=1e-6), 24)
    np.testing.assert_array_equal(table.half_set, draw_half_sets(config))
    clean = simulate(configured(), tmp_path / "clean")
    assert torch.equal(images_of(clean), images_of(simulated))


def test_with_nothing_unkind_an_image_is_its_scaled_signal_and_white_noise_to_the_bit(tmp_path):
    config = configured()
    simulated, scene = simulate(config, tmp_path / "set"), make_scene(config)
    poses = scene.poses
    views = Views(scene.states.coordinate, *map(torch.from_numpy, (poses.rotation, poses.shift_angstrom)))
    ctf = contrast_transfer_function(scene.ctf.true, frequency_grid(24)[None] / config.pixel_size_angstrom)
    signal = fourier_to_image(scene.imager.project(views) * ctf, 24)
    strength = (0.1 / float(signal.double().var(dim=(1, 2), correction=0).mean())) ** 0.5
    noise = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(4,))).standard_normal(signal.shape, np.float32)
    assert torch.equal(images_of(simulated), signal * strength + torch.from_numpy(noise))
    truth = truth_of(simulated)
    assert (truth["junk"].any(), set(truth["amplitude"].tolist()), truth["offset"].any()) == (False, {1.0}, False)


def test_contrast_multiplies_the_signal_and_background_is_added_after_the_noise(tmp_path):
    plain, clean = simulate(configured(), tmp_path / "plain"), simulate(configured(snr=None), tmp_path / "clean")
    brightness = {"contrast_sd": 0.3, "offset_sd": 0.5, "gradient_sd": 0.2}
    config = configured(nuisances={"brightness": brightness})
    uneven = simulate(config, tmp_path / "uneven")
    truth, signal = truth_of(uneven), images_of(clean) * 0.1**0.5
    amplitude = torch.from_numpy(truth["amplitude"])
    assert amplitude.std() > 0.15
    axis = (torch.arange(24.0) - 12) / 12
    along_x, along_y = torch.from_numpy(truth["gradient"]).T[:, :, None, None]
    background = torch.from_numpy(truth["offset"])[:, None, None] + along_x * axis + along_y * axis[:, None]
    expected = images_of(plain) + (amplitude - 1)[:, None, None] * signal + background
    torch.testing.assert_close(images_of(uneven), expected, atol=2e-5, rtol=1e-4)
    assert uneven.star.read_text() == plain.star.read_text()


def test_colour_changes_the_noise_alone_and_keeps_the_ratio(tmp_path, noisy, clean):
    shaded = configured(particles=1100, seed=5, nuisances={"noise": {"ratio": 21, "shape": "power_law"}})
    signal = images_of(clean) * 0.1**0.5
    noise = images_of(simulate(shaded, tmp_path / "shaded")) - signal
    assert noise.var() == pytest.approx((images_of(noisy) - signal).var().item(), rel=0.02)
    power = image_to_fourier(noise).abs().square().mean(0)
    first, nyquist = (power[0, 1] + power[1, 0]) / 2, (power[0, 12] + power[12, 0]) / 2
    assert first / nyquist == pytest.approx(21, rel=0.15)


def test_ice_takes_its_share_of_the_noise_and_adds_none(tmp_path, noisy, clean):
    config = configured(particles=1100, seed=5, nuisances={"noise": {"ice_share": 0.5}})
    signal = images_of(clean) * 0.1**0.5
    noise = images_of(simulate(config, tmp_path / "icy")) - signal
    white = images_of(noisy) - signal
    assert noise.var() == pytest.approx(1, rel=0.02)
    ice = noise - white * 0.5**0.5
    assert ice.var() == pytest.approx(0.5, rel=0.02)
    ctf = contrast_transfer_function(draw_ctf(config).true, frequency_grid(24)[None] / config.pixel_size_angstrom)
    power = image_to_fourier(ice).abs().square()
    passed = ctf.square() > 0.5
    assert power[~passed].mean() < 0.4 * power[passed].mean()


def test_junk_is_named_in_the_truth_and_leaves_particles_as_they_were(tmp_path):
    plain = simulate(configured(snr=10), tmp_path / "plain")
    shares = {"empty": 0.2, "neighbours": 0.2, "blobs": 0.2}
    spoilt = simulate(configured(snr=10, nuisances={"junk": shares}), tmp_path / "spoilt")
    kind = truth_of(spoilt)["junk"]
    assert np.bincount(kind).tolist() == [16, 8, 8, 8]
    same = (images_of(plain) == images_of(spoilt)).all(-1).all(-1).numpy()
    np.testing.assert_array_equal(same, kind == Junk.NONE)
    empty = images_of(spoilt)[kind == Junk.EMPTY]
    assert empty.var() == pytest.approx(1, rel=0.05)
    # The signal is ten times as strong as the noise wherever there is any.
    assert images_of(spoilt)[kind != Junk.EMPTY].var(dim=(1, 2)).min() > 1.5


def test_truth_has_the_right_defocus(tmp_path):
    errors = {"defocus_sd_angstrom": 300, "true_amplitude_contrast": 0.07}
    config = configured(nuisances={"ctf_errors": errors})
    simulated = simulate(config, tmp_path / "set")
    truth, table, drawn = truth_of(simulated), read_particles(simulated.star), draw_ctf(config)
    np.testing.assert_array_equal(truth["defocus_u_angstrom"], drawn.true.defocus_u_angstrom)
    np.testing.assert_allclose(table.defocus_v_angstrom, drawn.given.defocus_v_angstrom, rtol=1e-6)
    assert [group.amplitude_contrast for group in table.optics] == [pytest.approx(0.1)]


def test_sessions_have_their_own_dose_and_pixels_in_stacks_of_their_own(tmp_path):
    groups = ({"snr": 5.0, "weight": 3}, {"snr": 1.0, "pixel_size_angstrom": 12})
    config = configured(particles=400, images_per_stack=200, nuisances={"optics_groups": groups}, **CLEAN_CTF)
    simulated = simulate(config, tmp_path / "set")
    table = read_particles(simulated.star)
    check_stacks(table)
    assert [len(open_stack(path)) for path in simulated.stacks] == [200, 100, 100]
    assert [group.pixel_size_angstrom for group in table.optics] == [pytest.approx(230 / 24), 12.0]
    np.testing.assert_array_equal(table.optics_group, np.repeat([0, 1], [300, 100]))
    variance = images_of(simulated).var(dim=(1, 2))
    assert variance[:300].mean() == pytest.approx(6, rel=0.05)
    assert variance[300:].mean() == pytest.approx(2, rel=0.05)


def test_continuous_states_fill_the_arc_and_references_stand_at_bin_centres(noisy):
    truth = truth_of(noisy)
    assert truth["state"].min() >= 0
    assert truth["state"].max() <= 100
    assert np.histogram(truth["state"], bins=4, range=(0, 100))[0].min() > 200
    assert truth["volume_state"].tolist() == [25.0, 75.0]
    assert (float(truth["period"]), bool(truth["discrete"])) == (0.0, False)


def test_full_turn_says_its_period(tmp_path):
    config = configured(particles=6, source={"kind": "phantom", "arc_deg": 360})
    assert truth_of(simulate(config, tmp_path / "turn"))["period"] == 360.0
    stepped = config.model_copy(update={"states": configured(states={"kind": "discrete", "count": 4}).states})
    truth = truth_of(simulate(stepped, tmp_path / "steps"))
    assert (float(truth["period"]), truth["volume_state"].tolist()) == (4.0, [0.0, 1.0, 2.0, 3.0])


def test_discrete_set_has_only_its_states_in_the_asked_shares(tmp_path, classes):
    truth = truth_of(classes)
    assert set(truth["state"].tolist()) == {0.0, 1.0, 2.0}
    assert (truth["volume_state"].tolist(), bool(truth["discrete"])) == ([0.0, 1.0, 2.0], True)
    shares = configured(particles=300, states={"kind": "discrete", "count": 3, "weights": [1, 0, 3]})
    state = truth_of(simulate(shares, tmp_path / "shares"))["state"]
    assert set(state.tolist()) == {0.0, 2.0}
    assert (state == 2).mean() == pytest.approx(0.75, abs=0.08)


def test_frames_of_a_trajectory_are_the_default_classes(tmp_path):
    frames = np.random.default_rng(0).normal(scale=25, size=(4, 200, 3))
    np.savez(tmp_path / "path.npz", coords=frames)
    source = {"kind": "models", "path": str(tmp_path / "path.npz")}
    config = configured(source=source, states={"kind": "discrete"}, **CLEAN)
    simulated = simulate(config.model_copy(update={"box_length_angstrom": 300.0}), tmp_path / "set")
    assert set(truth_of(simulated)["state"].tolist()) == {0.0, 1.0, 2.0, 3.0}
    rows = np.arange(8)
    expected = reprojected(simulated, rows, truth_of(simulated)["state"][rows].astype(int))
    assert in_band_error(expected, images_of(simulated)[rows]).max() < 3e-2


def test_maps_are_imaged_as_the_atoms_they_came_from(tmp_path, classes):
    paths = [str(classes.truth / f"volume_{number:03d}.mrc") for number in range(3)]
    config = configured(source={"kind": "volumes", "paths": paths}, states={"kind": "discrete"}, **CLEAN)
    simulated = simulate(config, tmp_path / "set")
    assert in_band_error(images_of(simulated), images_of(classes)).max() < 3e-2
    first = read_volume(Path(paths[0])).voxels
    again = read_volume(simulated.truth / "volume_000.mrc").voxels
    assert torch.corrcoef(torch.stack([first.ravel(), again.ravel()]))[0, 1] > 0.999


def test_poses_and_ctf_come_from_tables_in_order_or_at_random(tmp_path, noisy):
    star, table = str(noisy.star), read_particles(noisy.star)
    in_order = simulate(configured(poses={"table": star}, ctf={"table": star}), tmp_path / "order")
    copied = read_particles(in_order.star)
    np.testing.assert_allclose(copied.rotation, table.rotation[:40], atol=1e-5)
    np.testing.assert_allclose(copied.shift_angstrom, table.shift_angstrom[:40], atol=1e-5)
    np.testing.assert_allclose(copied.defocus_u_angstrom, table.defocus_u_angstrom[:40], rtol=1e-6)
    np.savez(tmp_path / "poses.npz", rotation=table.rotation[:5], shift_angstrom=table.shift_angstrom[:5])
    drawn = draw_poses(configured(poses={"table": str(tmp_path / "poses.npz"), "rows": "random"}))
    distance = np.abs(drawn.rotation[:, None] - table.rotation[None, :5]).max((2, 3))
    assert (distance.min(1) < 1e-6).all()
    assert set(distance.argmin(1).tolist()) == {0, 1, 2, 3, 4}


def test_long_sets_are_split_into_stacks_in_order(tmp_path):
    whole = simulate(configured(), tmp_path / "whole")
    split = simulate(configured(images_per_stack=15), tmp_path / "split")
    assert [path.name for path in split.stacks] == [f"particles_{number:03d}.mrcs" for number in range(3)]
    assert [len(open_stack(path)) for path in split.stacks] == [15, 15, 10]
    table = read_particles(split.star)
    check_stacks(table)
    assert (table.stack[17], table.stack_index[17]) == (1, 2)
    torch.testing.assert_close(images_of(split), images_of(whole), atol=1e-5, rtol=1e-5)


def test_progress_counts_up_to_all_particles(tmp_path):
    seen = []
    simulate(configured(particles=600), tmp_path / "set", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_interrupted_simulation_leaves_no_star_and_no_stack(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(configured(), tmp_path / "set", stop)
    assert not list((tmp_path / "set").rglob("particles*"))


def test_a_finished_set_is_not_overwritten_unless_asked(tmp_path):
    first = simulate(configured(images_per_stack=15, states={"truth_volumes": 3}), tmp_path / "set")
    before = bytes_of(tmp_path / "set")
    with pytest.raises(ConfigError, match="already there"):
        simulate(configured(), first.star.parent)
    assert bytes_of(tmp_path / "set") == before
    simulate(configured(), tmp_path / "set", overwrite=True)
    simulate(configured(), tmp_path / "fresh")
    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "fresh")


def test_molecule_that_leaves_the_box_is_refused_with_the_least_box(tmp_path):
    with pytest.raises(ConfigError, match=r"box_length_angstrom: 150 A is too small .* set at least \d+"):
        simulate(configured(box_length_angstrom=150), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_maps_without_density_are_refused(tmp_path):
    write_volume(tmp_path / "empty.mrc", Volume(torch.zeros(24, 24, 24), 230 / 24))
    source = {"kind": "volumes", "paths": [str(tmp_path / "empty.mrc")]}
    with pytest.raises(ConfigError, match="every image is empty"):
        simulate(configured(source=source, states={"kind": "discrete"}), tmp_path / "set")


def test_wrong_number_of_weights_is_refused(tmp_path):
    states = {"kind": "discrete", "count": 3, "weights": [1, 2]}
    with pytest.raises(ConfigError, match=r"states\.weights: 2 numbers for 3 classes"):
        simulate(configured(states=states), tmp_path / "set")


def test_optics_groups_of_a_ctf_table_are_kept(tmp_path):
    simulated = simulate(configured(), tmp_path / "set")
    table = read_particles(simulated.star)
    groups = (table.optics[0], replace(table.optics[0], name="other", voltage_kv=200.0))
    two = replace(table, optics=groups, optics_group=(np.arange(40) % 2).astype(np.int32))
    write_star(tmp_path / "two.star", two, [f"{n + 1:06d}@x.mrcs" for n in range(40)])
    mixed = simulate(configured(ctf={"table": str(tmp_path / "two.star")}), tmp_path / "mixed")
    assert read_particles(mixed.star).ctf_params().voltage_kv.tolist() == [300.0, 200.0] * 20
