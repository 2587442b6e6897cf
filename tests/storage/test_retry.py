import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoformer_dist.errors import CheckpointNotWrittenError, StorageTroubleWarning, StoreError
from cryoformer_dist.storage.retry import Attempt, StorageRetry, storage_trouble

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/model.pt")


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Refusing:
    """Fails some times, then succeeds."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def _patience(clock: Clock, seconds: float = 100) -> StorageRetry:
    return StorageRetry(Path("runs/x"), seconds, clock=clock, sleep=clock.sleep)


def test_what_succeeds_is_done_once_and_waits_for_nothing() -> None:
    clock, act = Clock(), Refusing(0, FULL)
    _patience(clock).run(act)
    assert (act.calls, clock.pauses) == (1, [])


def test_full_storage_is_tried_again_at_longer_pauses_with_one_warning() -> None:
    clock, act = Clock(), Refusing(7, FULL)
    with pytest.warns(StorageTroubleWarning, match=r"runs/x: .*No space left.*trying again for 100 s") as told:
        _patience(clock).run(act)
    assert len(told) == 1
    assert act.calls == 8
    assert clock.pauses == [1, 2, 4, 8, 16, 30, 30]


def test_patience_ends_with_place_reason_and_remedy() -> None:
    clock, act = Clock(), Refusing(99, FULL)
    with (
        pytest.warns(StorageTroubleWarning),
        pytest.raises(CheckpointNotWrittenError, match=r"runs/x: .*for 5 s.*No space left.*free space.*--resume"),
    ):
        _patience(clock, 5).run(act)
    assert clock.pauses == [1, 2, 2]


def test_what_does_not_pass_by_itself_is_told_at_once() -> None:
    clock, act = Clock(), Refusing(99, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(CheckpointNotWrittenError, match=r"tried once: .*Permission denied"):
        _patience(clock).run(act)
    assert (act.calls, clock.pauses) == (1, [])


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), StoreError("row 3 is damaged")])
def test_an_error_of_the_program_is_not_taken_for_trouble_with_storage(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        _patience(Clock()).run(Refusing(1, error))


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "quota"), True),
        (FileNotFoundError("The specified bucket does not exist"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (OSError(errno.EIO, "input/output"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file"), True),
        (OSError(errno.EROFS, "read-only"), False),
    ],
)
def test_trouble_with_storage_is_known_by_its_errors(error: Exception, passing: bool) -> None:
    found = storage_trouble(error)
    assert found is not None
    assert found.passing is passing


def test_an_endpoint_that_cannot_be_reached_passes_and_absent_credentials_do_not() -> None:
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    found = [storage_trouble(EndpointConnectionError(endpoint_url="http://x")), storage_trouble(NoCredentialsError())]
    assert [outcome and outcome.passing for outcome in found] == [True, False]


def _refused(code: str, operation: str = "PutObject") -> Exception:
    """As the object store's client raises it."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    said = {"Error": {"Code": code, "Message": "no"}}
    return translate_boto_error(ClientError(said, operation))  # type: ignore[no-any-return,arg-type]


@pytest.mark.parametrize(
    ("code", "operation", "passing", "expired"),
    [
        ("SlowDown", "PutObject", True, False),
        ("503", "HeadObject", True, False),
        ("InternalError", "PutObject", True, False),
        ("ExpiredToken", "PutObject", True, True),
        ("400", "HeadObject", True, True),
        ("400", "PutObject", False, False),
        ("AccessDenied", "PutObject", False, False),
        ("InvalidAccessKeyId", "PutObject", False, False),
    ],
)
def test_what_an_object_store_refuses_is_known_by_its_code(
    code: str, operation: str, passing: bool, expired: bool
) -> None:
    found = storage_trouble(_refused(code, operation))
    assert found is not None
    assert (found.passing, found.expired) == (passing, expired)
    assert ("renew them" in (found.trouble or "")) == expired


def test_credentials_are_looked_for_anew_after_they_have_expired_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, renewed = Clock(), list[object]()
    monkeypatch.setattr("cryoformer_dist.storage.retry.renew_credentials", renewed.append)
    with pytest.warns(StorageTroubleWarning, match=r"have expired: renew them in AWS_SHARED_CREDENTIALS_FILE"):
        _patience(clock).run(Refusing(2, _refused("ExpiredToken")))
    with pytest.warns(StorageTroubleWarning, match="no"):
        _patience(clock).run(Refusing(2, _refused("SlowDown")))
    assert renewed == [Path("runs/x")] * 2


def test_a_file_of_credentials_that_is_half_written_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    clock, errors = Clock(), [_refused("ExpiredToken"), NoCredentialsError(), _refused("InvalidAccessKeyId")]
    monkeypatch.setattr("cryoformer_dist.storage.retry.renew_credentials", lambda place: None)

    def act() -> None:
        if errors:
            raise errors.pop(0)

    with pytest.warns(StorageTroubleWarning):
        _patience(clock).run(act)
    assert errors == []


def _on_two_ranks(act: Callable[[int], None], seconds: float, collective: bool = False) -> list[Exception | None]:
    """How the ranks of a run, threads here, end."""
    meeting = threading.Barrier(2, timeout=30)
    brought: list[Attempt] = [Attempt(None), Attempt(None)]
    ends: list[Exception | None] = [None, None]

    def rank(number: int) -> None:
        def exchange(outcome: Attempt) -> list[Attempt]:
            brought[number] = outcome
            meeting.wait()
            everyone = list(brought)
            meeting.wait()
            return everyone

        clock = Clock()
        retry = StorageRetry(Path("runs/x"), seconds, number == 0, exchange, clock, clock.sleep)
        try:
            retry.run(lambda: act(number), collective)
        except CheckpointNotWrittenError as error:
            ends[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.StorageTroubleWarning")
@pytest.mark.parametrize("failing", [0, 1])
def test_all_ranks_give_up_together_whoever_it_is_that_cannot_write(failing: int) -> None:
    def act(rank: int) -> None:
        if rank == failing:
            raise FULL

    ends = _on_two_ranks(act, 5)
    assert ends[0] is not None
    assert str(ends[0]) == str(ends[1])
    assert "No space left" in str(ends[0])


@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.StorageTroubleWarning")
@pytest.mark.parametrize(("collective", "calls"), [(False, [1, 3]), (True, [3, 3])])
def test_a_rank_repeats_what_it_has_done_only_where_the_ranks_meet_in_it(collective: bool, calls: list[int]) -> None:
    made = [0, 0]

    def act(rank: int) -> None:
        made[rank] += 1
        if rank == 1 and made[1] < 3:
            raise FULL

    assert _on_two_ranks(act, 100, collective) == [None, None]
    assert made == calls
