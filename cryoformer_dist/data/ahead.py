"""Work that is done by a thread before it is asked for."""

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], most: int = 2) -> Iterator[T]:
    """The same items, made by a thread of their own while others are worked on.

    Parameters
    ----------
    items
        Asked for by the thread only. What making them raises is raised here, in its turn.
    most
        Items that are made and not yet asked for.
    """
    maker = _Maker(iter(items), most)
    maker.start()
    try:
        while (made := maker.made.get()) is not None:
            maker.room.release()
            yield made.item
        if maker.error is not None:
            raise maker.error
    finally:
        maker.stop()


class _Made(Generic[T]):
    """An item, told from the end of them."""

    def __init__(self, item: T) -> None:
        self.item = item


class _Maker(Thread, Generic[T]):
    def __init__(self, items: Iterator[T], most: int) -> None:
        super().__init__(daemon=True)
        self.made: SimpleQueue[_Made[T] | None] = SimpleQueue()
        self.room = Semaphore(most)
        self.error: BaseException | None = None
        self._items, self._stopped = items, False

    def run(self) -> None:
        try:
            while self._has_room():
                self.made.put(_Made(next(self._items)))
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self.error = error
        finally:
            # A generator may have threads and files of its own.
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            self.made.put(None)

    def stop(self) -> None:
        """End the thread; what it is making is thrown away."""
        self._stopped = True
        self.room.release()
        self.join()

    def _has_room(self) -> bool:
        self.room.acquire()
        return not self._stopped
