"""Batches: items of many coroutines, worked on together by one thread.

While a batch is worked on, the next one gathers: what a disk or a store takes for one call sets the
size of a batch, and nobody waits on a timer. A hand-over between threads costs more than reading one
state, so it is paid once a batch and not once an item.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from training.contract.errors import MtfError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batches(Generic[Item, Answer]):
    """``await add(item)`` gives the item's answer out of ``work(batch)``.

    ``work`` runs on one thread of its own and gets items in the order of :meth:`add`; it returns one
    answer an item, or None when there is nothing to say. When it raises, every waiter of that batch
    gets an ``error``: nothing is tried again, because a caller that got no answer will itself ask
    again. ``error`` is also raised when ``capacity`` items wait already, and after :meth:`close`.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Item]], Sequence[Answer] | None],
        error: type[MtfError],
        *,
        largest: int | None = None,
        capacity: int = 20_000,
    ) -> None:
        self._name, self._work, self._error = name, work, error
        self._largest, self._capacity = largest, capacity
        self._pending: list[tuple[Item, asyncio.AbstractEventLoop, asyncio.Future[Answer | None]]] = []
        self._oldest = 0.0
        self._started: float | None = None
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def queue(self) -> int:
        """Items that wait for the next batch."""
        return len(self._pending)

    @property
    def lag(self) -> float:
        """Seconds that the oldest waiting item has waited."""
        return time.monotonic() - self._oldest if self._pending else 0.0

    @property
    def running(self) -> float:
        """Seconds that the batch now being worked on has taken; 0 when there is none."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    def add(self, item: Item) -> "asyncio.Future[Answer | None]":
        """The answer to come; cancelling it leaves the batch alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer | None] = loop.create_future()
        with self._condition:
            if self._closed:
                raise self._error(f"the {self._name} is closed")
            if len(self._pending) >= self._capacity:
                raise self._error(f"{self._capacity} items wait for the {self._name}")
            if not self._pending:
                self._oldest = time.monotonic()
            self._pending.append((item, loop, future))
            self._condition.notify()
        return future

    def close(self, *, wait: bool = True) -> None:
        """Work on what is waiting, then stop; ``wait=False`` does not wait for that. Idempotent."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._pending and not self._closed:
                    self._condition.wait()
                batch = self._pending[: self._largest]
                self._pending = self._pending[len(batch) :]
            if not batch:
                return
            self._started = time.monotonic()
            answers: Sequence[Any] | None = None
            error: MtfError | None = None
            try:
                answers = self._work([item for item, _, _ in batch])
            except Exception as reason:  # whatever stopped the work, the waiters must hear of it
                error = self._error(f"the {self._name} failed: {reason}")
            self._started = None
            if answers is None:
                answers = [None] * len(batch)
            for loop in {loop for _, loop, _ in batch}:
                settled = [
                    (future, answer)
                    for (_, owner, future), answer in zip(batch, answers, strict=True)
                    if owner is loop
                ]
                try:
                    loop.call_soon_threadsafe(_settle, settled, error)
                except RuntimeError:  # the loop was closed: nobody is left to wake
                    continue


def _settle(settled: list[tuple["asyncio.Future[Any]", Any]], error: MtfError | None) -> None:
    for future, answer in settled:
        if future.done():  # its request was cancelled
            continue
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)
