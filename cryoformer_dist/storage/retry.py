"""Trying again while storage is full or away, all ranks of a run together."""

import errno
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryoformer_dist.errors import CheckpointNotWrittenError, CryoFormerError, StorageTroubleWarning
from cryoformer_dist.storage.places import (
    EXPIRED_REMEDY,
    Place,
    client_errors,
    has_expired,
    is_out_of_reach,
    renew_credentials,
)

_PASSING = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT"),
        *("ENOENT", "ESTALE", "EIO", "EREMOTEIO", "EBUSY", "EAGAIN", "ENXIO", "ENODEV"),
        *("ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
    if hasattr(errno, name)
}
_REFUSALS = _PASSING | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
# How torch.save words a write that the system refused.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one rank's attempt went.

    Attributes
    ----------
    trouble
        What storage said; ``None`` when the attempt succeeded.
    passing
        Whether it may pass by itself: a full disk and an absent one, not a forbidden one.
    waited_seconds
        Since this rank's first failure.
    expired
        Whether credentials were refused that this process may find renewed.
    """

    trouble: str | None
    passing: bool = True
    waited_seconds: float = 0.0
    expired: bool = False


Exchange = Callable[[Attempt], list[Attempt]]
"""This rank's attempt to those of all ranks, the leader's first; returns when all have come."""


def storage_trouble(error: Exception) -> Attempt | None:
    """What an error says about storage; ``None`` for one that has nothing to do with it."""
    if isinstance(error, CryoFormerError):
        return None
    if has_expired(error):
        return Attempt(f"{_one_line(error)} ({EXPIRED_REMEDY})", expired=True)
    passing = isinstance(error, FileNotFoundError | ConnectionError | TimeoutError) or is_out_of_reach(error)
    if isinstance(error, OSError):
        return Attempt(_one_line(error), passing or error.errno in _PASSING)
    if isinstance(error, client_errors()):
        return Attempt(_one_line(error), passing)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER):
        return Attempt(f"a file was not written whole, as on a full disk ({_one_line(error)})")
    return None


def explain_refusal(error: Exception) -> str | None:
    """What an error says about storage that refuses, with what to do; ``None`` for one that is no such thing."""
    trouble = storage_trouble(error)
    if trouble is None or (isinstance(error, OSError) and error.filename is None and error.errno not in _REFUSALS):
        return None
    return f"{trouble.trouble}: see that there is room and that this user may write there, then repeat the command"


def exchange_alone(attempt: Attempt) -> list[Attempt]:
    """The exchange of a process without company."""
    return [attempt]


class StorageRetry:
    """Repeats what storage refuses until it succeeds or patience ends, with the same end on all ranks.

    Parameters
    ----------
    place
        Where things are written, for messages.
    seconds
        How long storage may be full or away.
    leader
        Whether this rank speaks for all.
    exchange
        Brings the ranks' outcomes together.
    clock, sleep
        Of this process, seconds.
    """

    def __init__(
        self,
        place: Place,
        seconds: float,
        leader: bool = True,
        exchange: Exchange = exchange_alone,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._place, self._seconds, self._leader = place, seconds, leader
        self._exchange, self._clock, self._sleep = exchange, clock, sleep

    def run(self, act: Callable[[], None], collective: bool = False) -> None:
        """Do something with storage on every rank; return once all have done it.

        Parameters
        ----------
        act
            This rank's part; can be repeated after it has failed.
        collective
            Whether the ranks meet in it, so that all must repeat it if one fails.

        Raises
        ------
        CheckpointNotWrittenError
            On all ranks, if on one of them storage stays full or away for too long, or refuses for good.
        """
        began, pause, attempt = None, _FIRST_PAUSE_SECONDS, Attempt("not tried yet")
        told: str | None = None
        while True:
            if collective or attempt.trouble is not None:
                attempt = self._attempt(act, attempt)
            began = self._clock() if began is None else began
            mine = Attempt(attempt.trouble, attempt.passing, self._clock() - began)
            everyone = self._exchange(mine)
            failed = next((each for each in everyone if each.trouble is not None), None)
            if failed is None:
                return
            # One clock decides for all, or one rank would give up while another tries again.
            left = self._seconds - everyone[0].waited_seconds
            if left <= 0 or not all(each.passing for each in everyone):
                raise CheckpointNotWrittenError(self._explain_giving_up(failed, everyone[0].waited_seconds))
            if failed.trouble != told and self._leader:
                warnings.warn(
                    f"{self._place}: {failed.trouble}; trying again for {left:.3g} s", StorageTroubleWarning, 3
                )
            told = failed.trouble
            self._sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _attempt(self, act: Callable[[], None], before: Attempt) -> Attempt:
        try:
            if before.expired:
                renew_credentials(self._place)
            act()
        except (OSError, RuntimeError, *client_errors()) as error:  # type: ignore[misc]
            trouble = storage_trouble(error)
            if trouble is None:
                raise
            # A file of credentials may be looked at while it is being written.
            return replace(trouble, passing=True, expired=True) if before.expired else trouble
        return Attempt(None)

    def _explain_giving_up(self, failed: Attempt, waited: float) -> str:
        tried = f"for {waited:.0f} s (training.storage_patience_seconds)" if failed.passing else "once"
        room = "" if isinstance(self._place, Path) else "; a working copy is kept below TMPDIR, which needs room too"
        return (
            f"{self._place}: cannot be written, tried {tried}: {failed.trouble}{room}. Earlier checkpoints are whole: "
            "free space or bring the storage back, then --resume goes on from the last one"
        )


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
