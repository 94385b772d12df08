"""Batches: items of many coroutines, worked on together.

While a batch is worked on, the next one gathers: what a disk or a policy takes for one call sets the
size of a batch, and nobody waits on a timer. What waits for something is done on a thread; a hand-over
costs more than reading one state, so it is paid once a batch and not once an item: what comes in one turn
of the event loop goes to the thread together, and the loop is woken once, with all answers.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from training.contract.errors import MtfError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]"]
Worked = tuple[Any, Any, Waiter]  # an item, its answer, and who waits for that
_Waiting = tuple[Item, Waiter | None, float]  # since when, by the monotonic clock


class Batches(Generic[Item, Answer]):
    """``await add(item)`` gives the item's answer out of ``work(batch)``.

    ``work`` runs on one thread of its own and gets items in the order of :meth:`add`; it returns one
    answer an item, or None when there is nothing to say. An answer that is an exception is raised to its
    waiter. When ``work`` raises, every waiter of that batch gets an ``error``: nothing is tried again,
    because a caller that got no answer will itself ask again. ``error`` is also raised when ``capacity``
    items wait already, and after :meth:`close`. ``add`` is for one event loop at a time, ``put`` for any
    thread.

    With ``then`` the waiters get nothing yet: it is called with the whole batch on their event loop, where
    it settles or hands on every one of them, and the next batch gathers until it has returned.
    ``on_loop`` does without the thread: ``work``, which then must not wait for anything, runs on the event
    loop as well, one batch a turn.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Item]], Sequence[Answer | Exception] | None],
        error: type[MtfError],
        *,
        largest: int | None = None,
        capacity: int = 20_000,
        then: Callable[[list[Worked]], None] | None = None,
        on_loop: bool = False,
    ) -> None:
        self._name, self._work, self._error, self._then = name, work, error, then
        self._largest, self._capacity = largest, capacity
        self._added: list[_Waiting[Item]] = []  # in this turn of the event loop
        self._turn: asyncio.AbstractEventLoop | None = None  # which will hand them over
        self._pending: list[_Waiting[Item]] = []
        self._usual = 0.0  # seconds of a batch, lately
        self._started: float | None = None
        self._following = 0  # event loops that have yet to do the rest of a batch
        self._condition = threading.Condition()
        self._closed = False
        self._thread = None if on_loop else threading.Thread(target=self._run, name=name, daemon=True)
        if self._thread:
            self._thread.start()

    @property
    def queue(self) -> int:
        """Items that wait for the next batch."""
        return len(self._pending)

    @property
    def lag(self) -> float:
        """Seconds that the oldest waiting item has waited."""
        pending = self._pending  # another thread puts the rest of it in its place
        return time.monotonic() - pending[0][2] if pending else 0.0

    @property
    def running(self) -> float:
        """Seconds that the batch now being worked on has taken; 0 when there is none."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def wait(self) -> float:
        """Seconds that an item added now has to expect: those of the full batches before it, and not less
        than the oldest has waited or the batch now being worked on has taken."""
        before = len(self._pending) // self._largest if self._largest else 0
        return max(before * self._usual, self.lag, self.running)

    def add(self, item: Item) -> "asyncio.Future[Any]":
        """The answer to come; cancelling it leaves the batch alone."""
        self._refuse_if_full()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._added.append((item, (loop, future), time.monotonic()))
        if self._turn is not loop:
            self._turn = loop
            loop.call_soon(self._hand_over)
        return future

    def put(self, item: Item) -> None:
        """Add an item whose answer nobody waits for."""
        self._refuse_if_full()
        self._take([(item, None, time.monotonic())])

    def hand_on(self, items: list[tuple[Item, Waiter]]) -> None:
        """Add items of those who wait already: they get this batch's answers."""
        self._refuse_if_full()
        now = time.monotonic()
        self._take([(item, waiter, now) for item, waiter in items])

    def _refuse_if_full(self) -> None:
        if self._closed:
            raise self._error(f"the {self._name} is closed")
        if len(self._pending) + len(self._added) >= self._capacity:
            raise self._error(f"{self._capacity} items wait for the {self._name}")

    def _hand_over(self) -> None:
        """At the end of a turn."""
        loop, self._turn = self._turn, None
        added, self._added = self._added, []
        if self._thread:
            return self._take(added)
        self._pending.extend(added)
        self._work_on(self._next())
        if self._pending and loop:
            self._turn = loop
            loop.call_soon(self._hand_over)

    def _take(self, items: list[_Waiting[Item]]) -> None:
        with self._condition:
            self._pending.extend(items)
            self._condition.notify()

    def close(self, *, wait: bool = True) -> None:
        """Work on what is waiting, then stop; ``wait=False`` does not wait for that. Idempotent."""
        with self._condition:
            self._closed = True
            self._pending.extend(self._added)
            self._added = []
            self._condition.notify()
        if self._thread and wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while (self._following or not self._pending) and not self._closed:
                    self._condition.wait()
                batch = self._next()
            if not batch:
                return
            self._work_on(batch)

    def _next(self) -> list[_Waiting[Item]]:
        batch = self._pending[: self._largest]
        self._pending = self._pending[len(batch) :]
        return batch

    def _work_on(self, batch: list[_Waiting[Item]]) -> None:
        self._started = time.monotonic()
        try:
            answers: Sequence[Any] = self._work([item for item, _, _ in batch]) or [None] * len(batch)
        except Exception as reason:  # whatever stopped the work, the waiters must hear of it
            answers = [self._error(f"the {self._name} failed: {reason}")] * len(batch)
        loops: dict[asyncio.AbstractEventLoop, list[Worked]] = {}
        for (item, waiter, _), answer in zip(batch, answers, strict=True):
            if waiter is not None:
                loops.setdefault(waiter[0], []).append((item, answer, waiter))
        if self._then is None or not loops:
            self._ended()
        else:
            self._following = len(loops)
        end = _settle if self._then is None else self._follow
        for loop, worked in loops.items():  # one call a loop
            if self._thread is None:
                end(worked)
                continue
            try:
                loop.call_soon_threadsafe(end, worked)
            except RuntimeError:  # the loop was closed: nobody is left to wake
                self._followed()

    def _follow(self, worked: list[Worked]) -> None:
        """The rest of a batch's work, on the event loop."""
        try:
            self._then(worked)
        except Exception as reason:  # as above
            error = self._error(f"the {self._name} failed: {reason}")
            _settle([(item, error, waiter) for item, _, waiter in worked])
        finally:
            self._followed()

    def _followed(self) -> None:
        with self._condition:
            if self._following:
                self._following -= 1
                self._ended()
                self._condition.notify()

    def _ended(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            self._usual += 0.2 * (time.monotonic() - started - self._usual)


def _settle(worked: list[Worked]) -> None:
    """Give the answers to those who wait."""
    for _, answer, (_, future) in worked:
        if future.done():  # its request was cancelled
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
