"""A series of maps as a film: found, checked, drawn and encoded."""

from pathlib import Path

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.series import read_series
from cryoformer_dist.figures.movies import Film, draw_frames, require_encoder, write_movie
from cryoformer_dist.runs.layout import SERIES_MAPS, VOLUMES
from cryoformer_dist.storage.places import replaced

_SUFFIXES = (".gif", ".mp4")


def film_series(folder: Path, name: str, output: Path, height: int, turntable: bool) -> Path:
    """Film a series of maps.

    Parameters
    ----------
    folder
        Run directory, or a folder with maps that `volumes` wrote.
    name
        Of the series: ``pc1``, ``kmeans``, ``path``.
    output
        ``.gif`` or ``.mp4``.
    height
        Of the picture in pixels, even.
    turntable
        Whether the molecule turns meanwhile.

    Raises
    ------
    ExplorationError
        If there is no such series, or the film is of another kind.
    BackendUnavailableError
        If an MP4 is asked for and imageio-ffmpeg is not installed.
    """
    if output.suffix not in _SUFFIXES:
        raise ExplorationError(f"{output}: films are written as {' or '.join(_SUFFIXES)}")
    if output.suffix == ".mp4":
        require_encoder()
    maps = folder / VOLUMES if (folder / VOLUMES).is_dir() else folder
    files = sorted(maps.glob(SERIES_MAPS.format(series=name)))
    if not files:
        there = sorted({file.stem.rpartition("_")[0] for file in maps.glob(SERIES_MAPS.format(series="*"))})
        raise ExplorationError(f"{folder}: no series of maps named {name}; there are {', '.join(there) or 'none'}")
    volumes, voxel_size_angstrom = read_series(files)
    film = Film(name, volumes, voxel_size_angstrom, height, turntable)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(output) as beside:
        write_movie(beside, draw_frames(film), film.size, output.suffix)
    return output
