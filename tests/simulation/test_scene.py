import numpy as np
import pytest
import torch

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.physics.fourier import image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid
from cryoformer_dist.simulation.nuisances import Junk
from cryoformer_dist.simulation.scene import Camera, make_scene

ROWS = torch.arange(60)


def camera(**values) -> Camera:
    config = SimulationConfig.model_validate({"particles": 60, "box_size": 32, "box_length_angstrom": 300} | values)
    scene = make_scene(config)
    return Camera.of(scene, scene.sessions[-1])


@pytest.fixture(scope="module")
def junk():
    return camera(nuisances={"junk": {"empty": 0.2, "neighbours": 0.2, "blobs": 0.2}}, ctf={"apply": False})


def test_without_junk_images_show_the_particles_and_nothing_is_computed():
    clean = camera()
    particles = clean.particles(ROWS)
    assert clean.shown(particles, ROWS) is particles


def test_junk_holds_no_particle_or_one_with_a_stranger(junk):
    particles = junk.particles(ROWS)
    shown, kind = junk.shown(particles, ROWS), torch.from_numpy(junk.scene.junk.kind)
    torch.testing.assert_close(shown[kind == Junk.NONE], particles[kind == Junk.NONE], atol=0, rtol=0)
    assert shown[kind == Junk.EMPTY].abs().max() == 0
    beside = (shown - particles)[kind == Junk.NEIGHBOURS]
    # The stranger is a molecule, in part inside the image and off its middle.
    seen = beside.sum((1, 2)) / particles.sum((1, 2)).mean()
    assert seen.min() > 0.2
    assert seen.max() < 1.05
    axis = torch.arange(32.0) - 16
    weight = beside.clamp_min(0)
    centre = torch.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)]) / weight.sum((1, 2))
    assert centre.norm(dim=0).min() > 3


def test_blobs_are_no_molecule(junk):
    particles = junk.particles(ROWS)
    shown, kind = junk.shown(particles, ROWS), torch.from_numpy(junk.scene.junk.kind)
    blobs = shown[kind == Junk.BLOBS]
    assert (blobs.sum((1, 2)) > 0).all()
    fine = frequency_grid(32).norm(dim=-1) > 0.25

    def share(images):
        power = image_to_fourier(images).abs().square()
        return (power * fine).sum() / power.sum()

    assert share(blobs) < 0.2 * share(particles)


def test_the_first_particles_do_not_depend_on_the_junk(junk):
    torch.testing.assert_close(junk.particles(ROWS), camera(ctf={"apply": False}).particles(ROWS), atol=0, rtol=0)


def test_b_factor_damps_the_ctf():
    damped, sharp = camera(nuisances={"ctf_errors": {"b_factor": 200}}), camera()
    frequency = frequency_grid(32).norm(dim=-1) / (300 / 32)
    expected = sharp.transfer(ROWS) * torch.exp(-200 / 4 * frequency.square())
    torch.testing.assert_close(damped.transfer(ROWS), expected)


def test_images_have_the_true_ctf_whatever_the_file_gives():
    wrong = camera(nuisances={"ctf_errors": {"defocus_sd_angstrom": 500}})
    torch.testing.assert_close(wrong.transfer(ROWS), camera().transfer(ROWS), atol=0, rtol=0)


def test_a_session_of_larger_pixels_sees_a_smaller_molecule_of_the_same_weight():
    groups = {"optics_groups": [{}, {"pixel_size_angstrom": 1.5 * 300 / 32}]}
    still = {"poses": {"max_shift_fraction": 0.0}, "ctf": {"apply": False}}
    wide, usual = camera(nuisances=groups, **still), camera(**still)
    rows = torch.arange(30, 60)
    large, small = usual.particles(rows), wide.particles(rows)
    torch.testing.assert_close(large.sum((1, 2)), small.sum((1, 2)), rtol=1e-3, atol=1e-2)
    axis = torch.arange(32.0) - 16
    squared = axis.square() + axis.square()[:, None]

    def extent(images):
        return (images * squared).sum((1, 2)) / images.sum((1, 2))

    np.testing.assert_allclose((extent(large) / extent(small)).sqrt(), 1.5, rtol=0.05)
