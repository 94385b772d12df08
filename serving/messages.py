"""The bodies of ``POST /rank`` and ``POST /feedback``: read, checked, and refused by name.

Columns stay columns: a request of 500 candidates is a dozen arrays, checked by their element types as
a set and then as one numpy array, never value by value.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson

from training.contract.errors import DataError, MtfError
from training.contract.fusion import Fusion
from training.contract.settings import Settings

MAXIMUM_ID_LENGTH = 200  # characters of a request or session id
MAXIMUM_MS = 2**53  # the largest integer that every JSON reader keeps exact
INT64 = 2**63

RANK_FIELDS = ("request_id", "user_id", "session_id", "k", "context", "candidates", "event_ts")
FEEDBACK_FIELDS = ("request_id", "events", "user_id", "session_id", "event_ts")
_NUMBERS = frozenset((int, float))


class RequestError(MtfError):
    """The request cannot be served as it was sent; ``status`` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RankRequest:
    """``items`` int64[n] and ``scores`` float64[n, heads]; ``given`` names the heads that were sent."""

    user_id: int
    items: np.ndarray
    scores: np.ndarray
    given: tuple[str, ...]
    k: int
    request_id: str | None
    session_id: str | None
    event_ts: datetime | None


@dataclass(frozen=True)
class FeedbackRequest:
    """``events`` hold every signal column (0 or 1), ``item_id``, ``play_time_ms``, ``duration_ms``."""

    request_id: str
    events: list[dict[str, int]]
    user_id: int | None
    session_id: str | None
    event_ts: datetime | None


class Parser:
    """Reads bodies against one set of settings. Every fault is a :class:`RequestError`."""

    def __init__(self, settings: Settings) -> None:
        self._serving = settings.serving
        self._fusion: Fusion = settings.fusion
        self._places = {name: place for place, name in enumerate(self._fusion.names)}
        self._maxima = np.array([head.maximum for head in self._fusion.heads])
        self._signals = tuple(signal.column for signal in settings.signals)
        self._event_fields = frozenset(("item_id", "play_time_ms", "duration_ms", *self._signals))

    def rank(self, body: bytes) -> RankRequest:
        values = _object(body, RANK_FIELDS)
        candidates = _required(values, "candidates")
        if type(candidates) is not dict:
            raise RequestError("candidates must be an object with item_id and scores")
        _refuse_unknown(candidates, ("item_id", "scores"), "candidates.")
        items = self._items(_required(candidates, "item_id", "candidates."))
        scores, given = self._scores(candidates.get("scores", {}), len(items))
        context = values.get("context")
        if context is not None and type(context) is not dict:
            raise RequestError("context must be an object")
        if context:
            raise RequestError(
                f"unknown context feature {next(iter(context))!r}: the settings name none "
                "(the hour is taken from the time of the request)"
            )
        k = values.get("k")
        if k is None:
            k = self._serving.default_k
        elif type(k) is not int or not 1 <= k <= self._serving.max_k:
            raise RequestError(f"k must be an integer in [1, {self._serving.max_k}] (serving.max_k)")
        return RankRequest(
            user_id=_integer(_required(values, "user_id"), "user_id"),
            items=items,
            scores=scores,
            given=given,
            k=k,
            request_id=_identifier(values.get("request_id"), "request_id"),
            session_id=_identifier(values.get("session_id"), "session_id"),
            event_ts=self._time(values.get("event_ts")),
        )

    def feedback(self, body: bytes) -> FeedbackRequest:
        values = _object(body, FEEDBACK_FIELDS)
        request_id = _identifier(_required(values, "request_id"), "request_id")
        assert request_id is not None
        events = _required(values, "events")
        if type(events) is not list:
            raise RequestError("events must be a list of objects")
        if len(events) > self._serving.max_k:
            raise RequestError(
                f"{len(events)} events, at most {self._serving.max_k} items are shown (serving.max_k)"
            )
        checked = [self._event(event, index) for index, event in enumerate(events)]
        if len({event["item_id"] for event in checked}) != len(checked):
            raise RequestError("events name an item_id more than once")
        user_id = values.get("user_id")
        return FeedbackRequest(
            request_id=request_id,
            events=checked,
            user_id=None if user_id is None else _integer(user_id, "user_id"),
            session_id=_identifier(values.get("session_id"), "session_id"),
            event_ts=self._time(values.get("event_ts")),
        )

    def _items(self, values: Any) -> np.ndarray:
        if type(values) is not list or not values:
            raise RequestError("candidates.item_id must be a list of at least one integer")
        if len(values) > self._serving.max_candidates:
            raise RequestError(
                f"{len(values)} candidates, at most {self._serving.max_candidates} are taken "
                "(serving.max_candidates)"
            )
        if set(map(type, values)) != {int}:
            row = next(i for i, value in enumerate(values) if type(value) is not int)
            raise RequestError(f"candidates.item_id[{row}] must be an integer")
        if len(set(values)) != len(values):
            seen: set[int] = set()
            repeated = next(v for v in values if v in seen or seen.add(v))
            raise RequestError(f"candidates.item_id names item {repeated} more than once")
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError as error:
            raise RequestError("candidates.item_id holds a number beyond 64 bits") from error

    def _scores(self, columns: Any, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
        if type(columns) is not dict:
            raise RequestError("candidates.scores must be an object of one list a head")
        for name, column in columns.items():
            if type(column) is not list:
                raise RequestError(f"candidates.scores.{name[:80]} must be a list of numbers")
            if not _NUMBERS.issuperset(map(type, column)):
                row = next(i for i, value in enumerate(column) if type(value) not in _NUMBERS)
                raise RequestError(f"candidates.scores.{name[:80]}[{row}] must be a number")
        given = tuple(name for name in self._fusion.names if name in columns)
        if len(given) == len(columns) and all(len(column) == count for column in columns.values()):
            matrix = np.zeros((count, len(self._fusion.names)))
            where = [self._places[name] for name in given]
            matrix[:, where] = np.array([columns[name] for name in given], dtype=np.float64).T.reshape(
                count, -1
            )
            if ((matrix >= 0.0) & (matrix <= self._maxima)).all():
                return matrix, given
        try:  # something is wrong: the formula itself says what, head by head
            return self._fusion.matrix(columns, count), given
        except (DataError, OverflowError) as error:
            raise RequestError(f"candidates: {error}") from error

    def _event(self, event: Any, index: int) -> dict[str, int]:
        where = f"events[{index}]."
        if type(event) is not dict:
            raise RequestError(f"events[{index}] must be an object")
        if not self._event_fields.issuperset(event):
            _refuse_unknown(event, ("item_id", *self._signals, "play_time_ms", "duration_ms"), where)
        checked = {"item_id": _integer(_required(event, "item_id", where), where + "item_id")}
        for column in self._signals:
            value = event.get(column, 0)
            if type(value) not in (int, bool) or value not in (0, 1):
                raise RequestError(f"{where}{column} must be 0 or 1")
            checked[column] = int(value)
        for column in ("play_time_ms", "duration_ms"):
            value = event.get(column, 0)
            if type(value) is not int or not 0 <= value <= MAXIMUM_MS:
                raise RequestError(f"{where}{column} must be an integer of milliseconds, at least 0")
            checked[column] = value
        return checked

    def _time(self, value: Any) -> datetime | None:
        if value is None:
            return None
        if not self._serving.accept_event_ts:
            raise RequestError(
                "event_ts is not taken from requests: this service uses its own clock. "
                "Set serving.accept_event_ts to true for simulated or replayed traffic."
            )
        try:
            time = datetime.fromisoformat(value)
            if time.tzinfo is None:
                raise ValueError
            time = time.astimezone(UTC)
            if not 1970 <= time.year <= 2200:
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                "event_ts must be an ISO-8601 time with its offset between 1970 and 2200, "
                "such as 2026-01-05T12:00:00Z"
            ) from error
        return time


def timestamp(time: datetime) -> str:
    """ISO-8601 in UTC with microseconds, as the log writes it: ``2026-01-05T12:00:00.000000Z``."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def local_day(time: datetime, utc_offset_hours: int) -> str:
    """The calendar's day of a time, ``YYYY-MM-DD``."""
    return (time.astimezone(UTC) + timedelta(hours=utc_offset_hours)).strftime("%Y-%m-%d")


def _object(body: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if type(values) is not dict:
        raise RequestError("the body must be a JSON object")
    _refuse_unknown(values, fields)
    return values


def _refuse_unknown(values: dict[str, Any], fields: tuple[str, ...], where: str = "") -> None:
    for name in values:
        if name not in fields:
            raise RequestError(f"unknown field {where}{name[:80]}; expected {', '.join(fields)}")


def _required(values: dict[str, Any], name: str, where: str = "") -> Any:
    if values.get(name) is None:
        raise RequestError(f"{where}{name} is missing")
    return values[name]


def _integer(value: Any, name: str) -> int:
    if type(value) is not int or not -INT64 <= value < INT64:
        raise RequestError(f"{name} must be a 64-bit integer")
    return value


def _identifier(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if type(value) is not str or not 1 <= len(value) <= MAXIMUM_ID_LENGTH:
        raise RequestError(f"{name} must be a string of 1 to {MAXIMUM_ID_LENGTH} characters")
    return value
