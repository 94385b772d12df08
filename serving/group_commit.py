"""Group commit: many requests wait for one write to disk.

A thread takes everything that has gathered, hands it to ``commit`` in one call, and then wakes every
request of that batch. While it writes, the next batch gathers, so the disk sets the size of a batch
and no request waits on a timer.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from training.contract.errors import MtfError

Item = TypeVar("Item")


class LogError(MtfError):
    """Something could not be made durable, so it was not acknowledged."""


class GroupCommit(Generic[Item]):
    """``await add(item)`` returns when ``commit`` returned for a batch holding it, or raises its error.

    ``commit`` runs on one thread of its own and gets items in the order of :meth:`add`. When it
    raises, every waiter of that batch gets :class:`LogError`: nothing is retried, because a caller
    that was not acknowledged will itself ask again.
    """

    def __init__(self, name: str, commit: Callable[[list[Item]], None], capacity: int = 20_000) -> None:
        self._name = name
        self._commit = commit
        self._capacity = capacity
        self._pending: list[tuple[Item, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._oldest = 0.0
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"commit-{name}", daemon=True)
        self._thread.start()

    @property
    def queue(self) -> int:
        """Items that wait for the next batch."""
        return len(self._pending)

    @property
    def lag(self) -> float:
        """Seconds that the oldest waiting item has waited."""
        return time.monotonic() - self._oldest if self._pending else 0.0

    async def add(self, item: Item) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._condition:
            if self._closed:
                raise LogError(f"the {self._name} log is closed")
            if len(self._pending) >= self._capacity:
                raise LogError(f"{self._capacity} lines of the {self._name} log wait to be written")
            if not self._pending:
                self._oldest = time.monotonic()
            self._pending.append((item, loop, future))
            self._condition.notify()
        await future

    def close(self) -> None:
        """Commit what is waiting, then stop. Idempotent."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._pending and not self._closed:
                    self._condition.wait()
                batch, self._pending = self._pending, []
            if not batch:
                return
            error: LogError | None = None
            try:
                self._commit([item for item, _, _ in batch])
            except Exception as reason:  # whatever stopped the write, the waiters must hear of it
                error = LogError(f"cannot write the {self._name} log: {reason}")
            for loop in {loop for _, loop, _ in batch}:
                futures = [future for _, owner, future in batch if owner is loop]
                try:
                    loop.call_soon_threadsafe(_settle, futures, error)
                except RuntimeError:  # the loop was closed: nobody is left to wake
                    continue


def _settle(futures: list[asyncio.Future[None]], error: LogError | None) -> None:
    for future in futures:
        if future.done():  # its request was cancelled
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
