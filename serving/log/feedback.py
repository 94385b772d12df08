"""Which way does feedback go?

    FeedbackRequest → Owned → on disk → known with what was fed before → moves the state → answered

Logged first, then the state moves: a state that did not move is named in the answer.
"""

import asyncio
import sqlite3
from datetime import UTC, datetime
from typing import NamedTuple

import orjson
import structlog

from serving.control import metrics
from serving.http.parser import Parser
from serving.http.requests import FeedbackRequest, RequestError
from serving.log.day_files import DayFiles, LogError, encode
from serving.log.index.events import KnownEvents, RequestEvents
from serving.log.index.request_index import RequestIndex
from serving.log.index.sessions import SessionRequest
from serving.log.times import local_day, timestamp
from serving.running.batches import ThreadBatches
from serving.state.questions import Feedback
from serving.state.store import StateStore
from training.contract.log import LATE_DAYS, feedback_line
from training.contract.session import Shown
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.engine")


class Owned(NamedTuple):
    """Whose feedback it is: the user and the session of the request that it is about, and what that showed
    where this machine ranked it."""

    request: FeedbackRequest
    event_ts: datetime
    user_id: int
    session_id: str
    shown: Shown | None


class Encoded(NamedTuple):
    """Its line for the log, and its events for the index."""

    day: str
    line: bytes
    events: RequestEvents


class FeedbackPipeline:
    """Takes feedback the whole way. :meth:`take` belongs to the event loop.

    It raises :class:`RequestError` for what the caller did wrong and :class:`LogError` when the feedback
    could not be made durable; whatever it answered is on disk. ``log`` is what waits for that.
    """

    def __init__(
        self, settings: Settings, parser: Parser, index: RequestIndex, store: StateStore, files: DayFiles
    ) -> None:
        self._offset, self._heads = settings.calendar.utc_offset_hours, len(settings.heads)
        self._parser, self._index, self._store, self._files = parser, index, store, files
        self.log: ThreadBatches[Encoded, KnownEvents] = ThreadBatches("feedback log", self._write, LogError)

    async def take(self, body: bytes) -> bytes:
        owned = self._own(self._parser.feedback(body))
        encoded = self._encode(owned)
        known = await self.log.add(encoded)
        moved = await self._move(owned, known)
        metrics.feedback_events.inc(len(owned.request.events))
        return _answer(owned, moved)

    def _own(self, request: FeedbackRequest) -> Owned:
        """By the request's own entry in the index; of a request that is not there the caller says it."""
        event_ts = request.event_ts or datetime.now(UTC)
        try:
            served = self._index.requests.find(request.request_id)
            shown: Shown | None = None
            if served is not None:
                user_id, session_id, shown = served
                if len(shown.predictions) != self._heads:  # ranked under settings with other heads
                    shown = None
                if request.user_id not in (None, user_id):
                    raise RequestError(
                        f"request {request.request_id!r} was not made for user {request.user_id}"
                    )
            elif request.user_id is not None:
                user_id = request.user_id
                asked = SessionRequest(user_id, request.session_id, event_ts)
                session_id = self._index.sessions.of([asked])[0].session_id
            else:
                raise RequestError(
                    f"request {request.request_id!r} is not known here: it was not ranked in the last "
                    f"{LATE_DAYS} days, or by another machine. "
                    "Send user_id and session_id with the feedback.",
                    status=404,
                )
        except sqlite3.Error as error:
            raise LogError(f"cannot read the request index: {error}") from error
        return Owned(request, event_ts, user_id, session_id, shown)

    def _encode(self, owned: Owned) -> Encoded:
        request = owned.request
        line = encode(
            feedback_line(
                request_id=request.request_id,
                user_id=owned.user_id,
                event_ts=timestamp(owned.event_ts),
                events=request.events,
            )
        )
        events = {event["item_id"]: event for event in request.events}
        return Encoded(
            local_day(owned.event_ts, self._offset),
            line,
            RequestEvents(request.request_id, owned.session_id, events),
        )

    def _write(self, batch: list[Encoded]) -> list[KnownEvents]:
        """The batch to the disk, and then to the index, which knows what was fed before."""
        self._files.write([(one.day, one.line) for one in batch])
        return self._index.events.add([one.events for one in batch])

    async def _move(self, owned: Owned, known: KnownEvents) -> bool:
        """The user's state; False when the store did not take it, which the index is then told."""
        request_id = owned.request.request_id
        moved = await self._store.feedback(
            Feedback(
                owned.user_id,
                owned.session_id,
                request_id,
                owned.event_ts,
                known.now,
                known.before,
                owned.shown,
            )
        )
        if not moved:
            items = [event["item_id"] for event in owned.request.events]
            try:
                await asyncio.to_thread(self._index.events.not_moved, request_id, items)
            except sqlite3.Error as error:
                _log.warning("feedback sent again will not move the state", reason=str(error))
        return moved

    def close(self) -> None:
        """Write what waits."""
        self.log.close()


def _answer(owned: Owned, moved: bool) -> bytes:
    return orjson.dumps(
        {
            "request_id": owned.request.request_id,
            "session_id": owned.session_id,
            "events": len(owned.request.events),
            "state_moved": moved,
        }
    )
