"""How are items of many coroutines worked on together?

While a batch is worked on, the next one gathers: what a disk or a policy takes for one call sets the
size of a batch, and nobody waits on a timer. What waits for something is done on a thread; a hand-over
costs more than reading one state, so it is paid once a batch and not once an item: what comes in one turn
of the event loop goes to the thread together, and the loop is woken once, with all answers.

- :class:`ThreadBatches`: on a thread of its own;
- :class:`ThreadThenLoopBatches`: first on a thread of its own, the rest on the event loop;
- :class:`LoopBatches`: all of it on the event loop, what waits for nothing.
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from serving.running.waiting import Waiter, Waiting, WaitingLine, Worked
from training.contract.errors import MtfError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work = Callable[[list[Item]], Sequence[Answer | Exception] | None]
Rest = Callable[[list[Worked]], None]


class _Batches(ABC, Generic[Item, Answer]):
    """``await add(item)`` gives the item's answer out of ``work(batch)``.

    ``work`` gets items in the order of :meth:`add`; it returns one answer an item, or None when there is
    nothing to say. An answer that is an exception is raised to its waiter. When ``work`` raises, every
    waiter of that batch gets an ``error``: nothing is tried again, because a caller that got no answer will
    itself ask again. ``error`` is also raised when ``capacity`` items wait already, and after
    :meth:`close`. ``add`` is for one event loop at a time. ``line`` tells what waits.
    """

    def __init__(
        self,
        name: str,
        work: Work[Item, Answer],
        error: type[MtfError],
        *,
        largest: int | None = None,
        capacity: int = 20_000,
    ) -> None:
        self.line: WaitingLine[Item] = WaitingLine(name, error, largest, capacity)
        self._name, self._work = name, work
        self._added: list[Waiting] = []  # in this turn of the event loop
        self._turn: asyncio.AbstractEventLoop | None = None  # which will hand them over

    def add(self, item: Item) -> "asyncio.Future[Any]":
        """The answer to come; cancelling it leaves the batch alone."""
        self.line.refuse_if_full(coming=len(self._added))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._added.append(Waiting(item, Waiter(loop, future), time.monotonic()))
        self._hand_over_after_this_turn(loop)
        return future

    def _hand_over_after_this_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._turn is not loop:
            self._turn = loop
            loop.call_soon(self._turn_ended)

    def _turn_ended(self) -> None:
        loop, self._turn = self._turn, None
        added, self._added = self._added, []
        assert loop is not None
        self._hand_over(added, loop)

    @abstractmethod
    def _hand_over(self, added: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """Let what came in one turn of the event loop be worked on."""

    def _answers(self, batch: list[Waiting]) -> Sequence[Any]:
        try:
            return self._work([one.item for one in batch]) or [None] * len(batch)
        except Exception as reason:  # whatever stopped the work, the waiters must hear of it
            return [self.line.failed(reason)] * len(batch)

    def _finish(self, rest: Rest, worked: list[Worked]) -> None:
        """The rest of a batch's work, which settles or hands on every waiter."""
        try:
            rest(worked)
        except Exception as reason:  # as above
            error = self.line.failed(reason)
            settle([one._replace(answer=error) for one in worked])


class LoopBatches(_Batches[Item, Answer]):
    """Both ``work`` and ``rest``, which wait for nothing, on the event loop, one batch a turn.

    ``rest`` is called with the whole batch and settles or hands on every one of its waiters.
    """

    def __init__(
        self, name: str, work: Work[Item, Answer], rest: Rest, error: type[MtfError], **bounds: Any
    ) -> None:
        super().__init__(name, work, error, **bounds)
        self._rest = rest

    def close(self) -> None:
        self.line.closed = True

    def _hand_over(self, added: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        self.line.extend(added)
        batch = self.line.next_batch()
        self.line.began()
        answers = self._answers(batch)
        self._finish(
            self._rest,
            [
                Worked(one.item, answer, one.waiter)
                for one, answer in zip(batch, answers, strict=True)
                if one.waiter is not None
            ],
        )
        self.line.ended()
        if len(self.line):
            self._hand_over_after_this_turn(loop)


class ThreadBatches(_Batches[Item, Answer]):
    """``work`` on one thread of its own, and then the waiters get their answers.

    :meth:`put` and :meth:`hand_on` are for any thread.
    """

    def __init__(self, name: str, work: Work[Item, Answer], error: type[MtfError], **bounds: Any) -> None:
        super().__init__(name, work, error, **bounds)
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Add an item whose answer nobody waits for."""
        self.line.refuse_if_full(coming=len(self._added))
        self._take([Waiting(item, None, time.monotonic())])

    def hand_on(self, items: list[tuple[Item, Waiter]]) -> None:
        """Add items of those who wait already: they get this batch's answers."""
        self.line.refuse_if_full(coming=len(self._added))
        now = time.monotonic()
        self._take([Waiting(item, waiter, now) for item, waiter in items])

    def close(self, *, wait: bool = True) -> None:
        """Work on what is waiting, then stop; ``wait=False`` does not wait for that. Idempotent."""
        with self._condition:
            self.line.closed = True
            self.line.extend(self._added)
            self._added = []
            self._condition.notify()
        if wait:
            self._thread.join()

    def _hand_over(self, added: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        self._take(added)

    def _take(self, items: list[Waiting]) -> None:
        with self._condition:
            self.line.extend(items)
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._may_begin() and not self.line.closed:
                    self._condition.wait()
                batch = self.line.next_batch()
            if not batch:
                return
            self.line.began()
            answers = self._answers(batch)
            loops: dict[asyncio.AbstractEventLoop, list[Worked]] = {}
            for (item, waiter, _), answer in zip(batch, answers, strict=True):
                if waiter is not None:
                    loops.setdefault(waiter.loop, []).append(Worked(item, answer, waiter))
            self._worked(loops)

    def _may_begin(self) -> bool:
        return len(self.line) > 0

    def _worked(self, loops: dict[asyncio.AbstractEventLoop, list[Worked]]) -> None:
        """Wake each loop once, with all its answers."""
        self.line.ended()
        for loop, worked in loops.items():
            _call(loop, settle, worked)


class ThreadThenLoopBatches(ThreadBatches[Item, Answer]):
    """``work`` on one thread of its own, then ``rest`` on the event loop; the next batch gathers until that
    has returned.

    ``rest`` is called with the whole batch and settles or hands on every one of its waiters.
    """

    def __init__(
        self, name: str, work: Work[Item, Answer], rest: Rest, error: type[MtfError], **bounds: Any
    ) -> None:
        self._rest = rest
        self._unfinished = 0  # event loops that have yet to do the rest of a batch
        super().__init__(name, work, error, **bounds)

    def _may_begin(self) -> bool:
        return not self._unfinished and super()._may_begin()

    def _worked(self, loops: dict[asyncio.AbstractEventLoop, list[Worked]]) -> None:
        self._unfinished = len(loops)
        if not loops:
            self.line.ended()
        for loop, worked in loops.items():
            if not _call(loop, self._on_loop, worked):
                self._finished()

    def _on_loop(self, worked: list[Worked]) -> None:
        try:
            self._finish(self._rest, worked)
        finally:
            self._finished()

    def _finished(self) -> None:
        with self._condition:
            self._unfinished -= 1
            self.line.ended()
            self._condition.notify()


def settle(worked: list[Worked]) -> None:
    """Give the answers to those who wait."""
    for _, answer, (_, future) in worked:
        if future.done():  # its request was cancelled
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _call(
    loop: asyncio.AbstractEventLoop, callback: Callable[[list[Worked]], None], worked: list[Worked]
) -> bool:
    """From another thread; False when the loop was closed: nobody is left to wake."""
    try:
        loop.call_soon_threadsafe(callback, worked)
    except RuntimeError:
        return False
    return True
