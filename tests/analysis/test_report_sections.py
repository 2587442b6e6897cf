import numpy as np
import pytest
from support.judged_runs import judged
from support.rotating_blobs import BOX, VOXEL_SIZE_ANGSTROM, blobs, write_run, write_truth

from cryoformer_dist.analysis import report
from cryoformer_dist.analysis.flexibility import measure_flexibility
from cryoformer_dist.analysis.flexibility_files import judge_flexibility, write_flexibility
from cryoformer_dist.analysis.report_sections import show_clusters, show_flexibility, show_particles
from cryoformer_dist.analysis.trained import DecodedState
from cryoformer_dist.figures.surfaces import find_best_view, find_common_level
from cryoformer_dist.runs.image_scores import Calibration, JunkFound, OtherCause, OtherCauses
from cryoformer_dist.runs.training_log import SearchFindings
from cryoformer_dist.storage.working_folder import WorkingFolder

TRUTH = blobs(np.arange(0.0, 360.0, 30.0))
VIEW = find_best_view(TRUTH, find_common_level(TRUTH))


def write_regions(folder, truth):
    attention = np.random.default_rng(0).dirichlet(np.ones(7), BOX**3).astype(np.float32)
    states = (DecodedState(voxels.ravel(), attention) for voxels in TRUTH)
    flexibility = measure_flexibility(states, np.arange(BOX**3), BOX)
    write_flexibility(WorkingFolder.on_disk(folder), flexibility, VOXEL_SIZE_ANGSTROM)
    if truth is not None:
        judge_flexibility(folder, truth)
    return folder


@pytest.fixture
def run(tmp_path):
    return write_regions(tmp_path, TRUTH)


def test_section_shows_the_mean_and_three_states_once_per_map(run):
    section = show_flexibility(run, TRUTH, VIEW, 32)
    assert section.captions == ["mean map", "group 0", "group 6", "group 11"]
    assert [len(row.images) for row in section.rows] == [4, 4, 4]
    flexible, attention, _ = section.rows
    assert len({image.uri for image in flexible.images}) == 4
    assert [image.uri for image in flexible.images] != [image.uri for image in attention.images]
    assert all((run / row.file).is_file() for row in section.rows)


def test_section_says_what_was_measured_and_nothing_of_a_truth_that_is_not_known(run, tmp_path):
    section = show_flexibility(run, TRUTH, VIEW, 32)
    assert "12 particles" in section.text
    assert "best of 7" in section.text
    assert len(section.queries) == 5
    assert section.detectors[0].name == "Flexibility map"
    assert section.detectors[0].value == "1.000"
    write_regions(tmp_path, None)
    assert show_flexibility(tmp_path, TRUTH, VIEW, 32).detectors == []


def test_no_section_without_files_or_clusters(tmp_path):
    assert show_flexibility(tmp_path, TRUTH, VIEW, 32) is None
    assert show_clusters({}, TRUTH, VIEW, 32) is None
    assert show_clusters({"kmeans_label": np.zeros(3, dtype=int)}, TRUTH[:1], VIEW, 32) is None


@pytest.mark.parametrize(("count", "shown"), [(3, 3), (20, 12)])
def test_clusters_show_their_share_of_the_particles_and_twelve_maps_at_most(count, shown):
    label = np.concatenate([np.zeros(50, dtype=int), np.repeat(np.arange(1, count), 50 // (count - 1))])
    points = np.random.default_rng(0).normal(size=(len(label), 2))
    latent = {
        "pca": points,
        "explained_variance": np.array([0.6, 0.4]),
        "kmeans_pca": np.array([points[label == k].mean(axis=0) for k in range(count)]),
        "kmeans_label": label,
    }
    section = show_clusters(latent, blobs(np.linspace(0, 300, count)), VIEW, 24)
    captions = [caption for _, caption in section.tiles]
    assert len(captions) == shown
    assert captions[0] == f"0 · {50 / len(label):.0%}"
    assert captions[-1].startswith(f"{count - 1} ·")


def test_page_shows_the_flexible_regions_that_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_LARGE", 40)
    monkeypatch.setattr(report, "_SMALL", 32)
    truth = write_truth(tmp_path / "truth", 200, 3)
    page = report.write_report(write_regions(write_run(tmp_path / "run", truth), TRUTH), truth).read_text()
    words = ("Flexible regions</h2>", "chimerax flexibility.cxc", "attention/variation.mrc", "moves in truth?")
    assert [text for text in words if text not in page] == []
    assert page.count("coloured by Flexibility") == 4


def test_what_was_found_of_single_particles_is_put_in_words():
    rng = np.random.default_rng(0)
    latent = {
        "latent": rng.normal(size=(200, 2)),
        "latent_deviation": np.full((200, 2), 0.5),
        "amplitude": rng.normal(1, 0.2, 200),
        "weight": np.ones(200),
    }
    search = SearchFindings(1.5, 2.0, 0.8, 0.25, 0.1)
    causes = (OtherCause("amplitude", 0.3, 0.01, 2, 0.8, 0.9), OtherCause("defocus", 0.0, 0.01, 1, 0.0, 0.0))
    scores = judged(
        0.9,
        0.2,
        junk_found=JunkFound(0.1, 0.1, {"empty": 0.99}),
        calibration=Calibration(200, 1.2, 0.6, 10.0, 8.0, 1.5),
        other_causes=OtherCauses(200, causes, 0.8),
    )
    section = show_particles(latent, search, scores)
    values = {fact.name: fact.value for fact in section.facts}
    assert values["What an image says"] == "1.50 nats"
    assert values["Errors of the given poses"] == "2°, 0.8 Å"
    assert values["Amplitudes"] == "1 ± 0.25"
    assert values["Images of no particle"] == "10.0%"
    assert values["Errors over widths"] == "1.20"
    assert values["Junk told from particles"] == "empty 0.99"
    assert values["True contrast in the latents"] == "0.80"
    assert [row.stands_out for row in section.causes] == [True, False]
    assert len(section.advice) == 1
    assert "amplitude explains 30%" in section.advice[0]
    assert "amplitude" in section.distributions.svg
    # All weights are 1: there is nothing to see.
    assert "probability" not in section.distributions.svg


def test_of_a_run_that_looked_for_nothing_nothing_is_shown():
    assert show_particles({"latent": np.zeros((3, 2))}, None, judged(0.9, 0.2)) is None
