"""What the page shows as a film: the maps of a path, morphing, or one map, turning."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.figures.movies import Film, draw_frames, require_encoder, write_movie


@dataclass(frozen=True, slots=True)
class Filmed:
    """A film as it is handed to the page.

    Attributes
    ----------
    content
        Of the file.
    suffix
        ``.mp4``, or ``.gif`` where no encoder is installed.
    told
        Why it is a GIF; nothing of an MP4.
    """

    content: bytes
    suffix: str
    told: str


def make_film(film: Film) -> Filmed:
    """Draw and encode a film."""
    told = ""
    try:
        require_encoder()
    except BackendUnavailableError:
        told = "a GIF: for MP4, pip install 'cryoformer-dist[movie]' where the viewer runs"
    suffix = ".gif" if told else ".mp4"
    with TemporaryDirectory() as folder:
        written = write_movie(Path(folder) / f"film{suffix}", draw_frames(film), film.size, suffix)
        return Filmed(written.read_bytes(), suffix, told)
