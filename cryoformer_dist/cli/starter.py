"""Starter files: the ``cluster/`` and ``configs/`` of the repository, which travel in the wheel."""

import shutil
from pathlib import Path

from cryoformer_dist.errors import ConfigError

_FOLDERS = ("cluster", "configs")
_KINDS = {".yaml", ".yml", ".json", ".md"}


def find_starter_folder(name: str) -> Path:
    """Where ``cluster`` or ``configs`` lies: in the installed package, or in the clone."""
    package = Path(__file__).parents[1]
    installed = package / "starter_files" / name
    return installed if installed.is_dir() else package.parent / name


def write_starter_files(target: Path) -> list[Path]:
    """Copy the starter files under a folder.

    Raises
    ------
    ConfigError
        If one of them is there already: nothing is written then.
    """
    pairs = [
        (source, target / name / source.relative_to(find_starter_folder(name)))
        for name in _FOLDERS
        for source in sorted(find_starter_folder(name).rglob("*"))
        if source.suffix in _KINDS
    ]
    present = [str(path) for _, path in pairs if path.exists()]
    if present:
        raise ConfigError(f"already there, not overwritten: {', '.join(present)}; choose another folder")
    for source, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return [path for _, path in pairs]
