import pytest
import torch
from support.blobs import blobs, microscope

from cryoformer_dist.data.contrast import CERTAIN_Z_SCORE, Contrast, contrast_from_z_score, contrast_z_score
from cryoformer_dist.physics.pose import Pose, random_rotations

BOX, COUNT = 24, 120


def _images(noise: float) -> tuple[torch.Tensor, Pose]:
    generator = torch.Generator().manual_seed(3)
    pose = Pose(random_rotations(COUNT, generator), torch.zeros(COUNT, 2))
    images = blobs().images(pose.rotation, torch.zeros(COUNT, 2), BOX)
    return images + noise * images.std() * torch.randn(images.shape, generator=generator), pose


def _z_score(images: torch.Tensor, pose: Pose) -> float:
    return contrast_z_score(images, pose, microscope(len(images)), torch.full((len(images),), 5.0))


def test_bright_protein_gives_a_large_score_and_dark_protein_its_exact_negative() -> None:
    images, pose = _images(noise=2.0)
    light = _z_score(images, pose)
    assert light > 2 * CERTAIN_Z_SCORE
    assert _z_score(-images, pose) == -light


def test_noise_says_nothing() -> None:
    _, pose = _images(noise=0.0)
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(4))
    assert abs(_z_score(noise, pose)) < CERTAIN_Z_SCORE


def test_fewer_particles_than_two_blocks_are_not_measured() -> None:
    images, pose = _images(noise=0.0)
    few = torch.arange(3)
    assert _z_score(images[few], pose[few]) == 0.0


@pytest.mark.parametrize(
    ("z_score", "expected"),
    [
        (CERTAIN_Z_SCORE, Contrast(1, CERTAIN_Z_SCORE, "measured")),
        (-CERTAIN_Z_SCORE, Contrast(-1, -CERTAIN_Z_SCORE, "measured")),
        (2.9, Contrast(1, 2.9, "uncertain")),
        (-2.9, Contrast(1, -2.9, "uncertain")),
    ],
)
def test_below_three_standard_errors_light_is_taken_and_marked_uncertain(z_score: float, expected: Contrast) -> None:
    assert contrast_from_z_score(z_score) == expected


def test_a_contrast_says_what_was_done_and_how_it_is_known() -> None:
    assert str(Contrast(-1, -7.25, "measured")) == (
        "dark-on-light, images multiplied by -1 (measured, 7.2 standard errors)"
    )
    assert str(Contrast(1, 0.0, "given")) == "light-on-dark (given)"
