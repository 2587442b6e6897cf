import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cryoformer_dist.data.ahead import ahead


def test_items_come_in_their_order_and_end() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    # What means the end to others is an item like any.
    assert list(ahead([None, None])) == [None, None]


def test_so_many_are_made_before_they_are_asked_for_and_no_more() -> None:
    asked: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            asked.append(number)
            if number == 2:
                third.set()
            yield number

    coming = ahead(items(), most=2)
    assert next(coming) == 0
    assert third.wait(timeout=60)
    # Given time, a thread that did not stop would make the next.
    time.sleep(0.05)
    assert asked == [0, 1, 2]
    coming.close()  # type: ignore[attr-defined]


def test_what_making_them_raises_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(coming)


def test_leaving_early_ends_the_thread_and_closes_what_it_reads() -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    before = threading.active_count()
    coming = ahead(ahead(items(), most=1))
    next(coming)
    assert threading.active_count() == before + 2
    coming.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert closed == [True]


def test_an_interpreter_that_ends_waits_for_the_item_being_made() -> None:
    """As a training process that fails does: whoever asked for items is never told to leave."""
    program = """
import threading, time
from cryoformer_dist.data.ahead import ahead

started = threading.Event()

def items():
    yield 0
    started.set()
    time.sleep(0.3)
    print("made")
    yield 1

coming = ahead(items())
next(coming)
started.wait()
coming = [coming]
coming.append(coming)  # As in the cycle of an exception and its frames: nobody closes it.
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "made\n", "")
