"""How a run ends that its user stops: after the step under way, and at once for who asks again."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryoformer_dist.runs.stop_request import ask_to_stop
from cryoformer_dist.storage.places import Place

EXIT_CODE = 128 + signal.SIGINT
"""Of a program whose run its user stopped, as a shell reports one ended by Ctrl-C."""
EXIT_CODES = (EXIT_CODE, 128 + signal.SIGTERM)
"""The second where it was ended before it trained."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_after_a_step(home: Place, say: Callable[[str], None]) -> Iterator[None]:
    """While ranks train, let the first Ctrl-C or SIGTERM ask them to end; the next does what it did before.

    Parameters
    ----------
    home
        Run directory.
    say
        Told that they are asked.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask() -> None:
        say("stopping       after the step under way, with a checkpoint; Ctrl-C again ends at once")
        ask_to_stop(home)

    def hear(*_: object) -> None:
        restore()
        # Not here: a signal comes at any moment, also in the middle of a line that is printed.
        threading.Thread(target=ask, name="ask-to-stop").start()

    for number in _SIGNALS:
        signal.signal(number, hear)
    try:
        yield
    finally:
        restore()
