"""How does a slow or failing online store cost a request no more than its time budget?

Feast's SDK blocks, so it runs on threads of its own, one for reads and one for feedback, each with
what is waiting as one batch; no batch waits longer than the budget. One that overruns marks its thread as
stuck: until it returns nobody else waits behind it. A store that is a local file is read on the calling
thread instead: no lock makes such a read wait for longer than the budget, and after one that was too late
it rests for a second. The connection is made in the background, so a service may start before the store
does and recovers by itself.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import structlog

from serving.running.batches import ThreadBatches
from serving.state.missing import configuration, named
from serving.state.questions import Feedback, StateRequest, nobody
from training.contract.errors import MtfError
from training.contract.settings import Settings

if TYPE_CHECKING:
    from serving.state.online_state import OnlineState

_log = structlog.get_logger("mtf.serving.state_store")
_RECONNECT_S = 0.5
_REST_S = 1.0  # a local store that was too slow is not asked for so long
_FEEDBACK_S = 3.0  # longer than the store's own waits for a lock or for Redis
_LARGEST = 64  # users a call: what a batch takes is what its first user waits


class _Unavailable(MtfError):
    """No answer in time, or an error: the caller goes on without the store."""


class _Reader:
    """Reads on a daemon thread of its own, one call at a time: a hung store does not keep the process."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[np.ndarray], Callable[[], np.ndarray]] | None] = SimpleQueue()
        self._last: Future[np.ndarray] | None = None
        threading.Thread(target=self._run, name="online store", daemon=True).start()

    def read(self, store: "OnlineState", requests: Sequence[StateRequest], budget: float) -> np.ndarray:
        """Raises :class:`_Unavailable` when there is no answer within ``budget`` seconds."""
        if self._last is not None and not self._last.done():
            raise _Unavailable("an earlier call has not returned")
        future: Future[np.ndarray] = Future()
        self._last = future
        self._calls.put((future, lambda: store.read(requests)))
        try:
            return future.result(budget)
        except TimeoutError as error:
            raise _Unavailable(f"no answer within {budget * 1000:g} ms") from error

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, read = call
            try:
                future.set_result(read())
            except Exception as error:  # whatever it is: the caller goes on without the store
                future.set_exception(_Unavailable(f"{error}"))


class StateStore:
    """:meth:`feedback` belongs to the event loop, :meth:`read` to one thread, the event loop's where the
    store is ``local``. ``on_error`` is called with "read" or "feedback"."""

    def __init__(self, settings: Settings, on_error: Callable[[str], None] = lambda operation: None) -> None:
        self._settings = settings
        self._width = settings.state_spec.width
        self._on_error = on_error
        self._store: OnlineState | None = None
        self._reason = f"{named(settings)} is being opened"
        self._healthy = False
        self._budget = settings.serving.state_budget_ms / 1000.0
        self.local = settings.store.online == "sqlite"
        self._rests_until = 0.0
        self._reader = None if self.local else _Reader()
        self._feedback: ThreadBatches[Feedback, None] = ThreadBatches(
            "online store", lambda batch: self._reached_store.feedback(batch), _Unavailable, largest=_LARGEST
        )
        self._tried, self._stop = threading.Event(), threading.Event()
        self._connector = threading.Thread(target=self._connect, name="store-connect", daemon=True)
        self._connector.start()

    def wait_tried(self, seconds: float) -> None:
        """Return once the store was reached or has failed for the first time, or after ``seconds``."""
        self._tried.wait(seconds)

    @property
    def unreached(self) -> str | None:
        """Why the store has not answered since this process started, with the setting; None when it has."""
        return None if self._store is not None else self._reason

    @property
    def healthy(self) -> bool:
        """Whether its latest answer came in time and without error."""
        return self._healthy

    def read(self, requests: Sequence[StateRequest]) -> list[np.ndarray | None]:
        """States float32[d] of users, in one read; None for all when the store gave none in time."""
        try:
            if self._store is None:
                raise _Unavailable("not reached yet")
            if self._reader:
                states = self._reader.read(self._store, requests, self._budget)
            else:
                states = self._read_here(self._store, requests)
            if states.shape != (len(requests), self._width) or not np.isfinite(states).all():
                expected = (len(requests), self._width)
                raise _Unavailable(f"the store gave states of shape {states.shape}, expected {expected}")
        except MtfError as error:
            self._failed("read", error)
            return [None] * len(requests)
        self._answered()
        return list(states)

    def _read_here(self, store: "OnlineState", requests: Sequence[StateRequest]) -> np.ndarray:
        started = time.monotonic()
        if started < self._rests_until:
            raise _Unavailable("it rests: an earlier read was too slow")
        try:
            return store.read(requests)
        finally:
            now = time.monotonic()
            if now - started > self._budget:
                self._rests_until = now + _REST_S

    async def feedback(self, feedback: Feedback) -> bool:
        """Move the user's state; False when the store did not confirm it."""
        try:
            await self._in_time(feedback)
        except _Unavailable as error:
            self._failed("feedback", error)
            return False
        self._answered()
        return True

    async def _in_time(self, feedback: Feedback) -> None:
        """Raises :class:`_Unavailable` for an error, or when the running batch is over its budget.

        The budget is the store's and not the queue's: time spent behind quick batches does not count.
        """
        lane = self._feedback
        if self._store is None:
            raise _Unavailable("not reached yet")
        if lane.line.running > _FEEDBACK_S:
            raise _Unavailable("an earlier call has not returned")
        future = lane.add(feedback)
        while not (await asyncio.wait((future,), timeout=_FEEDBACK_S))[0]:
            if lane.line.running > _FEEDBACK_S:
                future.cancel()
                raise _Unavailable(f"no answer within {_FEEDBACK_S:g} s")
        future.result()

    @property
    def _reached_store(self) -> "OnlineState":
        assert self._store is not None  # nothing is added before it is reached
        return self._store

    def close(self) -> None:
        self._stop.set()
        if self._reader:
            self._reader.close()
        self._feedback.close(wait=False)

    def _connect(self) -> None:
        """Ask the store for the state of nobody, until it answers: the first reads are slow ones."""
        reason = None
        store = None
        while not self._stop.is_set():
            try:
                configuration(self._settings)  # before what takes seconds to import
                self._reason = f"{named(self._settings)} is being opened"
                if store is None:
                    from serving.state.online_state import OnlineState

                    store = OnlineState(self._settings)
                store.read([StateRequest(nobody(self._settings), "", datetime.now(UTC))])
            except Exception as error:  # whatever it is: serve static weights and try again
                if not isinstance(error, MtfError):
                    store = None  # it did not expect this of itself
                self._reason = f"{named(self._settings)} was not reached: {str(error)[:500]}"
                # the same failure is told once, though the times in its text differ
                if type(error).__name__ != reason:
                    reason = type(error).__name__
                    _log.warning("store not reached", reason=str(error)[:500])
                self._tried.set()
                self._stop.wait(_RECONNECT_S)
                continue
            # what was imported until here stays: a full collection would walk it all, 0.2 s of every request
            gc.collect()
            gc.freeze()
            self._store, self._healthy = store, True
            self._tried.set()
            _log.info("store reached", online=self._settings.store.online)
            return

    def _answered(self) -> None:
        if not self._healthy:
            self._healthy = True
            _log.info("store answers again")

    def _failed(self, operation: str, error: Exception) -> None:
        self._on_error(operation)
        if self._healthy:  # once an outage, not once a request
            self._healthy = False
            _log.warning("store failed", operation=operation, reason=str(error)[:500])
