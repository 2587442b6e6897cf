"""The first process of a node: makes its file system, says that it is ready, and lives as long as whoever started it.

With it end all processes of the node, its mounts and its network. It uses nothing but Python's own library.
"""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main(described: str) -> None:
    """Become a node.

    Parameters
    ----------
    described
        JSON: ``name``; ``private``, folders that replace this machine's, by the path they replace; ``carried``, paths
        that stay visible below those, to be read; ``shared``, such a path that may be written to.
    """
    node = json.loads(described)
    socket.sethostname(node["name"])
    shared = Path(node["shared"])
    for place, folder in node["private"].items():
        for path in map(Path, node["carried"]):
            _show(path, Path(place), Path(folder), writable=path == shared)
    # The place that these folders lie in themselves comes last: it hides them.
    for place, folder in sorted(node["private"].items(), key=lambda pair: Path(pair[1]).is_relative_to(pair[0])):
        _mount("--rbind", folder, place)
    for place in ("/dev/shm", "/var/tmp"):
        _mount("-t", "tmpfs", "tmpfs", place)
    # Whatever programs write elsewhere would be left behind on the machine.
    _mount("-o", "remount,bind,ro", "/")
    # Orphans of the node are this process's children: nobody asks how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


def _show(path: Path, place: Path, folder: Path, writable: bool) -> None:
    """A path below ``place`` will be seen there although ``folder`` replaces it."""
    if not path.is_relative_to(place):
        return
    window = folder / path.relative_to(place)
    window.mkdir(parents=True, exist_ok=True)
    _mount("--bind", str(path), str(window))
    if not writable:
        _mount("-o", "remount,bind,ro", str(window))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
