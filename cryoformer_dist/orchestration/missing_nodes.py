"""Word of nodes that training waits for: Ray waits for room in silence."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.orchestration.nodes import Node, list_nodes
from cryoformer_dist.orchestration.resources import count_room
from cryoformer_dist.runs.waiting import withdraw_waiting, write_waiting
from cryoformer_dist.storage.places import Place, client_errors

_LOOK_SECONDS, _TELL_SECONDS = 2.0, 60.0


class MissingNodes:
    """What is to be said of the nodes of a run, look by look.

    Parameters
    ----------
    workers
        Training waits while the nodes that are up do not hold the fewest of them.
    """

    def __init__(self, workers: WorkersConfig) -> None:
        self._workers = workers
        self._hosts: dict[str, str] = {}
        self._since: float | None = None

    @property
    def waited_seconds(self) -> float:
        """How long training has waited by now."""
        return 0.0 if self._since is None else time.time() - self._since

    def look(self, nodes: list[Node]) -> str:
        """For whom training waits; empty when it does not.

        Parameters
        ----------
        nodes
            That are up. Any that was up at an earlier look and is not now is gone.
        """
        up = {node.address: node.host for node in nodes}
        self._hosts |= up
        room = sum(count_room(node, self._workers) for node in nodes)
        if room >= self._workers.fewest:
            self._since = None
            return ""
        self._since = self._since or time.time()
        gone = sorted(f"{host} ({address})" for address, host in self._hosts.items() if address not in up)
        named = f"; gone: {', '.join(gone)}" if gone else ""
        begin = time.strftime("%H:%M:%S", time.localtime(self._since))
        remedy = "" if self._workers.elastic else ", or goes on without waiting where workers.count is FEWEST..MOST"
        return (
            f"training waits since {begin} for room for {self._workers.fewest} workers: the nodes that are up hold "
            f"{room}{named}; it goes on when there is room{remedy}"
        )


@contextmanager
def telling_of_missing_nodes(home: Place, workers: WorkersConfig, say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, say whom training waits for, at once and every minute, and in the run directory (`status`)."""
    missing, stop = MissingNodes(workers), threading.Event()

    def watch() -> None:
        told, last_told = "", 0.0
        while not stop.wait(_LOOK_SECONDS):
            waited, told_before = missing.waited_seconds, told
            told = missing.look(list_nodes())
            if told != told_before:
                _write_down(home, told)
            if told and (told != told_before or time.monotonic() - last_told >= _TELL_SECONDS):
                last_told = time.monotonic()
                say(told)
            elif told_before and not told:
                say(f"training goes on: there is room again, after {waited:.0f} s")

    _write_down(home, "")
    thread = threading.Thread(target=watch, name="missing-nodes")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _write_down(home, "")


def _write_down(home: Place, waiting: str) -> None:
    # That storage is away is for others to say.
    with suppress(OSError, *client_errors()):
        if waiting:
            write_waiting(home, waiting)
        else:
            withdraw_waiting(home)
