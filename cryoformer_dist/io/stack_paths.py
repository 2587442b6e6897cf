"""From the path that a metadata file writes to the stack on this machine."""

import re
from collections.abc import Sequence
from pathlib import Path

from cryoformer_dist.errors import ParticleFormatError

_FORMAT = re.compile(r":mrcs?$")


def resolve_stacks(written: Sequence[str], source: Path, datadir: Path | None = None) -> tuple[Path, ...]:
    """Find every stack; the first existing candidate wins, a stack found nowhere keeps its written path.

    The order is: in `datadir` (the whole path, then the bare name; asked for by the user, so it goes first),
    as written, beside the metadata file, in each folder above it (RELION and cryoSPARC write paths relative
    to the project). The leading ``>`` of cryoSPARC is dropped, and so is the format that RELION takes after a colon
    (``a.mrc:mrcs``).

    Parameters
    ----------
    written
        Distinct paths in the words of the file.
    source
        The metadata file.
    datadir
        Folder that holds the stacks, or None.

    Raises
    ------
    ParticleFormatError
        If two different written paths end at one file in `datadir` by their bare names: give the folder that
        keeps them apart.
    """
    folder = source.absolute().parent
    bases = [folder, *folder.parents]
    found: list[Path] = []
    origin: dict[Path, str] = {}
    for text in written:
        path = _as_path(text)
        resolved = _first_existing(path, bases, datadir)
        twin = origin.setdefault(resolved, text)
        if _as_path(twin) != path and resolved.name == path.name and _from_datadir(resolved, datadir):
            raise ParticleFormatError(
                f"{source}: the stacks {twin} and {text} both lead to {resolved}; give as --datadir the "
                "folder below which the written paths exist, so that they stay apart"
            )
        found.append(resolved)
    return tuple(found)


def _as_path(written: str) -> Path:
    return Path(_FORMAT.sub("", written.removeprefix(">")))


def _first_existing(path: Path, bases: Sequence[Path], datadir: Path | None) -> Path:
    for candidate in _candidates(path, bases, datadir):
        if is_readable_file(candidate):
            return candidate
    return path


def is_readable_file(path: Path) -> bool:
    """Whether there is a regular file; a name that no file system can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _candidates(path: Path, bases: Sequence[Path], datadir: Path | None) -> list[Path]:
    candidates: list[Path] = []
    if datadir is not None:
        inside = path.relative_to(path.anchor) if path.is_absolute() else path
        candidates += [datadir / inside, datadir / path.name]
    candidates.append(path)
    if not path.is_absolute():
        candidates += [base / path for base in bases]
    return candidates


def _from_datadir(resolved: Path, datadir: Path | None) -> bool:
    return datadir is not None and resolved.parent == datadir
