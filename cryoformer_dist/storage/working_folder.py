"""A folder to work in: its home itself where that is on a file system, else a working copy of it.

Programs that write maps, checkpoints and tables want files they can seek in and rename, and an object store has
neither. So work is done in a local folder and sent home file by file. Home is the authority: a working copy belongs
to one process, starts from what home holds, and is forgotten at the end.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.storage.places import Place, in_reach, place_at, replaced


class WorkingFolder:
    """A folder here, and where it is at home.

    Parameters
    ----------
    home
        Where the files are kept.
    folder
        Where they are worked on; ``home`` itself when that is on a file system.
    """

    def __init__(self, home: Place, folder: Path) -> None:
        self.home, self.folder = home, folder
        # Size and time of change of the files that are the same here and at home.
        self._same: dict[str, tuple[int, int]] = {}

    @classmethod
    def on_disk(cls, folder: Path) -> Self:
        """A folder that is its own home."""
        return cls(folder, folder)

    @property
    def is_copy(self) -> bool:
        """Whether home is somewhere else."""
        return not isinstance(self.home, Path)

    def at_home(self, path: Path) -> Place:
        """Where a file or folder here is kept."""
        return self.home / path.relative_to(self.folder).as_posix()

    def names_at_home(self, folder: str = "") -> list[str]:
        """Names of all files that home holds in a folder and below, sorted; none when it is not a copy."""
        if isinstance(self.home, Path):
            return []
        place = self.home / folder if folder else self.home
        start = len(self.home.path.rstrip("/")) + 1
        return sorted(str(path)[start:] for path in self.home.fs.find(place.path))

    def fetch(self, *names: str) -> None:
        """Bring files here; what home does not hold is left out."""
        if isinstance(self.home, Path):
            return
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replaced(target) as arriving:
                    self.home.fs.get_file((self.home / name).path, str(arriving))
            except FileNotFoundError:
                continue
            self._note(name)

    def send(self, *names: str) -> None:
        """Send files home, in the order given."""
        if isinstance(self.home, Path):
            return
        for name in names:
            self.home.fs.put_file(str(self.folder / name), (self.home / name).path)
            self._note(name)

    def remove(self, *names: str) -> None:
        """Remove files here and at home; absent ones are no matter."""
        for name in names:
            (self.home / name).unlink(missing_ok=True)
            (self.folder / name).unlink(missing_ok=True)
            self._same.pop(name, None)

    def send_changes(self, except_for: Collection[str] = (), last: str = "") -> None:
        """Make home the same as here: what is new or changed is sent, what was removed here is removed there.

        Parameters
        ----------
        except_for
            Names at the top of the folder that are left alone.
        last
            The file that says that the folder is whole.
        """
        if isinstance(self.home, Path):
            return
        here = [name for name in _files_in(self.folder) if name.split("/")[0] not in except_for]
        changed = [name for name in here if self._same.get(name) != self._state(name)]
        self.send(*sorted(changed, key=lambda name: (name == last, name)))
        for name in set(self._same) - set(here):
            if name.split("/")[0] not in except_for:
                (self.home / name).unlink(missing_ok=True)
                del self._same[name]

    def forget(self, name: str) -> None:
        """Remove a folder of the working copy; home keeps it."""
        if self.is_copy:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._same = {known: state for known, state in self._same.items() if not known.startswith(f"{name}/")}

    def _note(self, name: str) -> None:
        self._same[name] = self._state(name)

    def _state(self, name: str) -> tuple[int, int]:
        status = (self.folder / name).stat()
        return status.st_size, status.st_mtime_ns


@contextmanager
def open_working_folder(home: str | Place, except_for: Collection[str] = ()) -> Iterator[WorkingFolder]:
    """A folder to work in, with the files that its home holds; nothing is sent home unless asked for.

    Parameters
    ----------
    home
        A path, or ``s3://bucket/prefix``.
    except_for
        Names at the top of the folder that are not brought.

    Raises
    ------
    StorageError
        If the object store cannot be reached, or refuses.
    """
    place = place_at(home)
    if isinstance(place, Path):
        yield WorkingFolder.on_disk(place)
        return
    with tempfile.TemporaryDirectory(prefix="cryoformer-dist-") as temporary, in_reach(place):
        # Maps and reports show the name of their run.
        folder = WorkingFolder(place, Path(temporary) / place.name)
        folder.folder.mkdir()
        folder.fetch(*(name for name in folder.names_at_home() if name.split("/")[0] not in except_for))
        try:
            yield folder
        except CryoFormerError as error:
            message = str(error)
            if str(folder.folder) not in message:
                raise
            # The working copy is gone by the time anybody looks for it.
            raise type(error)(message.replace(str(folder.folder), str(place))) from error


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
