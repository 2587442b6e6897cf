import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.blobs import blobs, correlation, microscope
from support.tiny_runs import tiny_config

from cryoformer_dist.data.batch import ImageBlock, ParticleBatch, make_batch
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.initialization.consensus import back_project
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import crop_half_plane, fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import (
    Pose,
    random_rotations,
    rotation_from_axis_angle,
    rotation_from_relion_euler,
)
from cryoformer_dist.training import objectives as module
from cryoformer_dist.training.objectives import Objectives, pose_loss

BOX = 16
SMOOTH = {
    "model.hash_grid": {"levels": 1, "base_resolution": 2, "finest_resolution": 2, "log2_table_size": 10},
    "model.decoder.queries": 4,
    "model.decoder.hidden_width": 8,
    "model.decoder.density_width": 8,
    "training.jitter_lattices": 1,
}


def _objectives(store: ParticleStore, changes: dict[str, object] | None = None, copies: int = 1) -> Objectives:
    config = tiny_config(store.path, {**SMOOTH, **(changes or {})})
    torch.manual_seed(1)
    objectives = Objectives(config, BOX, store.pixel_size_angstrom, Lattice.of(sphere(BOX), copies, 0))
    with torch.no_grad():
        # Far from the start, where density hardly varies.
        objectives.model.feature_volume.grid.table.mul_(100)
    return objectives


def _with_pose(batch: ParticleBatch, rotation: torch.Tensor, shift_pixels: torch.Tensor) -> ParticleBatch:
    pose = Pose(rotation, -shift_pixels * batch.pixel_size_angstrom[:, None])
    return replace(batch, pose=pose)


def _latent(particles: int) -> torch.Tensor:
    return torch.randn(particles, 2, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def _images(objectives: Objectives, batch: ParticleBatch, copy: int = 0) -> torch.Tensor:
    return fourier_to_image(objectives.project(_latent(len(batch)), batch.pose, batch, copy), BOX)


def _both(store: ParticleStore) -> tuple[Objectives, Objectives]:
    """The same weights by lattice and by rays."""
    return _objectives(store), _objectives(store, {"training.projection": "rays"})


@torch.no_grad()
def _low_frequencies(objectives: Objectives, batch: ParticleBatch) -> torch.Tensor:
    """Transforms up to shell 3: two quadratures of one density differ only beyond."""
    low = frequency_grid(BOX).norm(dim=-1) * BOX < 3.01
    return objectives.project(_latent(len(batch)), batch.pose, batch, 0) * low


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_pose_loss_is_zero_at_equality_with_a_finite_slope() -> None:
    rotation = random_rotations(4, torch.Generator().manual_seed(0)).requires_grad_(True)
    shift = torch.randn(4, 2).requires_grad_(True)
    loss = pose_loss(Pose(rotation, shift), Pose(rotation.detach(), shift.detach()), 100.0)
    assert loss.max() < 1e-6
    loss.sum().backward()
    assert torch.isfinite(rotation.grad).all()


def test_the_pose_loss_is_equation_3_by_hand() -> None:
    angle = 0.7
    given = random_rotations(1, torch.Generator().manual_seed(0))
    turn = rotation_from_axis_angle(torch.tensor([[0.0, angle, 0.0]]))
    estimate = Pose(turn @ given, torch.tensor([[3.0, -5.0]]))
    loss = pose_loss(estimate, Pose(given, torch.tensor([[1.0, 1.0]])), 200.0)
    # The Frobenius distance of two rotations an angle apart is 2 sqrt(2) sin(angle / 2).
    expected = 2 * math.sqrt(2) * math.sin(angle / 2) / 9 + 0.5 * (2 + 6) / 200
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_lattice_and_rays_agree_where_their_points_coincide(store: ParticleStore, batch: ParticleBatch) -> None:
    quarter = math.pi / 2
    vectors = torch.tensor(
        [[0, 0, 0], [quarter, 0, 0], [0, quarter, 0], [0, 0, quarter], [0, math.pi, 0], [0, 0, -quarter]]
    )
    # Of content that stays inside the image: the lattice wraps around its edges, rays do not.
    shifts = torch.tensor([[0.0, 0], [-1, 0], [0, -1], [-1, -1], [0, 0], [0, 0]])
    moved = _with_pose(batch, rotation_from_axis_angle(vectors), shifts)
    lattice, rays = (_images(one, moved) for one in _both(store))
    assert rays.std() > 0.05
    assert _relative(lattice, rays) < 2e-3


def test_lattice_and_rays_agree_at_any_pose(store: ParticleStore, batch: ParticleBatch) -> None:
    generator = torch.Generator().manual_seed(3)
    moved = _with_pose(batch, random_rotations(6, generator), torch.randn(6, 2, generator=generator))
    lattice, rays = (_low_frequencies(one, moved) for one in _both(store))
    assert _relative(lattice, rays) < 0.06
    assert _relative(lattice.roll(1, 0), rays) > 0.5


@pytest.mark.parametrize("pixel_ratio", [0.8, 1.25])
def test_lattice_and_rays_agree_at_a_pixel_size_of_the_particle_s_own(
    store: ParticleStore, batch: ParticleBatch, pixel_ratio: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    moved = _with_pose(batch, random_rotations(6, generator), torch.zeros(6, 2))
    ratio = torch.tensor([1, 1, 1, pixel_ratio, pixel_ratio, pixel_ratio])
    other = replace(moved, pixel_size_angstrom=batch.pixel_size_angstrom * ratio)
    objectives, reference = _both(store)
    lattice, rays = (_low_frequencies(one, other) for one in (objectives, reference))
    for particles in (slice(0, 3), slice(3, 6)):
        assert _relative(lattice[particles], rays[particles]) < 0.08
    assert _relative(_low_frequencies(reference, moved)[3:], rays[3:]) > 0.3


def test_a_coarser_pixel_makes_a_smaller_image_of_the_same_density(store: ParticleStore, batch: ParticleBatch) -> None:
    coarse = replace(batch, pixel_size_angstrom=batch.pixel_size_angstrom * 1.25)
    still = [_with_pose(one, torch.eye(3).expand(6, 3, 3), torch.zeros(6, 2)) for one in (batch, coarse)]
    fine_image, coarse_image = (_images(_objectives(store), one) for one in still)
    # A line integral through the centre is the same, in less noise; the covered area shrinks.
    torch.testing.assert_close(coarse_image[:, 8, 8], 1.25 * fine_image[:, 8, 8], rtol=0.05, atol=0.02)
    ratio = coarse_image.sum((1, 2)) / fine_image.sum((1, 2))
    torch.testing.assert_close(ratio, torch.full((6,), 1 / 1.25), rtol=1e-3, atol=0)


def test_every_copy_of_the_lattice_is_evaluated_where_it_is_projected_from(store: ParticleStore) -> None:
    objectives = _objectives(store, copies=3)
    volume, lattice = objectives.model.feature_volume, objectives.lattice
    hidden = [volume.at_lattice(operator) for operator in objectives.fine.operators]
    for copy, offset in enumerate(lattice.offsets_pixels):
        torch.testing.assert_close(hidden[copy], volume(lattice.points_pixels + offset), rtol=1e-4, atol=1e-4)
    assert (hidden[0] - hidden[1]).abs().max() > 1e-2


def test_the_loss_of_what_is_rendered_is_zero_and_of_an_empty_image_its_power(
    store: ParticleStore, batch: ParticleBatch
) -> None:
    objectives = _objectives(store)
    transform = objectives.project(_latent(6), batch.pose, batch, 0).detach()
    frequency = frequency_grid(BOX)[None] / batch.pixel_size_angstrom[:, None, None, None]
    images = fourier_to_image(transform * contrast_transfer_function(batch.ctf, frequency), BOX)
    perfect, latent = objectives("reconstruction", replace(batch, images=images + 7.0), _latent(6), batch.pose, 0)
    empty, _ = objectives("reconstruction", replace(batch, images=torch.zeros_like(images)), _latent(6), batch.pose, 0)
    # An image's mean says nothing: it may be off.
    assert perfect.max() < 1e-9
    assert torch.equal(latent, _latent(6))
    transform_of_images = torch.fft.fft2(images)
    transform_of_images[:, 0, 0] = transform_of_images[:, 8, :] = transform_of_images[:, :, 8] = 0
    power = transform_of_images.abs().square().sum((1, 2)) / BOX**4
    torch.testing.assert_close(empty, power, rtol=1e-4, atol=1e-7)


def test_each_particle_has_a_loss_of_its_own(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store)
    changed = batch.images.clone()
    changed[2] *= 3
    one, _ = objectives("reconstruction", batch, _latent(6), batch.pose, 0)
    other, _ = objectives("reconstruction", replace(batch, images=changed), _latent(6), batch.pose, 0)
    assert (one != other).tolist() == [False, False, True, False, False, False]


def test_poses_and_ctf_are_taken_as_the_simulation_means_them(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store)
    consensus = back_project(store, np.arange(len(store))).voxels.ravel()[objectives.lattice.flat_index]
    objectives.model.density = lambda _, __, scale: consensus * scale[:, None]  # type: ignore[method-assign]
    right, _ = objectives("reconstruction", batch, _latent(6), batch.pose, 0)
    wrong = {
        "transposed": (batch, Pose(batch.pose.rotation.mT, batch.pose.shift_angstrom)),
        "shifted the other way": (batch, Pose(batch.pose.rotation, -batch.pose.shift_angstrom)),
        "dark": (replace(batch, images=-batch.images), batch.pose),
    }
    for name, (images, pose) in wrong.items():
        loss, _ = objectives("reconstruction", images, _latent(6), pose, 0)
        assert right.mean() < loss.mean(), name


def test_pretraining_scores_the_encoder_alone(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store, {"model.pose.form": "encoder"})
    loss, latent = objectives("pose_pretraining", batch, None, None, 0)
    estimate = objectives.encode_pose(batch)
    torch.testing.assert_close(loss, pose_loss(estimate, batch.pose, BOX * store.pixel_size_angstrom))
    assert latent.shape == (6, 2)
    assert latent.abs().max() == 0
    loss.sum().backward()
    touched = {name for name, value in objectives.named_parameters() if value.grad is not None}
    assert touched
    assert all("orientation_encoder." in name for name in touched)


def test_encoders_see_phase_flipped_images_of_any_scale(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store, {"model.pose.form": "encoder"})
    one = objectives.encode_pose(batch)
    other = objectives.encode_pose(replace(batch, images=batch.images * 5))
    torch.testing.assert_close(one.rotation, other.rotation, rtol=1e-4, atol=1e-5)
    negative = replace(batch, images=-batch.images)
    assert (objectives.encode_pose(negative).rotation - one.rotation).abs().max() > 1e-3


def test_an_encoder_that_is_not_there_is_named(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store)
    with pytest.raises(ValueError, match=r"model\.pose\.form"):
        objectives.encode_pose(batch)
    with pytest.raises(ValueError, match=r"model\.latent\.form"):
        objectives.encode_latent(batch, batch.pose)


def test_a_coarser_pixel_scales_a_transform_as_it_scales_a_density(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store, {"model.domain": "fourier"})
    coarse = replace(batch, pixel_size_angstrom=batch.pixel_size_angstrom * 1.25)
    still = [_with_pose(one, torch.eye(3).expand(6, 3, 3), torch.zeros(6, 2)) for one in (batch, coarse)]
    with torch.no_grad():
        fine_sum, coarse_sum = (objectives.project(_latent(6), one.pose, one, 0)[:, 0, 0] for one in still)
    # The sum over an image: the same line integrals, in less noise, on fewer pixels.
    assert float(fine_sum.abs().min()) > 0
    torch.testing.assert_close(coarse_sum / fine_sum, torch.full((6,), 1 / 1.25 + 0j))


@pytest.mark.parametrize("form", ["concatenation", "fourier"])
def test_the_ablations_learn_from_images_in_all_their_parts(
    store: ParticleStore, batch: ParticleBatch, form: str
) -> None:
    changes = {"model.decoder.form": form} if form == "concatenation" else {"model.domain": form}
    objectives = _objectives(store, changes)
    loss, _ = objectives("reconstruction", batch, _latent(6), batch.pose, 0)
    assert loss.shape == (6,)
    loss.sum().backward()
    for name, parameter in objectives.named_parameters():
        assert parameter.grad is not None, name
        # The bias of a key moves all logits alike, which the softmax does not see.
        if not name.endswith("key.bias"):
            assert float(parameter.grad.abs().sum()) > 0, name


def _distilling(store: ParticleStore) -> Objectives:
    objectives = _objectives(store, {"model.latent.form": "table_then_encoder"})
    # A molecule well above the noise.
    objectives.model.decoder.density_scale = 5.0
    return objectives


def _distilled(objectives: Objectives, batch: ParticleBatch, noise_seed: int) -> torch.Tensor:
    loss, latent = objectives("latent_distillation", batch, _latent(6), batch.pose, 0, noise_seed)
    assert torch.equal(latent, torch.zeros(6, 2))
    return loss


def test_distillation_touches_the_encoder_alone(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _distilling(store)
    _distilled(objectives, batch, 0).sum().backward()
    touched = {name for name, value in objectives.named_parameters() if value.grad is not None}
    assert touched == {name for name, _ in objectives.named_parameters() if "latent_encoder." in name}
    assert len(touched) > 4


def test_noise_on_rendered_images_is_a_function_of_its_seed(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _distilling(store)
    one = _distilled(objectives, batch, 1)
    torch.manual_seed(99)
    assert torch.equal(_distilled(objectives, batch, 1), one)
    assert (_distilled(objectives, batch, 2) != one).all()


def test_distillation_does_not_look_at_the_particles_images(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _distilling(store)
    blank = replace(batch, images=torch.zeros_like(batch.images))
    assert torch.equal(_distilled(objectives, blank, 1), _distilled(objectives, batch, 1))


def test_distillation_asks_for_the_latents_that_the_images_were_rendered_at(
    store: ParticleStore, batch: ParticleBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = _distilling(store)
    rendered: list[torch.Tensor] = []
    original = objectives.project

    def project(latent: torch.Tensor, pose: Pose, *rest: object) -> torch.Tensor:
        rendered.append(latent)
        assert pose is batch.pose
        return original(latent, pose, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(objectives, "project", project)
    monkeypatch.setattr(objectives, "encode_latent", lambda _, pose: torch.full((6, 2), 0.5))
    loss = _distilled(objectives, batch, 0)
    torch.testing.assert_close(loss, (rendered[0] - 0.5).square().mean(1))
    # At another particle's pose and CTF: each conformation, none where it stood.
    assert sorted(rendered[0].tolist()) == sorted(_latent(6).tolist())
    assert (rendered[0] != _latent(6)).any(1).all()


def test_distillation_lets_an_encoder_read_latents_off_images_it_has_not_seen(
    store: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = _distilling(store)
    rows = np.arange(32)
    batch = make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles())
    # A finished network: each latent is the height of a lobe of its own.
    x, y, _ = objectives.lattice.points_pixels.unbind(-1)
    lobes = torch.stack([((x - 3) ** 2 + y**2 < 9).float(), ((x + 3) ** 2 + (y - 2) ** 2 < 9).float()])
    monkeypatch.setattr(objectives.model, "condition", lambda latent: latent)
    monkeypatch.setattr(objectives.model, "density", lambda _, latent, scale: latent @ lobes * scale[:, None])
    optimizer = torch.optim.Adam(objectives.model.latent_encoder.parameters(), lr=3e-3)

    def loss(step: int) -> torch.Tensor:
        latent = torch.randn(32, 2, generator=torch.Generator().manual_seed(step))
        return objectives("latent_distillation", batch, latent, batch.pose, 0, step)[0].mean()

    for step in range(40):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    with torch.no_grad():
        unseen = torch.stack([loss(step) for step in range(1000, 1005)]).mean()
    # Knowing nothing, the best guess is zero and its loss the latents' variance, one.
    assert float(unseen) < 0.6


def test_views_from_one_direction_look_the_same_to_the_encoder_of_latents(store: ParticleStore) -> None:
    objectives = _objectives(store, {"model.latent.form": "table_then_encoder"})
    euler = [(30.0, 60.0, 0.0), (30.0, 60.0, 75.0), (30.0, 60.0, -160.0), (120.0, 60.0, 0.0)]
    rotation = rotation_from_relion_euler(torch.tensor(euler))
    moved = torch.tensor([[0.0, 0.0], [1.4, -0.7], [-1.0, 1.2], [0.0, 0.0]])
    pixel = torch.full((4,), store.pixel_size_angstrom)
    images = replace(blobs(), sigma=1.3).scaled(0.6).images(rotation, moved, BOX)
    pose = Pose(rotation, -moved * pixel[:, None])
    batch = ParticleBatch(images, torch.arange(4), pose, microscope(4), pixel, 0)
    aligned = objectives._aligned_images(batch, pose)
    likeness = correlation(aligned[1:], aligned[:1])
    assert float(likeness[:2].min()) > 0.97
    assert float(likeness[2]) < 0.9
    assert float(correlation(images[1:], images[:1]).max()) < 0.9
    torch.testing.assert_close(aligned.std((1, 2)), torch.ones(4))
    # Nor does the scale of the images matter, and the first image stands as it should.
    louder = objectives._aligned_images(replace(batch, images=images * 7), pose)
    torch.testing.assert_close(louder, aligned, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(aligned[0], images[0] / images[0].std(), rtol=1e-3, atol=1e-3)
    other_way = Pose(rotation, -pose.shift_angstrom)
    assert float(correlation(objectives._aligned_images(batch, other_way)[1:3], aligned[:1]).max()) < 0.9


def test_a_coarse_step_sees_the_low_frequencies_of_the_same_images(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store, {"training.coarse_epochs": 1, "training.coarse_box": 12})
    assert objectives.coarse is not None
    with torch.no_grad():
        fine = crop_half_plane(objectives.project(_latent(6), batch.pose, batch, 0), 12)
        coarse = objectives.project(_latent(6), batch.pose, batch, 0, objectives.coarse)
    low = (frequency_grid(12) * 12).norm(dim=-1) <= 3
    # The sphere's face is drawn more coarsely too.
    assert _relative(coarse[:, low], fine[:, low]) < 0.15
    # A factor of the wrong power of the spacing would be 1.33 off at least.
    assert (coarse[:, 0, 0].real / fine[:, 0, 0].real - 1).abs().max() < 0.1


def test_a_coarse_loss_is_the_share_of_the_low_frequencies(store: ParticleStore, batch: ParticleBatch) -> None:
    objectives = _objectives(store, {"training.coarse_epochs": 1, "training.coarse_box": 12})
    noise = torch.randn(6, BOX, BOX, generator=torch.Generator().manual_seed(0)) * 50
    noisy = replace(batch, images=noise)
    (fine, _), (coarse, _) = (
        objectives("reconstruction", noisy, _latent(6), noisy.pose, 0, 0, coarse) for coarse in (False, True)
    )
    # White noise is spread evenly: 11 x 11 of the 15 x 15 comparable frequencies.
    assert abs(float((coarse / fine).mean().detach()) - (11 / 15) ** 2) < 0.05


@pytest.mark.parametrize(("box", "coarse"), [(16, 8), (18, 8), (20, 10)])
def test_the_coarse_box_is_half_the_box_and_even(store: ParticleStore, box: int, coarse: int) -> None:
    config = tiny_config(store.path, {"training.coarse_epochs": 1})
    objectives = Objectives(config, box, 3.0, Lattice.of(sphere(box), 1, 0))
    assert objectives.coarse is not None
    assert objectives.coarse.box == coarse


def test_coarse_steps_are_refused_where_there_is_no_lattice(store: ParticleStore) -> None:
    with pytest.raises(ConfigError, match=r"coarse_epochs needs training\.projection: lattice"):
        tiny_config(store.path, {"training.coarse_epochs": 1, "training.projection": "rays"})
    with pytest.raises(ConfigError, match="boxes are even"):
        tiny_config(store.path, {"training.coarse_epochs": 1, "training.coarse_box": 11})


def test_hashing_afresh_gives_the_loss_and_gradients_of_kept_operators(
    store: ParticleStore, batch: ParticleBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for kept in (2**40, 0):
        monkeypatch.setattr(module, "_KEPT_OPERATORS_BYTES", kept)
        objectives = _objectives(store, copies=2)
        assert len(objectives.fine.operators) == (2 if kept else 0)
        errors, _ = objectives("reconstruction", batch, _latent(len(batch)), batch.pose, 1)
        errors.sum().backward()
        found.append((errors.detach(), objectives.model.feature_volume.grid.table.grad))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert _relative(one, other) < 1e-4


@torch.no_grad()
def test_bfloat16_is_for_the_encoders_layers_alone(store: ParticleStore, batch: ParticleBatch) -> None:
    changes = {"model.pose.form": "encoder", "model.latent.form": "encoder"}
    whole, half = (
        _objectives(store, {**changes, "training.precision": precision}).eval() for precision in ("float32", "bfloat16")
    )
    assert torch.equal(_images(whole, batch), _images(half, batch))
    poses = [objectives.encode_pose(batch) for objectives in (whole, half)]
    latents = [objectives.encode_latent(batch, batch.pose) for objectives in (whole, half)]
    for one, other in [(poses[0].rotation, poses[1].rotation), latents]:
        assert other.dtype == torch.float32
        assert 1e-5 < _relative(other, one) < 0.1
    identity = poses[1].rotation @ poses[1].rotation.transpose(1, 2)
    assert torch.allclose(identity, torch.eye(3).expand_as(identity), atol=1e-5)


def _focus() -> torch.Tensor:
    focus = torch.zeros(BOX, BOX, BOX)
    focus[:, :, 8:] = 1.0
    focus[:, :, 7] = 0.5
    return focus


def test_with_a_focus_mask_rays_see_the_density_that_the_lattice_has(
    store: ParticleStore, batch: ParticleBatch
) -> None:
    seen = {}
    for projection in ("lattice", "rays"):
        objectives = _objectives(store, {"training.projection": projection})
        free = _images(objectives, batch)
        objectives.model.confine(_focus())
        seen[projection] = _images(objectives, batch)
        # It makes a difference that interpolation does not.
        assert (seen[projection] - free).std() > 0.1 * free.std()
    assert correlation(seen["lattice"], seen["rays"]).min() > 0.98


@pytest.mark.parametrize("coarse", [False, True])
def test_latents_learn_from_what_lies_in_the_focus_alone(
    store: ParticleStore, batch: ParticleBatch, coarse: bool
) -> None:
    objectives = _objectives(store, {"training.coarse_epochs": 1}, copies=2)
    latent = _latent(6).requires_grad_()

    def slope(focus: torch.Tensor) -> float:
        objectives.model.confine(focus)
        loss, _ = objectives("reconstruction", batch, latent, batch.pose, 1, coarse=coarse)
        (found,) = torch.autograd.grad(loss.sum(), latent)
        return float(found.abs().max())

    assert slope(torch.zeros(BOX, BOX, BOX)) == 0
    assert slope(_focus()) > 0
