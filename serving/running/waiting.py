"""What waits for its batch, who waits for its answer, and for how long?"""

import asyncio
import time
from typing import Any, Generic, NamedTuple, TypeVar

from training.contract.errors import MtfError

Item = TypeVar("Item")


class Waiter(NamedTuple):
    """Who waits for an answer: a future of an event loop."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class Waiting(NamedTuple):
    """An item, its waiter (None: nobody asks for the answer), and since when, by the monotonic clock."""

    item: Any
    waiter: Waiter | None
    since: float


class Worked(NamedTuple):
    """An item, its answer, and who waits for that. An answer that is an exception is to be raised."""

    item: Any
    answer: Any
    waiter: Waiter


class WaitingLine(Generic[Item]):
    """The items that wait, in order, and how long batches of them take. It locks nothing.

    ``largest`` bounds a batch, ``capacity`` what may wait; ``error`` is what others are refused with.
    """

    def __init__(self, name: str, error: type[MtfError], largest: int | None, capacity: int) -> None:
        self._name, self._error = name, error
        self._largest, self._capacity = largest, capacity
        self._items: list[Waiting] = []
        self._usual = 0.0  # seconds of a batch, lately
        self._started: float | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def lag(self) -> float:
        """Seconds that the oldest waiting item has waited."""
        items = self._items  # another thread puts the rest of it in its place
        return time.monotonic() - items[0].since if items else 0.0

    @property
    def running(self) -> float:
        """Seconds that the batch now being worked on has taken; 0 when there is none."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def wait(self) -> float:
        """Seconds that an item added now has to expect: those of the full batches before it, and not less
        than the oldest has waited or the batch now being worked on has taken."""
        before = len(self._items) // self._largest if self._largest else 0
        return max(before * self._usual, self.lag, self.running)

    def refuse_if_full(self, coming: int = 0) -> None:
        """Raises the line's error when it is closed, or full with what is ``coming`` anyway."""
        if self.closed:
            raise self._error(f"the {self._name} is closed")
        if len(self._items) + coming >= self._capacity:
            raise self._error(f"{self._capacity} items wait for the {self._name}")

    def extend(self, items: list[Waiting]) -> None:
        self._items.extend(items)

    def next_batch(self) -> list[Waiting]:
        batch = self._items[: self._largest]
        self._items = self._items[len(batch) :]
        return batch

    def began(self) -> None:
        """A batch is being worked on from now."""
        self._started = time.monotonic()

    def ended(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            self._usual += 0.2 * (time.monotonic() - started - self._usual)

    def failed(self, reason: Exception) -> MtfError:
        """The error of those whose batch ``reason`` stopped."""
        return self._error(f"the {self._name} failed: {reason}")
