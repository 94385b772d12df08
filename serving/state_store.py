"""The online store behind a time budget: a state in time, or none.

Feast's SDK blocks, so it runs on threads of its own, one for reads and one for feedback, and a
request never waits longer than its budget. A call that overruns marks its lane as stuck: until it
returns nobody else waits behind it. The connection is made in the background, so a service may start
before the store does and recovers by itself.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog

from training.contract.errors import MtfError
from training.contract.settings import Settings

if TYPE_CHECKING:
    from serving.online_state import OnlineState

_log = structlog.get_logger("mtf.serving.state_store")
_RECONNECT_S = 0.5
_FEEDBACK_S = 3.0  # longer than the store's own waits for a lock or for Redis

T = TypeVar("T")


class _Unavailable(MtfError):
    """No answer in time, or an error: the caller goes on without the store."""


class StateStore:
    """Methods belong to the event loop. ``on_error`` is called with "read" or "feedback"."""

    def __init__(self, settings: Settings, on_error: Callable[[str], None] = lambda operation: None) -> None:
        self._settings = settings
        self._width = settings.state_spec.width
        self._on_error = on_error
        self._store: OnlineState | None = None
        self._healthy = False
        self._reads = _Lane("store-read", settings.serving.state_budget_ms / 1000.0)
        self._feedback = _Lane("store-feedback", _FEEDBACK_S)
        self._stop = threading.Event()
        self._connector = threading.Thread(target=self._connect, name="store-connect", daemon=True)
        self._connector.start()

    @property
    def reached(self) -> bool:
        """Whether the store has answered since this process started."""
        return self._store is not None

    @property
    def healthy(self) -> bool:
        """Whether its latest answer came in time and without error."""
        return self._healthy

    async def read(self, user_id: int, session_id: str, event_ts: datetime) -> np.ndarray | None:
        """State float32[d] of a user, or None when the store gave none in time."""
        store = self._store
        try:
            if store is None:
                raise _Unavailable("not reached yet")
            state = await self._reads.call(lambda: store.read(user_id, session_id, event_ts))
            if state.shape != (self._width,) or not np.isfinite(state).all():
                raise _Unavailable(
                    f"the store gave a state of shape {state.shape}, expected ({self._width},)"
                )
        except _Unavailable as error:
            self._failed("read", error)
            return None
        self._answered()
        return state

    async def feedback(
        self, user_id: int, session_id: str, request_id: str, event_ts: datetime, events: list[dict[str, int]]
    ) -> bool:
        """Move the user's state; False when the store did not confirm it."""
        store = self._store
        try:
            if store is None:
                raise _Unavailable("not reached yet")
            await self._feedback.call(
                lambda: store.feedback(user_id, session_id, request_id, event_ts, events)
            )
        except _Unavailable as error:
            self._failed("feedback", error)
            return False
        self._answered()
        return True

    def close(self) -> None:
        self._stop.set()
        self._reads.close()
        self._feedback.close()

    def _connect(self) -> None:
        """Ask the store for the state of nobody, until it answers: the first reads are slow ones."""
        reason = None
        store = None
        while not self._stop.is_set():
            try:
                if store is None:
                    from serving.online_state import OnlineState

                    store = OnlineState(self._settings)
                store.read(-1, "", datetime.now(UTC))
            except Exception as error:  # whatever it is: serve static weights and try again
                if not isinstance(error, MtfError):
                    store = None  # it did not expect this of itself
                # the same failure is told once, though the times in its text differ
                if type(error).__name__ != reason:
                    reason = type(error).__name__
                    _log.warning("store not reached", reason=str(error)[:500])
                self._stop.wait(_RECONNECT_S)
                continue
            self._store, self._healthy = store, True
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


class _Lane:
    """Blocking calls, one at a time, that nobody waits for longer than ``budget`` seconds."""

    def __init__(self, name: str, budget: float) -> None:
        self._budget = budget
        self._running_since: float | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def call(self, work: Callable[[], T]) -> T:
        """Raises :class:`_Unavailable` for an error, or when the call running is over its budget.

        The budget is the store's and not the queue's: time spent behind quick calls does not count.
        """
        if self._overrun():
            raise _Unavailable("an earlier call has not returned")
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work)
        while not (await asyncio.wait((future,), timeout=self._budget))[0]:
            if self._overrun():
                future.cancel()
                raise _Unavailable(f"no answer within {self._budget * 1000:g} ms")
        try:
            return future.result()
        except Exception as error:
            raise _Unavailable(str(error)) from error

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[[], T]) -> T:
        self._running_since = time.monotonic()
        try:
            return work()
        finally:
            self._running_since = None

    def _overrun(self) -> bool:
        since = self._running_since
        return since is not None and time.monotonic() - since > self._budget
