"""Work that is done by a thread before it is asked for."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], most: int = 2) -> Iterator[T]:
    """The same items, made by a thread of their own while others are worked on.

    Who leaves early waits for the item that is being made, which is thrown away. So does an interpreter that ends
    while nobody has left: a daemon thread, killed inside of torch's C++, would end the whole process by SIGABRT.

    Parameters
    ----------
    items
        Asked for by the thread only. What making them raises is raised here, in its turn.
    most
        Items that are made and not yet asked for.
    """
    iterator = iter(items)
    maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        coming = deque(maker.submit(_make_next, iterator) for _ in range(most))
        while made := coming.popleft().result():
            coming.append(maker.submit(_make_next, iterator))
            yield made[0]
    finally:
        maker.shutdown(cancel_futures=True)
        # A generator may have threads and files of its own.
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _make_next(items: Iterator[T]) -> tuple[T] | tuple[()]:
    """The next item, or nothing at the end: no exception may stand for the end, an item's making might raise it."""
    for item in items:
        return (item,)
    return ()
