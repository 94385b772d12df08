"""The online store behind a time budget: a state in time, or none.

Feast's SDK blocks, so it runs on one thread of its own and the event loop never waits longer than the
budget. A call that overruns marks the store as stuck: until it returns nobody else waits behind it.
The connection is made in the background and again after a failure, so a service may start before the
store does and recovers by itself.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog

from training.contract.errors import MtfError
from training.contract.settings import Settings

if TYPE_CHECKING:
    from serving.online_state import OnlineState

_log = structlog.get_logger("mtf.serving.state_store")
_RECONNECT_S = 5.0
# feedback is not on the critical path: it may wait this many budgets for its turn
_FEEDBACK_BUDGETS = 20.0

T = TypeVar("T")


class _Unavailable(MtfError):
    """No answer in time, or an error: the caller goes on without the store."""


class StateStore:
    """Methods belong to the event loop. ``on_error`` is called with "read" or "feedback"."""

    def __init__(self, settings: Settings, on_error: Callable[[str], None] = lambda operation: None) -> None:
        self._settings = settings
        self._width = settings.state_spec.width
        self._budget = settings.serving.state_budget_ms / 1000.0
        self._on_error = on_error
        self._store: OnlineState | None = None
        self._reached = False
        self._healthy = False
        self._running_since: float | None = None
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._connector = threading.Thread(target=self._connect, name="store-connect", daemon=True)
        self._connector.start()

    @property
    def reached(self) -> bool:
        """Whether the store has answered since this process started."""
        return self._reached

    @property
    def healthy(self) -> bool:
        """Whether its latest answer came in time and without error."""
        return self._healthy

    async def read(self, user_id: int, session_id: str, event_ts: datetime) -> np.ndarray | None:
        """State float32[d] of a user, or None when the store gave none in time."""
        try:
            state = await self._call(self._budget, lambda s: s.read(user_id, session_id, event_ts))
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
        try:
            await self._call(
                self._budget * _FEEDBACK_BUDGETS,
                lambda s: s.feedback(user_id, session_id, request_id, event_ts, events),
            )
        except _Unavailable as error:
            self._failed("feedback", error)
            return False
        self._answered()
        return True

    def close(self) -> None:
        self._stop.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _connect(self) -> None:
        """Build the store, and ask it for a state nobody has: reads fail now rather than later."""
        while not self._stop.is_set():
            try:
                from serving.online_state import OnlineState

                store = OnlineState(self._settings)
                store.read(-1, "", datetime.fromtimestamp(0).astimezone())
            except Exception as error:  # whatever it is: serve static weights and try again
                _log.warning("store not reached", reason=str(error)[:500])
                self._stop.wait(_RECONNECT_S)
                continue
            self._store, self._reached, self._healthy = store, True, True
            _log.info("store reached", online=self._settings.store.online)
            return

    async def _call(self, budget: float, call: Callable[["OnlineState"], T]) -> T:
        store = self._store
        if store is None:
            raise _Unavailable("not reached yet")
        if self._stuck_for() > budget:
            raise _Unavailable("an earlier call has not returned")
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, call, store)
        while True:
            # the budget is the store's, not the queue's: time behind quick calls does not count
            done, _ = await asyncio.wait((future,), timeout=budget)
            if done:
                break
            if self._stuck_for() > budget:
                future.cancel()
                raise _Unavailable(f"no answer within {budget * 1000:g} ms")
        try:
            return future.result()
        except Exception as error:
            raise _Unavailable(str(error)) from error

    def _timed(self, call: Callable[["OnlineState"], T], store: "OnlineState") -> T:
        self._running_since = time.monotonic()
        try:
            return call(store)
        finally:
            self._running_since = None

    def _stuck_for(self) -> float:
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def _answered(self) -> None:
        if not self._healthy:
            self._healthy = True
            _log.info("store answers again")

    def _failed(self, operation: str, error: Exception) -> None:
        self._on_error(operation)
        if self._healthy:  # once an outage, not once a request
            self._healthy = False
            _log.warning("store failed", operation=operation, reason=str(error)[:500])
