import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.rotating_blobs import blobs

from cryoformer_dist.figures import check
from cryoformer_dist.figures.check import CheckPicture, draw_check
from cryoformer_dist.physics.fourier import fourier_shell_correlation
from cryoformer_dist.physics.volume import Volume


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(check, "Figure", Kept)
    return figures


def test_the_picture_is_drawn_like_all_others_and_no_finding_runs_out_of_it(tmp_path, drawn):
    volume = Volume(torch.from_numpy(blobs(np.zeros(1))[0]), 4.0)
    fsc = fourier_shell_correlation(volume.voxels, volume.voxels, 4.0)
    images = np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32)
    findings = ["short", "a finding that goes on and on, as one that names all conventions does: " + 20 * "word and "]
    draw_check(tmp_path / "check.png", CheckPicture(images, 4.0, findings, True, volume, fsc))
    (figure,) = drawn
    curve = next(axes for axes in figure.axes if axes.get_ylabel() == "Fourier shell correlation")
    assert not curve.spines["top"].get_visible()
    assert not curve.get_legend().get_frame_on()
    words = figure.axes[0].texts[0]
    assert words.get_text().replace("\n", " ") == f"- short - {findings[1].strip()}"
    assert words.get_window_extent().x1 < figure.bbox.x1


def test_images_alone_are_drawn_without_maps(tmp_path, drawn):
    images = np.zeros((2, 16, 16), dtype=np.float32)
    draw_check(tmp_path / "check.png", CheckPicture(images, 4.0, ["no poses"]))
    assert len(drawn[0].axes) == 2 * len(images) + 1


def test_a_problem_is_seen_from_afar(tmp_path, drawn):
    images = np.zeros((2, 16, 16), dtype=np.float32)
    for healthy in (True, False):
        draw_check(tmp_path / "check.png", CheckPicture(images, 4.0, ["a finding"], healthy))
    ready, look = (next(text for text in figure.axes[0].findobj(Text) if text.get_fontsize() > 12) for figure in drawn)
    assert ready.get_text().startswith("Ready to train")
    assert look.get_text() == "Look before training"
    assert ready.get_color() != look.get_color()
