"""Which way does feedback go?

    FeedbackRequest → Owned → on disk → known with what was fed before → moves the state → answered

Logged first, then the state moves: a state that did not move is named in the answer. So are items that the
request did not rank, of which nothing is logged.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import structlog

from serving.control import metrics
from serving.http.parser import Parser
from serving.http.requests import FeedbackRequest, RequestError
from serving.log.day_files import DayFiles, LogError, encode
from serving.log.index.events import KnownEvents, RequestEvents
from serving.log.index.file import FAILURES
from serving.log.index.request_index import RequestIndex
from serving.log.index.sessions import SessionRequest
from serving.log.ranked_lines import RankedLine, RankedLines
from serving.log.times import local_day, timestamp
from serving.running.batches import ThreadBatches
from serving.state.questions import Feedback
from serving.state.store import StateStore
from training.contract.log import LATE_DAYS, Id, feedback_line
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.engine")


class Owned(NamedTuple):
    """Whose feedback it is: the user and the session of the request that it is about, and what that ranked
    where this machine did. ``events`` and ``shown`` are the feedback's, but for items that were
    ``not_ranked``; ``shown`` is None where it does not say what was shown."""

    request: FeedbackRequest
    event_ts: datetime
    user_id: Id
    session_id: str
    ranked: RankedLine | None
    events: list[dict[str, Any]]
    shown: list[Id] | None
    not_ranked: list[Id]

    @property
    def tells(self) -> bool:
        """Whether anything is left of it."""
        return bool(self.events or self.shown or not self.not_ranked)


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
        self,
        settings: Settings,
        parser: Parser,
        index: RequestIndex,
        store: StateStore,
        files: DayFiles,
        ranked: RankedLines,
    ) -> None:
        self._zone = settings.calendar.zone
        self._parser, self._index, self._store, self._files = parser, index, store, files
        self._ranked = ranked
        self.log: ThreadBatches[Encoded, KnownEvents] = ThreadBatches("feedback log", self._write, LogError)

    async def take(self, body: bytes) -> bytes:
        request = self._parser.feedback(body)
        owned = self._own(request) if self._index.local else await asyncio.to_thread(self._own, request)
        metrics.feedback_not_ranked.inc(len(owned.not_ranked))
        moved = False
        if owned.tells:
            known = await self.log.add(self._encode(owned))
            moved = await self._move(owned, known)
            metrics.feedback_events.inc(len(owned.events))
        return _answer(owned, moved)

    def _own(self, request: FeedbackRequest) -> Owned:
        """By the request's own entry in the index; of a request that is not there the caller says it."""
        event_ts = request.event_ts or datetime.now(UTC)
        try:
            served = self._index.requests.find(request.request_id)
            ranked = None
            if served is not None:
                user_id, session_id = served.user_id, served.session_id
                if request.user_id not in (None, user_id):
                    raise RequestError(
                        f"request_id: {request.request_id!r} is not of user {request.user_id}", status=409
                    )
                if request.event_ts is not None and request.event_ts.timestamp() < served.event_s:
                    raise RequestError(
                        f"event_ts: {request.event_ts.isoformat()} is before its request, which was answered "
                        f"at {timestamp(datetime.fromtimestamp(served.event_s, UTC))}"
                    )
                ranked = self._ranked.read(served.place)
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
        except FAILURES as error:
            raise LogError(f"cannot read the request index: {error}") from error
        return _owned(request, event_ts, user_id, session_id, ranked)

    def _encode(self, owned: Owned) -> Encoded:
        request = owned.request
        line = encode(
            feedback_line(
                request_id=request.request_id,
                user_id=owned.user_id,
                event_ts=timestamp(owned.event_ts),
                events=owned.events,
                shown=owned.shown,
                # of what another machine ranked: landing knows the list
                shown_top=request.shown_top if owned.shown is None else None,
            )
        )
        events = {event["item_id"]: event for event in owned.events}
        return Encoded(
            local_day(owned.event_ts, self._zone),
            line,
            RequestEvents(request.request_id, owned.session_id, events, owned.shown),
        )

    def _write(self, batch: list[Encoded]) -> list[KnownEvents]:
        """The batch to the disk, and then to the index, which knows what was fed before."""
        self._files.write([(one.day, one.line) for one in batch])
        return self._index.events.add([one.events for one in batch])

    async def _move(self, owned: Owned, known: KnownEvents) -> bool:
        """The user's state; False when the store did not take it, which the index is then told."""
        request_id, shown, before = owned.request.request_id, None, None
        if owned.ranked is not None:
            shown = owned.ranked.shown(known.shown_now, _items(known.now))
            if known.before or known.shown_before is not None:
                before = owned.ranked.shown(known.shown_before, _items(known.before))
        moved = await self._store.feedback(
            Feedback(
                owned.user_id,
                owned.session_id,
                request_id,
                owned.event_ts,
                known.now,
                known.before,
                shown,
                before,
            )
        )
        if not moved:
            try:
                await asyncio.to_thread(
                    self._index.events.not_moved, request_id, _items(owned.events), known.shown_before
                )
            except FAILURES as error:
                _log.warning("feedback sent again will not move the state", reason=str(error))
        return moved

    def close(self) -> None:
        """Write what waits."""
        self.log.close()


def _owned(
    request: FeedbackRequest, event_ts: datetime, user_id: Id, session_id: str, ranked: RankedLine | None
) -> Owned:
    events, shown, not_ranked = request.events, request.shown, list[Id]()
    if ranked is not None:
        there = {*ranked.items}
        named = dict.fromkeys([*_items(events), *(shown or ())])
        not_ranked = [item for item in named if item not in there]
        if not_ranked:
            events = [event for event in events if event["item_id"] in there]
            shown = None if shown is None else [item for item in shown if item in there]
        if request.shown_top is not None:
            shown = ranked.top(request.shown_top)
        elif shown is None and not request.events:  # they saw the list, and did nothing
            shown = ranked.top(None)
    return Owned(request, event_ts, user_id, session_id, ranked, events, shown, not_ranked)


def _items(events: Iterable[Mapping[str, Any]]) -> list[Id]:
    return [event["item_id"] for event in events]


def _answer(owned: Owned, moved: bool) -> bytes:
    return orjson.dumps(
        {
            "request_id": owned.request.request_id,
            "session_id": owned.session_id,
            "events": len(owned.events),
            "not_ranked": owned.not_ranked,
            "state_moved": moved,
        }
    )
