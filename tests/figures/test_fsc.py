import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest
import torch

from cryoformer_dist.errors import ConfigError
from cryoformer_dist.figures.fsc import draw_fsc
from cryoformer_dist.physics.fourier import FSCCurve


def curve(fall: float) -> FSCCurve:
    return FSCCurve(torch.exp(-fall * torch.arange(16) / 16), 32, 2.0)


CURVES = {"unmasked": curve(5), "corrected": curve(3), "consensus": curve(1)}


def test_the_picture_names_its_curves_and_their_resolution(tmp_path):
    path = draw_fsc(tmp_path / "new" / "fsc.svg", CURVES, "two maps", [curve(2), curve(4)])
    text = "".join(ElementTree.parse(path).getroot().itertext())
    for name, each in CURVES.items():
        assert f"{name}, {each.resolution_angstrom(0.143):.2f} Å at 0.143" in text
    assert "two maps" in text
    again = draw_fsc(tmp_path / "again.svg", CURVES, "two maps", [curve(2), curve(4)])
    assert again.read_bytes() == path.read_bytes()


def test_the_suffix_decides_and_another_is_refused(tmp_path):
    picture = matplotlib.image.imread(draw_fsc(tmp_path / "fsc.png", CURVES, "two maps"))
    assert picture.std() > 0.01
    assert draw_fsc(tmp_path / "fsc.pdf", CURVES, "two maps").read_bytes().startswith(b"%PDF")
    with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf"):
        draw_fsc(tmp_path / "fsc.jpg", CURVES, "two maps")
