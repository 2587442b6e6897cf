"""Files to begin with: the repository's ``cluster/`` and ``configs/``, or two for somebody's own particles."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cryoformer_dist.errors import ConfigError

_FOLDERS = ("cluster", "configs")
_KINDS = {".yaml", ".yml", ".json", ".md"}
CLUSTER_FILE, RUN_FILE, STORE = "cluster.yaml", "run.yaml", "particles.zarr"
"""What a folder made for somebody's own particles holds; the store once they are converted."""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """A first training on somebody's own particles.

    Attributes
    ----------
    name
        Of the run directory.
    source
        The particle file.
    source_box, box
        Side of the images in it and in the store, pixels.
    pixel_size_angstrom
        In the store.
    gpus, cores
        Of this machine.
    """

    name: str
    source: Path
    particles: int
    source_box: int
    box: int
    pixel_size_angstrom: float
    epochs: int
    gpus: int
    cores: int

    def describe(self) -> str:
        """What was chosen, in one line."""
        return (
            f"{self.particles} particles of {self.source_box} px, converted to {self.box} px of "
            f"{self.pixel_size_angstrom:.3g} A (nothing finer than {2 * self.pixel_size_angstrom:.3g} A is seen), "
            f"{self.epochs} epochs"
        )

    @property
    def workers(self) -> str:
        """One for each GPU; without any, two that share the cores."""
        if self.gpus:
            return f"{{count: {self.gpus}, gpus: 1}}"
        count = min(2, self.cores)
        return f"{{count: {count}, cpus: {0.9 * self.cores / count:.3g}}}"


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
    _refuse_present([path for _, path in pairs])
    for source, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return [path for _, path in pairs]


def write_own_files(target: Path, run: OwnRun) -> list[Path]:
    """Write cluster and run file of a training on somebody's own particles.

    Raises
    ------
    ConfigError
        If one of them is there already: nothing is written then.
    """
    texts = {target / CLUSTER_FILE: _cluster_text(target, run), target / RUN_FILE: _run_text(run)}
    _refuse_present(list(texts))
    target.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _refuse_present(paths: list[Path]) -> None:
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise ConfigError(f"already there, not overwritten: {', '.join(present)}; choose another folder")


def _cluster_text(target: Path, run: OwnRun) -> str:
    return f"""\
# cryoformer-dist launch {target / CLUSTER_FILE}
# Where it runs: this machine. Every key: cryoformer-dist config schema cluster.local
run: {RUN_FILE}
provider: local
storage: runs                 # run directories, beside this file
workers: {run.workers}
"""


def _run_text(run: OwnRun) -> str:
    return f"""\
# What is trained: {run.describe()}.
# From {run.source}
# Every key: cryoformer-dist config schema
name: {run.name}
dataset:
  store: {STORE}        # beside this file; `cryoformer-dist convert` makes it
  half: both                  # 1 or 2 trains on one half-set
training:
  epochs: {run.epochs}
  global_batch_size: auto     # the most that fit the workers and still learn well
"""
