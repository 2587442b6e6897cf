import builtins

import numpy as np
import pytest
from PIL import Image
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.figures.movies import Film, choose_bar, draw_frames, require_encoder, write_movie

MAPS = blobs(np.array([0.0, 60.0, 120.0]))


def film(turntable: bool = False, maps: np.ndarray = MAPS, height: int = 120) -> Film:
    return Film("pc1", maps, VOXEL_SIZE_ANGSTROM, height, turntable)


def test_a_film_goes_forth_and_back_and_meets_every_map() -> None:
    positions = film().positions()
    assert {0.0, 1.0, 2.0} <= set(positions)
    assert positions[0] == 0
    assert np.abs(np.diff(np.append(positions, 0))).max() == pytest.approx(1 / 3)


def test_frames_show_the_molecule_what_it_is_and_a_bar_of_the_told_length(tmp_path) -> None:
    frames = list(draw_frames(film()))
    assert {frame.size for frame in frames} == {(214, 120)}
    first, middle = (np.asarray(frames[number]).astype(int) for number in (0, 6))
    # The molecule differs in the middle, the text on the left does not.
    assert np.abs(first - middle)[:, 60:].max() > 100
    assert (first[:20, :30] < 150).any()
    bar = (first[100:, :100].sum(axis=2) < 250).sum(axis=1).max()
    assert bar > 8
    written = write_movie(tmp_path / "a.gif", iter(frames), film().size, ".gif")
    with Image.open(written) as image:
        assert image.n_frames == len(frames)


def test_on_a_turntable_one_map_is_seen_from_all_sides() -> None:
    frames = draw_frames(film(turntable=True, maps=MAPS[:1]))
    first, *_, last = (np.asarray(frame).astype(int) for _, frame in zip(range(13), frames, strict=False))
    assert np.abs(first - last)[:, 60:].max() > 100


def test_a_bar_is_round_and_at_most_a_quarter() -> None:
    assert [choose_bar(width) for width in (230, 110, 81, 8000)] == [50, 20, 20, 2000]


def test_without_an_encoder_it_is_refused_by_name(monkeypatch) -> None:
    real = builtins.__import__

    def absent(name, *arguments, **named):
        if name == "imageio_ffmpeg":
            raise ImportError("none")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(BackendUnavailableError, match=r"cryoformer-dist\[movie\]"):
        require_encoder()


def test_an_mp4_is_a_film_of_its_size(tmp_path) -> None:
    encoder = pytest.importorskip("imageio_ffmpeg")
    path = write_movie(tmp_path / "a.mp4", draw_frames(film()), film().size, ".mp4")
    count, seconds = encoder.count_frames_and_secs(str(path))
    assert count == len(film().positions())
    assert seconds == pytest.approx(count / 12, rel=0.1)
