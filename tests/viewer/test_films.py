import numpy as np
import pytest
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.figures.movies import Film
from cryoformer_dist.viewer.films import make_film

FILM = Film("path", blobs(np.array([0.0, 60.0])), VOXEL_SIZE_ANGSTROM, 120, turntable=False)


def refuse() -> None:
    raise BackendUnavailableError("none")


def test_without_an_encoder_it_is_a_gif_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryoformer_dist.viewer.films.require_encoder", refuse)
    made = make_film(FILM)
    assert made.suffix == ".gif"
    assert made.content[:4] == b"GIF8"
    assert "cryoformer-dist[movie]" in made.told


def test_with_an_encoder_it_is_an_mp4() -> None:
    pytest.importorskip("imageio_ffmpeg")
    made = make_film(FILM)
    assert (made.suffix, made.told) == (".mp4", "")
    assert made.content[4:8] == b"ftyp"
