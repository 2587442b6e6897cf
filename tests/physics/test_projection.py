import math

import pytest
import torch
from support.blobs import Blobs, blobs, correlation, no_shift, relative_error, rotations

from cryoformer_dist.io.mrc import open_stack, read_volume
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid, lattice_points
from cryoformer_dist.physics.pose import random_rotations, rotation_from_axis_angle
from cryoformer_dist.physics.projection import project_points, project_rays, project_slices

BOX = 32


def project(density: torch.Tensor, rotation: torch.Tensor, shift: torch.Tensor, box: int = BOX) -> torch.Tensor:
    """A whole lattice of one density, seen from every rotation."""
    return project_points(density.expand(len(rotation), -1), lattice_points(box), rotation, shift, box)


def some_shifts(count: int) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) * 2


def test_projection_of_densely_sampled_blobs_equals_their_analytic_transform():
    # Twice as dense as pixels: what is left is the error of the spline, not that of the lattice.
    phantom, rotation = blobs(sigma=0.9), rotations()
    points = lattice_points(2 * BOX) / 2
    points = points[points.norm(dim=-1) < 11]
    density = (phantom.density(points) / 8).expand(len(rotation), -1)
    shift = some_shifts(len(rotation))
    found = project_points(density, points, rotation, shift, BOX)
    expected = phantom.projection(rotation, shift, BOX)
    for particle in range(len(rotation)):
        assert relative_error(found[particle], expected[particle]) < 1e-3


@pytest.mark.parametrize(("sigma", "worst"), [(0.9, 0.04), (1.2, 0.006), (1.5, 0.002)])
def test_projection_from_the_pixel_lattice_has_the_error_of_the_lattice(sigma, worst):
    phantom, rotation = blobs(sigma), rotations()
    shift = some_shifts(len(rotation))
    found = project(phantom.density(lattice_points(BOX)), rotation, shift)
    expected = phantom.projection(rotation, shift, BOX)
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < worst


def test_a_single_point_is_a_plane_wave_up_to_the_frequency_the_spline_reaches():
    frequency = frequency_grid(BOX)
    radius = frequency.norm(dim=-1)
    for place in ((0.0, 0.0, 0.0), (3.37, -2.81, 5.0), (-15.9, 15.2, 0.0)):
        point = torch.tensor([place])
        found = project_points(torch.ones(1, 1), point, torch.eye(3)[None], no_shift(1), BOX)[0]
        error = (found - torch.exp(-2j * math.pi * (frequency @ point[0, :2]))).abs()
        assert float(error[radius < 0.1].max()) < 2e-4
        assert float(error[radius < 0.25].max()) < 2e-3
        assert float(error[(frequency.abs() < 0.49).all(-1)].max()) < 0.03


def test_rotating_the_molecule_equals_rotating_the_pose():
    phantom, rotation = blobs(), rotations()
    turn = random_rotations(1, torch.Generator().manual_seed(1))[0]
    turned = Blobs(phantom.sigma, phantom.centres @ turn.T, phantom.heights)
    by_molecule = project(turned.density(lattice_points(BOX)), rotation, no_shift(len(rotation)))
    by_pose = project(phantom.density(lattice_points(BOX)), rotation @ turn, no_shift(len(rotation)))
    assert relative_error(by_molecule, by_pose) < 2e-3
    wrong = project(phantom.density(lattice_points(BOX)), turn @ rotation, no_shift(len(rotation)))
    assert relative_error(by_molecule, wrong) > 0.1


def test_a_quarter_turn_of_the_voxels_equals_a_quarter_turn_of_the_pose():
    voxels = torch.zeros(16, 16, 16)
    voxels[1:, 1:, 1:] = torch.rand(15, 15, 15, generator=torch.Generator().manual_seed(2))
    # From +x towards +y about z, in [z, y, x]; index 0 of an even box has no mirror image.
    turned = torch.zeros_like(voxels)
    turned[1:, 1:, 1:] = torch.rot90(voxels[1:, 1:, 1:], 1, dims=(2, 1))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    by_pose = project(voxels.reshape(1, -1), quarter[None], no_shift(1), box=16)
    by_voxels = project(turned.reshape(1, -1), torch.eye(3)[None], no_shift(1), box=16)
    assert relative_error(by_pose, by_voxels) < 1e-4


def test_a_shift_of_one_pixel_moves_the_image_by_one_pixel():
    phantom = blobs()
    rotation = rotations()[5:6]
    density = phantom.density(lattice_points(BOX))
    still = fourier_to_image(project(density, rotation, no_shift(1)), BOX)[0]
    along_x = fourier_to_image(project(density, rotation, torch.tensor([[1.0, 0.0]])), BOX)[0]
    along_y = fourier_to_image(project(density, rotation, torch.tensor([[0.0, 1.0]])), BOX)[0]
    assert relative_error(along_x, torch.roll(still, 1, dims=1)) < 1e-3
    assert relative_error(along_y, torch.roll(still, 1, dims=0)) < 1e-3
    assert relative_error(along_x, still) > 0.1


def test_unrotated_projection_is_the_sum_along_z():
    voxels = blobs().voxels(BOX)
    image = fourier_to_image(project(voxels.ravel(), torch.eye(3)[None], no_shift(1)), BOX)[0]
    assert relative_error(image, voxels.sum(0)) < 1e-4


def test_content_that_leaves_one_edge_comes_back_at_the_other():
    phantom = blobs()
    density = phantom.density(lattice_points(BOX))
    inside = project(density, rotations()[:1], torch.tensor([[3.0, -2.0]]))
    around = project(density, rotations()[:1], torch.tensor([[3.0 + BOX, -2.0 - 2 * BOX]]))
    assert relative_error(around, inside) < 1e-4


@pytest.fixture(scope="module", params=["centered", "shifted"])
def oracle(request, shared_data):
    """RELION's own projections of a ribosome: map, rotations, displacement of the content, images."""
    folder = shared_data / "oracle_relion_project"
    table = read_star(folder / f"rln_proj_64_{request.param}.star", require_ctf=False)
    stack = open_stack(folder / f"rln_proj_64_{request.param}.mrcs")
    images = torch.from_numpy(stack.read(table.stack_index))
    pose = table.pose()
    pixel = table.optics[0].pixel_size_angstrom
    voxels = read_volume(folder / "clean70SRibosome_vol_64_derived.mrc").voxels
    return voxels, pose.rotation, -pose.shift_angstrom / pixel, images


def agreement(oracle, *, voxels=None, rotation=None, shift=None) -> torch.Tensor:
    """Correlation with RELION's images when part of the convention is replaced."""
    true_voxels, true_rotation, true_shift, images = oracle
    voxels = true_voxels if voxels is None else voxels
    points = lattice_points(64)
    heavy = voxels.ravel().abs() > 1e-3 * voxels.abs().max()
    rotation = true_rotation if rotation is None else rotation
    shift = true_shift if shift is None else shift
    density = voxels.ravel()[heavy].expand(len(images), -1)
    found = fourier_to_image(project_points(density, points[heavy], rotation, shift, 64), 64)
    return correlation(found, images)


def test_projection_agrees_with_relion(oracle):
    assert len(oracle[3]) == 4
    assert float(agreement(oracle).min()) >= 0.999


def test_projection_with_the_transposed_matrix_does_not_agree_with_relion(oracle):
    assert float(agreement(oracle, rotation=oracle[1].transpose(-1, -2)).max()) < 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_projection_of_the_other_hand_does_not_agree_with_relion(oracle, axis):
    mirrored = torch.roll(oracle[0].flip(axis), 1, dims=axis)
    assert float(agreement(oracle, voxels=mirrored).max()) < 0.9


def test_projection_with_the_shift_reversed_does_not_agree_with_relion(oracle):
    if not bool(oracle[2].any()):
        assert float(agreement(oracle, shift=oracle[2] + torch.tensor([6.0, 0.0])).max()) < 0.9
        return
    assert float(agreement(oracle, shift=-oracle[2]).max()) < 0.9
    assert float(agreement(oracle, shift=oracle[2].flip(-1)).max()) < 0.9


def smooth_field(points: torch.Tensor, centres: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
    """Density of the phantom as a function of what is learned."""
    return Blobs(1.5, centres, heights).density(points)


@pytest.fixture(scope="module")
def two_paths():
    """Images of the lattice path and the ray path, and the gradients of one functional of them."""
    phantom = blobs()
    rotation, count = rotations()[4:], 5
    # Of the frequencies that hold signal, as in a fit; at Nyquist the two lattices alias differently.
    weight = image_to_fourier(torch.randn(count, BOX, BOX, generator=torch.Generator().manual_seed(3)))
    weight = fourier_to_image(weight * (frequency_grid(BOX).norm(dim=-1) < 0.3), BOX)
    results = []
    for path in ("lattice", "rays"):
        leaves = {
            "centres": phantom.centres.clone(),
            "heights": phantom.heights.clone(),
            "turn": torch.zeros(count, 3),
            "shift": some_shifts(count),
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        # A step on the rotation group: off it, the two paths differ by design.
        pose = rotation_from_axis_angle(leaves["turn"]) @ rotation
        if path == "lattice":
            density = smooth_field(lattice_points(BOX), leaves["centres"], leaves["heights"])
            coefficients = project(density, pose, leaves["shift"])
        else:
            coefficients = project_rays(
                lambda points, at=leaves: smooth_field(points, at["centres"], at["heights"]),
                *(pose, leaves["shift"], BOX, 15.0),
            )
        images = fourier_to_image(coefficients, BOX)
        gradients = torch.autograd.grad((images * weight).sum(), list(leaves.values()))
        results.append((images.detach(), dict(zip(leaves, gradients, strict=True))))
    return results


def test_lattice_path_sees_the_same_images_as_the_ray_path(two_paths):
    (lattice, _), (rays, _) = two_paths
    assert relative_error(lattice, rays) < 2e-3


@pytest.mark.parametrize("leaf", ["centres", "heights", "turn", "shift"])
def test_lattice_path_has_the_same_gradients_as_the_ray_path(two_paths, leaf):
    (_, lattice), (_, rays) = two_paths
    assert float(rays[leaf].norm()) > 1
    assert relative_error(lattice[leaf], rays[leaf]) < 5e-3


def test_rays_stop_at_the_radius():
    everywhere = project_rays(lambda points: torch.ones(points.shape[:-1]), torch.eye(3)[None], no_shift(1), 16, 5.0)
    # Points of the integer lattice in a ball of radius 5 (Gauss).
    assert float(everywhere[0, 0, 0].real) == 515


def transform_of(phantom: Blobs, box: int = BOX):
    """Exact transform of the phantom at frequencies in shells of the box; complains of the half space it is spared."""

    def coefficient_at(shells: torch.Tensor) -> torch.Tensor:
        assert float(shells[..., 2].min()) >= 0
        frequency = shells.double() / box
        angle = -2 * math.pi * frequency @ phantom.centres.double().T
        mass = phantom.heights.double() * (2 * math.pi * phantom.sigma**2) ** 1.5
        falloff = torch.exp(-2 * math.pi**2 * phantom.sigma**2 * frequency.square().sum(-1))
        return ((torch.polar(mass.expand_as(angle), angle)).sum(-1) * falloff).to(torch.complex64)

    return coefficient_at


def test_a_central_slice_of_the_transform_is_the_projection_of_the_density():
    phantom, rotation = blobs(), rotations()
    shift = some_shifts(len(rotation))
    found = project_slices(transform_of(phantom), rotation, shift, BOX)
    expected = phantom.projection(rotation, shift, BOX)
    inside = frequency_grid(BOX).norm(dim=-1) * BOX <= BOX / 2 - 1
    for particle in range(len(rotation)):
        assert relative_error(found[particle][inside], expected[particle].to(torch.complex64)[inside]) < 1e-4
    # Nothing is said about the corners, the Nyquist lines among them.
    assert not bool(found[:, ~inside].abs().any())


def test_slices_and_splatted_points_are_the_same_projection():
    phantom, rotation = blobs(), rotations()
    shift = some_shifts(len(rotation))
    slices = project_slices(transform_of(phantom), rotation, shift, BOX)
    points = project(phantom.density(lattice_points(BOX)), rotation, shift)
    assert max(relative_error(one, other) for one, other in zip(slices, points, strict=True)) < 0.005


def test_slices_of_a_magnified_molecule_are_those_of_the_molecule_nearer_to_the_centre_of_fourier_space():
    phantom, rotation = blobs(), rotations()
    found = project_slices(transform_of(phantom), rotation * 0.8, no_shift(len(rotation)), BOX)
    smaller = phantom.scaled(0.8).projection(rotation, no_shift(len(rotation)), BOX).to(torch.complex64)
    # A pixel that is 1 / 0.8 as large holds as much less of the mass in each of three directions.
    inside = found.abs() > 0
    assert relative_error(found[inside] * 0.8**3, smaller[inside]) < 1e-4
