"""The wish that a run end early: a file in its run directory, which reaches the ranks wherever they are."""

import time
from contextlib import suppress

from cryoformer_dist.runs.layout import STOP_REQUEST
from cryoformer_dist.storage.places import Place, client_errors

_SECONDS_BETWEEN_LOOKS = 1.0


def ask_to_stop(home: Place) -> None:
    """Have a run's ranks end after the step under way, with a checkpoint."""
    (home / STOP_REQUEST).write_text("")


def withdraw_stop(home: Place) -> None:
    """Forget an earlier wish, before a run goes on."""
    (home / STOP_REQUEST).unlink(missing_ok=True)


class StopRequest:
    """What a rank sees of the wish, looked for now and then.

    Parameters
    ----------
    home
        Run directory where it is kept.
    """

    def __init__(self, home: Place) -> None:
        self._file = home / STOP_REQUEST
        self._looked = float("-inf")
        self._seen = False

    def seen(self) -> bool:
        """Whether the run is to end; while storage is away there is no news."""
        now = time.monotonic()
        if not self._seen and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            with suppress(OSError, *client_errors()):
                self._seen = self._file.exists()
        return self._seen
