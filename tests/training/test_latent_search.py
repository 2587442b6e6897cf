"""Particles are compared with conformations: against exact images of a phantom, and in trained runs."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from support.blobs import Blobs, blobs, microscope, rotations
from support.other_device import DEVICE, bring_back, other_device

from cryoformer_dist.data.batch import ParticleBatch
from cryoformer_dist.inference.comparison import Spread, explain
from cryoformer_dist.inference.conformations import ConformationMixture, draw_conformations
from cryoformer_dist.physics.ctf import contrast_transfer_function
from cryoformer_dist.physics.fourier import fourier_to_image
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.training import latent_search
from cryoformer_dist.training.latent_search import build_conformations
from cryoformer_dist.training.objectives import Objectives

BOX, PIXEL_ANGSTROM = 32, 4.0
COUNT = len(rotations())


def _phantom(latent: torch.Tensor) -> Blobs:
    """A molecule two of whose lobes grow and shrink with the two coordinates."""
    base = blobs()
    heights = base.heights.clone()
    heights[:2] += latent
    return replace(base, heights=heights)


class _Model:
    """Stands for a network: the phantom's maps."""

    def each_volume(self, latent: torch.Tensor, *lattice: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from (_phantom(one.cpu()).voxels(BOX).to(latent.device) for one in latent)


def _objectives(coarse_box: int | None = None) -> Objectives:
    lattice = SimpleNamespace(points_pixels=torch.zeros(1, 3), flat_index=torch.zeros(1))
    coarse = None if coarse_box is None else SimpleNamespace(box=coarse_box)
    stub = SimpleNamespace(box=BOX, pixel_size_angstrom=PIXEL_ANGSTROM, lattice=lattice, model=_Model(), coarse=coarse)
    return cast(Objectives, stub)


def _cloud() -> torch.Tensor:
    """Four conformations, the first of which occurs most."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    return corners.repeat_interleave(torch.tensor([5, 1, 2, 2]), dim=0)


def _found(coarse_box: int | None = None, coarse: bool = False, device: str = "cpu") -> ConformationMixture:
    found = build_conformations(_objectives(coarse_box), _cloud().to(device), coarse, seed=0)
    # In the order of the cloud.
    assert {tuple(row) for row in found.latent.tolist()} == {tuple(row) for row in _cloud().tolist()}
    return found


PIXELS = torch.where(torch.arange(COUNT) % 2 == 0, PIXEL_ANGSTROM, 4.4)
SHIFT_ANGSTROM = 6 * torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(1))
CTF = microscope(COUNT, defocus_u_angstrom=9000.0, defocus_v_angstrom=8000.0, amplitude_contrast=0.1)
POSE = Pose(rotations(), SHIFT_ANGSTROM)


def _exact(latent: torch.Tensor) -> torch.Tensor:
    """Transforms of exact images of one conformation, each with its own pixel size, shift and CTF."""
    planes = []
    for index in range(COUNT):
        part, ratio = slice(index, index + 1), float(PIXEL_ANGSTROM / PIXELS[index])
        phantom = _phantom(latent).as_stored(ratio)
        plane = phantom.projection(rotations()[part], -SHIFT_ANGSTROM[part] / PIXELS[part, None], BOX)
        planes.append(plane[0])
    frequency = frequency_grid(BOX)[None] / PIXELS[:, None, None, None]
    return torch.stack(planes) * contrast_transfer_function(CTF, frequency)


def _log_likelihood(found: ConformationMixture, batch: ParticleBatch) -> torch.Tensor:
    return explain(found.compare(found.look(batch, batch.pose, with_slopes=False)), Spread()).log_likelihood


def _posterior(found: ConformationMixture, batch: ParticleBatch) -> torch.Tensor:
    return (_log_likelihood(found, batch) + found.log_share).softmax(dim=1)


def _batch(planes: torch.Tensor) -> ParticleBatch:
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(2))
    images = fourier_to_image(planes, BOX).float() + noise
    return ParticleBatch(images, torch.arange(COUNT), POSE, CTF, PIXELS, 0)


def _expected(batch: ParticleBatch, found: ConformationMixture, shell: int) -> torch.Tensor:
    """Half the squared error of exact images, over the frequencies within a shell."""
    radius = frequency_grid(BOX).norm(dim=-1) * BOX
    weight = half_plane_weight(BOX) * ((radius > 0) & (radius <= shell))
    observed = torch.fft.rfft2(torch.fft.ifftshift(batch.images, dim=(-2, -1)))
    errors = [(observed - _exact(latent)).abs().square() * weight for latent in found.latent.cpu()]
    return -0.5 * torch.stack([error.sum((-2, -1)) for error in errors], dim=1) / BOX**2


@pytest.mark.parametrize(("largest", "shell"), [(64, 15), (16, 7)])
def test_the_likelihood_is_that_of_exact_images(
    kernel_device: str, largest: int, shell: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_search, "LARGEST_BOX", largest)
    found = _found(device=kernel_device)
    batch = _batch(_exact(torch.tensor([0.0, 1.0])))
    there = batch.to(torch.device(kernel_device))
    seen, expected = _log_likelihood(found, there).cpu(), _expected(batch, found, shell)
    seen, expected = (each - each.mean(dim=1, keepdim=True) for each in (seen, expected))
    assert float(expected.abs().mean()) > 10
    # Interpolation between the coefficients of the maps' transforms.
    assert float((seen - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_conformations_are_compared_on_a_device_beside_the_cpu() -> None:
    batch = _batch(_exact(torch.tensor([0.0, 1.0])))
    here = build_conformations(_objectives(), _cloud(), False, seed=0)
    expected, waits = _posterior(here, batch), []
    with other_device() as device:
        there = build_conformations(_objectives(), _cloud().to(DEVICE), False, seed=0)
        for times in (1, 3):
            before = device.waits
            for _ in range(times):
                posterior = _posterior(there, batch.to(DEVICE))
                found = draw_conformations(posterior, PIXELS.to(DEVICE) / 10)
            waits.append(device.waits - before)
    torch.testing.assert_close(bring_back(posterior), expected)
    assert torch.equal(bring_back(found), draw_conformations(expected, PIXELS / 10))
    assert waits == [0, 0]


def test_an_image_of_a_conformation_is_found_in_it() -> None:
    found = _found()
    for index, latent in enumerate(found.latent):
        batch = _batch(_exact(latent))
        assert float(_posterior(found, batch)[:, index].min()) > 0.99


def test_images_that_show_nothing_leave_what_all_particles_know() -> None:
    found = _found()
    blank = replace(_batch(_exact(found.latent[0])), ctf=microscope(COUNT, phase_shift_deg=0.0))
    posterior = _posterior(found, blank)
    shares = {tuple(latent.tolist()): float(share) for latent, share in zip(found.latent, posterior[0], strict=True)}
    assert shares[0.0, 0.0] == pytest.approx(0.5, abs=1e-3)
    assert shares[1.0, 0.0] == pytest.approx(0.1, abs=1e-3)


def test_while_low_frequencies_are_learned_only_those_are_compared() -> None:
    found = _found(coarse_box=16, coarse=True)
    assert found.compared_box == 16
    assert _found(coarse_box=16).compared_box == BOX


def test_all_maps_are_mixtures_of_a_few() -> None:
    # Linear in two coordinates: so are the maps.
    mixture = _found().mixture
    assert mixture.shape == (4, 3)
    assert torch.equal(mixture[:, 0], torch.ones(4))
    torch.testing.assert_close(mixture[:, 1:].T @ mixture[:, 1:], torch.eye(2))
    one = build_conformations(_objectives(), torch.zeros(5, 2), False, seed=0)
    assert one.mixture.shape == (1, 2)
    posterior = _posterior(one, _batch(_exact(torch.zeros(2))))
    assert torch.equal(posterior, torch.ones(COUNT, 1))


@pytest.mark.parametrize(("particles", "expected"), [(12, 12), (100, 16), (800, 50), (6_000, 256)])
def test_a_representative_stands_for_several_particles(particles: int, expected: int) -> None:
    latents = torch.randn(particles, 2, generator=torch.Generator().manual_seed(0))
    found = build_conformations(_objectives(), latents, False, seed=0)
    assert len(found.latent) == expected
    assert float(found.log_share.exp().sum()) == pytest.approx(1)


def test_draws_follow_the_probabilities() -> None:
    posterior = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(10_000, -1)
    draws = torch.linspace(0, 1 - 1e-6, 10_000)
    counts = torch.bincount(draw_conformations(posterior, draws), minlength=4) / 10_000
    assert torch.allclose(counts, posterior[0], atol=2e-4)
    # Sums of many small probabilities may end just below one.
    assert int(draw_conformations(torch.full((1, 3), 0.333), torch.tensor([0.9999999]))[0]) == 2
