from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.blobs import blobs, microscope
from support.stored_images import stored_images
from support.tiny_runs import write_set

from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.data.stored_particles import StoredParticles
from cryoformer_dist.initialization import pose_search
from cryoformer_dist.initialization.linear_model import fit_principal_maps
from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.initialization.pose_search import (
    LinearConformations,
    PoseSearchResult,
    search_poses,
    search_poses_by_conformation,
)
from cryoformer_dist.initialization.projection_matching import ReferenceMap
from cryoformer_dist.initialization.search_rounds import ROUNDS_BY_CONFORMATION, SearchRound
from cryoformer_dist.physics.pose import (
    Pose,
    random_rotations,
    rotation_angle_deg,
    rotation_from_axis_angle,
    squared_frobenius,
)

RIGID: dict[str, Any] = {"states": {"kind": "discrete", "count": 1}, "box": 32}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _true_pose(path: Path, particles: StoredParticles) -> Pose:
    """Clean poses of each store row."""
    with np.load(path.parent / "particles" / "truth" / "truth.npz") as truth:
        row = particles.source_row
        return Pose(
            torch.from_numpy(truth["rotation"][row]).float(), torch.from_numpy(truth["shift_angstrom"][row]).float()
        )


def _medians(pose: Pose, true: Pose) -> tuple[float, float]:
    """Squared Frobenius error and shift error (angstrom) of the particle in the middle."""
    rotation = squared_frobenius(pose.rotation, true.rotation).median()
    return float(rotation), float((pose.shift_angstrom - true.shift_angstrom).norm(dim=1).median())


@pytest.fixture(scope="module")
def astray(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoseSearchResult, Pose, Pose]:
    """Outcome, given and true poses of a rigid molecule whose poses are off as in the paper's section 5.4, halved."""
    perturbation = {"rotation_variance": 0.047, "shift_pixels": 10}
    path = write_set(tmp_path_factory.mktemp("astray"), particles=300, snr=20, perturbation=perturbation, **RIGID)
    store = ParticleStore.open(path)
    particles = store.particles()
    return search_poses(store, np.arange(300), 0), particles.pose(), _true_pose(path, particles)


def test_poses_fifteen_degrees_off_are_brought_near_the_truth(astray: tuple[PoseSearchResult, Pose, Pose]) -> None:
    found, given, true = astray
    before, after = _medians(given, true), _medians(found.pose, true)
    assert before[0] > 0.09
    assert before[1] > 12
    assert after[0] < 0.2 * before[0]
    assert after[1] < 0.25 * before[1]
    # Most, not only the one in the middle.
    better = squared_frobenius(found.pose.rotation, true.rotation) < squared_frobenius(given.rotation, true.rotation)
    assert float(better.float().mean()) > 0.85


def test_maps_of_their_own_conformations_bring_poses_nearer_than_one_rigid_map(tmp_path: Path) -> None:
    perturbation = {"rotation_variance": 0.047, "shift_pixels": 10}
    path = write_set(tmp_path, particles=300, snr=5, box=32, perturbation=perturbation)
    store, rows = ParticleStore.open(path), np.arange(300)
    true = _true_pose(path, store.particles())
    rigid = search_poses(store, rows, 0).pose
    with np.load(path.parent / "particles" / "truth" / "truth.npz") as truth:
        state = torch.from_numpy(truth["state"][store.particles().source_row]).float()
    # An arm's swing and how it curves.
    swing = (state - state.mean()) / state.std()
    latents = torch.stack([swing, swing.square() - swing.square().mean()], dim=1)
    maps = fit_principal_maps(store.with_pose(rows, rigid), rows, sphere(32), latents)
    found = search_poses_by_conformation(
        store, rows, rigid, LinearConformations(latents, maps), ROUNDS_BY_CONFORMATION[0], seed=0
    )
    before, after = (squared_frobenius(pose.rotation, true.rotation).mean() for pose in (rigid, found))
    assert float(after) < 0.75 * float(before)
    assert _medians(found, true)[1] < _medians(rigid, true)[1]


def test_the_agreement_of_the_halves_tells_that_the_search_did_good(
    astray: tuple[PoseSearchResult, Pose, Pose],
) -> None:
    found = astray[0]
    assert not found.kept
    assert found.agreement_found > found.agreement_given + 0.3


def test_neither_half_turns_or_drifts_away_from_the_frame_of_the_given_poses(
    astray: tuple[PoseSearchResult, Pose, Pose],
) -> None:
    found, _, true = astray
    for half in (slice(0, None, 2), slice(1, None, 2)):
        common = (true.rotation[half].mT @ found.pose.rotation[half]).mean(0)
        # A common turn by 4 degrees, as the halves take when left alone, puts 0.07 off the diagonal.
        assert float((common - common.mT).abs().max()) / 2 < 0.035
        seen = found.pose.rotation[half][:, :2].reshape(-1, 3)
        moved = (found.pose.shift_angstrom - true.shift_angstrom)[half].reshape(-1, 1)
        assert float(torch.linalg.lstsq(seen, moved).solution.norm()) < 3.0


def test_true_poses_are_left_where_they_are(tmp_path: Path) -> None:
    path = write_set(tmp_path, particles=100, snr=2, **RIGID)
    store = ParticleStore.open(path)
    true = _true_pose(path, store.particles())
    found = search_poses(store, np.arange(100), 0)
    rotation, shift = _medians(found.pose, true)
    assert rotation < 0.005
    assert shift < 0.25 * store.pixel_size_angstrom


def _likeness(store: ParticleStore, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation of every image with the slice at its given pose, and its amplitude, as a round compares the two."""
    seen: list[torch.Tensor] = []
    original = ReferenceMap.find_most_probable

    def best(reference: ReferenceMap, weighted: Any, energy: Any, transfer: Any, rotation: Any, *rest: Any) -> Any:
        # The first candidate is the pose itself.
        expected = reference.slices.at(rotation[:, 0])[0]
        match = (expected.conj() * weighted).real.sum(1)
        power = (expected * transfer).abs().square().sum(1)
        seen.append(torch.stack([match / (power * energy).sqrt(), match / power]))
        return original(reference, weighted, energy, transfer, rotation, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pose_search, "ROUNDS", (SearchRound(10, 5.0, 2, 0.0, 1.0),))
        patch.setattr(ReferenceMap, "find_most_probable", best)
        search_poses(store, np.arange(len(store.particles().source_row)), 0)
    likeness, amplitude = torch.cat(seen, dim=1)
    return likeness, amplitude


def test_images_of_another_pixel_size_are_compared_with_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio, count = 1.2, 200
    # In pairs, since every second particle goes to the other half.
    coarse = (torch.arange(count) // 2) % 2 == 1
    pixel_size = torch.where(coarse, 4.0 * ratio, 4.0)
    moved = torch.randn(count, 2, generator=_generator(2)) * 1.5
    pose = Pose(random_rotations(count, _generator(1)), -moved * pixel_size[:, None])
    # Large and sharp: pixel sizes tell most at the rim.
    phantom = replace(blobs().scaled(1.6), sigma=1.3)
    images = phantom.images(pose.rotation, moved, 32)
    images[coarse] = phantom.as_stored(1 / ratio).images(pose.rotation, moved, 32)[coarse]
    (right, amplitude), (unknown, _) = (
        _likeness(stored_images(images, pose, microscope(count), size), monkeypatch)
        for size in (pixel_size, torch.full_like(pixel_size, 4.0))
    )
    assert len(right) == count
    assert float(right.min()) > 0.97
    assert float(unknown.median()) < 0.96
    # Halves are searched one after the other, each with as many of both.
    seen = torch.cat([coarse[0::2], coarse[1::2]])
    assert float(amplitude[seen].mean() / amplitude[~seen].mean()) == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def turned(store: ParticleStore) -> ParticleStore:
    """The tiny store, its poses turned by about ten degrees."""
    given = store.particles().pose()
    turn = rotation_from_axis_angle(0.1 * torch.randn(len(store), 3, generator=_generator(9)))
    return store.with_pose(np.arange(len(store)), Pose(turn @ given.rotation, given.shift_angstrom))


def test_a_seed_gives_the_same_poses_of_the_rows_asked_for_and_counts_them_all(turned: ParticleStore) -> None:
    rows = np.arange(1, 60)
    calls: list[tuple[int, int]] = []
    first = search_poses(turned, rows, 0, lambda *call: calls.append(call))
    again, other = search_poses(turned, rows, 0), search_poses(turned, rows, 5)
    assert torch.equal(first.pose.rotation, again.pose.rotation)
    assert torch.equal(first.pose.shift_angstrom, again.pose.shift_angstrom)
    assert (first.agreement_given, first.agreement_found) == (again.agreement_given, again.agreement_found)
    assert first.agreement_given == other.agreement_given
    assert first.agreement_found != other.agreement_found
    assert first.pose.rotation.shape == (59, 3, 3)
    # A box too small for any round is searched once, at what it holds: 30 particles of one half, 29 of the other.
    assert calls == [(30, 59), (59, 59)]


def test_given_poses_are_kept_row_by_row_where_found_ones_agree_less(
    turned: ParticleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(3, 50)
    outcomes = {}
    for name, after in (("better", 0.9), ("worse", 0.2), ("equal", 0.5)):
        agreement = iter((0.5, after))
        monkeypatch.setattr(pose_search, "_measure_agreement", lambda *_, agreement=agreement: next(agreement))
        outcomes[name] = search_poses(turned, rows, 0)
    assert {name: found.kept for name, found in outcomes.items()} == {"better": False, "worse": True, "equal": True}
    given = turned.particles().pose(rows)
    for name in ("worse", "equal"):
        assert torch.equal(outcomes[name].pose.rotation, given.rotation)
        assert torch.equal(outcomes[name].pose.shift_angstrom, given.shift_angstrom)
    angle = rotation_angle_deg(outcomes["better"].pose.rotation, given.rotation)
    assert float(angle.mean()) > 1
    # Around the given pose of the same row: the widest cone is 30 degrees, the turn of the frame comes on top.
    assert float(angle.max()) < 50
