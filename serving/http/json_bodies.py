"""The bodies of ``POST /rank`` and ``POST /feedback``: read, checked, and refused by name.

What a body may hold is declared once, as msgspec types built from the settings: they are what the
parser enforces while it reads and what the OpenAPI document shows. A plain body, as a ranker sends it, is
read by simdjson instead, straight into columns and without an object a number, in a third of the time;
whatever is out of the ordinary in the least is left to those types, which take it or say what is wrong.

``/rank`` also takes a binary body, a `safetensors <https://github.com/huggingface/safetensors>`_ file of

- ``request``, U8 [m]: a JSON object with every field of the JSON body but ``candidates``;
- ``item_id``, I64 [n];
- ``scores.<head>``, F32 or F64 [n], one for each head that is sent.

It is the format that policies have: no code in it, nothing compressed, every offset checked by the
library, and ten lines to write in any language. Reading 500 × 12 scores takes a quarter of JSON's time.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import orjson
import simdjson
from msgspec import Meta, defstruct
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from training.contract.errors import MtfError
from training.contract.fusion import Fusion
from training.contract.settings import Settings

JSON = "application/json"
BINARY = "application/x-safetensors"  # not registered: safetensors has no registered type

MAXIMUM_ID_LENGTH = 200  # characters of a request or session id
MAXIMUM_MS = 2**53  # the largest integer that every JSON reader keeps exact
MAXIMUM_BINARY_HEADER = 64 * 1024  # bytes that name the tensors of a binary body
INT64 = 2**63

Integer = Annotated[int, Meta(ge=-INT64, le=INT64 - 1)]
Identifier = Annotated[str, Meta(min_length=1, max_length=MAXIMUM_ID_LENGTH)]
Milliseconds = Annotated[int, Meta(ge=0, le=MAXIMUM_MS)]

_EVENT_TS = (
    "event_ts",
    Annotated[
        str | None,
        Meta(
            description="the request's own time with its offset, for simulated or replayed traffic; only "
            "with serving.accept_event_ts",
            extra_json_schema={"format": "date-time"},
        ),
    ],
    None,
)
_PLACE = re.compile(r"^(?P<text>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_LONGEST_REASON = 300  # characters: a reason may quote a name that the caller made up
_NESTED = (simdjson.Object, simdjson.Array)
_random = Random()
_SCORE_TYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class RequestError(MtfError):
    """The request cannot be served as it was sent; ``status`` is the HTTP status to answer with, and
    ``headers`` go with it."""

    def __init__(self, message: str, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class RankRequest(NamedTuple):
    """``items`` int64[n] and ``scores`` float64[n, heads]; ``given`` names the heads that were sent.

    A head that was not sent is 0 for every candidate: its term of eq. (1) is then the same for all of
    them and cannot change their order.
    """

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


class Bodies:
    """The types of the bodies under one set of settings.

    ``rank`` is the JSON body of ``/rank``, ``rank_fields`` the part of it that a binary body keeps as
    JSON, ``feedback`` the body of ``/feedback``.
    """

    def __init__(self, settings: Settings) -> None:
        serving = settings.serving
        count = Meta(max_length=serving.max_candidates)
        scores = _strict(
            "Scores",
            {
                head.name: (
                    Annotated[list[Annotated[float, Meta(ge=0, le=head.maximum)]], count] | None,
                    None,
                )
                for head in settings.heads
            },
        )
        candidates = defstruct(
            "Candidates",
            [
                (
                    "item_id",
                    Annotated[
                        list[Integer],
                        Meta(
                            min_length=1,
                            max_length=serving.max_candidates,
                            extra_json_schema={"uniqueItems": True},
                        ),
                    ],
                ),
                (
                    "scores",
                    Annotated[
                        scores,
                        Meta(
                            description="the predictions of each head, one a candidate in the order of "
                            "item_id; a head left out cannot change the order"
                        ),
                    ],
                    msgspec.field(default_factory=scores),
                ),
            ],
            forbid_unknown_fields=True,
        )
        fields: list[Any] = [
            ("user_id", Integer),
            (
                "request_id",
                Annotated[Identifier | None, Meta(description="unique; made by the service when absent")],
                None,
            ),
            (
                "session_id",
                Annotated[
                    Identifier | None,
                    Meta(
                        description="when absent, the user's last session if it is not older than "
                        f"{settings.session.gap_minutes:g} minutes, else a new one"
                    ),
                ],
                None,
            ),
            ("k", Annotated[int, Meta(ge=1, le=serving.max_k)] | None, serving.default_k),
            # no feature of the context is known: the hour is taken from the time of the request
            ("context", _strict("Context", {}) | None, None),
            _EVENT_TS,
        ]
        self.rank = defstruct("RankBody", [("candidates", candidates), *fields], forbid_unknown_fields=True)
        self.rank_fields = defstruct("RankFields", fields, forbid_unknown_fields=True)
        event = _strict(
            "Event",
            {
                "item_id": (Integer, msgspec.NODEFAULT),
                **{signal.column: (Literal[0, 1] | bool, 0) for signal in settings.signals},
                "play_time_ms": (Milliseconds, 0),
                "duration_ms": (Milliseconds, 0),
            },
        )
        self.feedback = defstruct(
            "FeedbackBody",
            [
                ("request_id", Identifier),
                ("events", Annotated[list[event], Meta(max_length=serving.max_k)]),
                (
                    "user_id",
                    Annotated[
                        Integer | None,
                        Meta(description="needed only when another machine ranked the request"),
                    ],
                    None,
                ),
                ("session_id", Identifier | None, None),
                _EVENT_TS,
            ],
            forbid_unknown_fields=True,
        )


class Parser:
    """Reads bodies against one set of settings. Every fault is a :class:`RequestError`."""

    def __init__(self, settings: Settings) -> None:
        self._serving = settings.serving
        self._fusion: Fusion = settings.fusion
        self._rows = {name: row for row, name in enumerate(self._fusion.names)}
        self._maxima = np.array([head.maximum for head in self._fusion.heads])
        self._event_fields = (
            "item_id",
            *(signal.column for signal in settings.signals),
            "play_time_ms",
            "duration_ms",
        )
        bodies = Bodies(settings)
        self._simdjson = simdjson.Parser()
        self._fields_type = bodies.rank_fields
        self._rank = msgspec.json.Decoder(bodies.rank)
        self._rank_fields = msgspec.json.Decoder(bodies.rank_fields)
        self._feedback = msgspec.json.Decoder(bodies.feedback)

    def rank(self, body: bytes, media_type: str = JSON) -> RankRequest:
        """A body of either media type."""
        if media_type == BINARY:
            return self._rank_binary(body)
        return self._rank_plain(body) or self._rank_checked(body)

    def _rank_plain(self, body: bytes) -> RankRequest | None:
        """A good JSON body of the usual form; None for any other, good or bad."""
        if body[:1] != b"{":  # simdjson passes over a byte order mark
            return None
        try:
            root = self._simdjson.parse(body)
            names = list(root)
            candidates = root["candidates"]
            ids, sent = candidates["item_id"], candidates["scores"]
            given = list(sent)
            # no name twice or unknown, and no list within a list, which as_buffer would flatten
            if (
                len(candidates) != 2
                or len(set(names)) != len(names)
                or len(set(given)) != len(given)
                or not self._rows.keys() >= set(given)
                or not _has_openings(body, 1 + len(given))
                or not 1 <= len(ids) <= self._serving.max_candidates
            ):
                return None
            fields = {name: root[name] for name in names if name != "candidates"}
            if any(isinstance(value, _NESTED) for value in fields.values()):
                return None
            values = msgspec.convert(fields, self._fields_type)
            items = np.frombuffer(ids.as_buffer(of_type="i"), np.int64)
            scores = np.zeros((len(self._rows), len(items)))
            for name in given:
                column = np.frombuffer(sent[name].as_buffer(of_type="d"))
                if len(column) != len(items):
                    return None
                scores[self._rows[name]] = column
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            return None  # not JSON, or of other types: msgspec's ValidationError is a ValueError
        ordered = np.sort(items)
        if (ordered[1:] == ordered[:-1]).any() or not self._in_range(scores).all():
            return None
        names = self._fusion.names
        if len(given) < len(names):
            names = tuple(name for name in names if name in given)
        return self._request(values, items, scores.T, names)

    def _rank_checked(self, body: bytes) -> RankRequest:
        values = _decode(self._rank, body)
        ids = values.candidates.item_id
        items = np.array(ids, dtype=np.int64)
        _refuse_repeated(ids)
        columns = msgspec.structs.astuple(values.candidates.scores)
        scores = np.zeros((len(columns), len(ids)))
        pack = struct.Struct(f"={len(ids)}d").pack  # three times as fast as numpy on a list
        for row, column in enumerate(columns):
            if column is None:
                continue
            if len(column) != len(ids):
                raise RequestError(
                    f"candidates.scores.{self._fusion.names[row]}: {len(column)} values for {len(ids)} "
                    "candidates, expected one a candidate"
                )
            scores[row] = np.frombuffer(pack(*column))
        given = tuple(
            name for name, column in zip(self._fusion.names, columns, strict=True) if column is not None
        )
        return self._request(values, items, scores.T, given)

    def _rank_binary(self, body: bytes) -> RankRequest:
        tensors = _tensors(body)
        values = _decode(self._rank_fields, _tensor(tensors, "request", ("U8",))[1])
        kind, data = _tensor(tensors, "item_id", ("I64",))
        items = np.frombuffer(data, "<i8")
        count, largest = len(items), self._serving.max_candidates
        if not 1 <= count <= largest:
            raise RequestError(
                f"item_id: {count} candidates, expected 1 to {largest} (serving.max_candidates)"
            )
        _refuse_repeated(items.tolist())
        scores = np.zeros((len(self._fusion.names), count))
        given = []
        for row, name in enumerate(self._fusion.names):
            if f"scores.{name}" not in tensors:
                continue
            kind, data = _tensor(tensors, f"scores.{name}", tuple(_SCORE_TYPES))
            column = np.frombuffer(data, _SCORE_TYPES[kind])
            if len(column) != count:
                raise RequestError(
                    f"scores.{name}: {len(column)} values for {count} candidates, expected one a candidate"
                )
            scores[row] = column
            given.append(name)
        if tensors:
            raise RequestError(
                f"unknown tensor {next(iter(tensors))[:80]!r}; expected request, item_id and scores.<head> "
                f"for {', '.join(self._fusion.names)}"
            )
        good = self._in_range(scores)
        if not good.all():
            row, place = (int(index) for index in np.argwhere(~good)[0])
            raise RequestError(
                f"scores.{self._fusion.names[row]}[{place}]: {scores[row, place]}, expected a number in "
                f"[0, {self._maxima[row]:g}]"
            )
        return self._request(values, items, scores.T, tuple(given))

    def _in_range(self, scores: np.ndarray) -> np.ndarray:
        """bool[heads, n]; False for NaN."""
        return (scores >= 0.0) & (scores <= self._maxima[:, None])

    def _request(
        self, values: Any, items: np.ndarray, scores: np.ndarray, given: tuple[str, ...]
    ) -> RankRequest:
        return RankRequest(
            user_id=values.user_id,
            items=items,
            scores=scores,
            given=given,
            k=self._serving.default_k if values.k is None else values.k,
            request_id=values.request_id,
            session_id=values.session_id,
            event_ts=self._time(values.event_ts),
        )

    def feedback(self, body: bytes) -> FeedbackRequest:
        values = _decode(self._feedback, body)
        events = [
            dict(zip(self._event_fields, map(int, msgspec.structs.astuple(event)), strict=True))
            for event in values.events
        ]
        if len({event["item_id"] for event in events}) != len(events):
            raise RequestError("events: an item_id is named more than once")
        return FeedbackRequest(
            request_id=values.request_id,
            events=events,
            user_id=values.user_id,
            session_id=values.session_id,
            event_ts=self._time(values.event_ts),
        )

    def _time(self, value: str | None) -> datetime | None:
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
        except (ValueError, OverflowError) as error:
            raise RequestError(
                "event_ts must be an ISO-8601 time with its offset between 1970 and 2200, "
                "such as 2026-01-05T12:00:00Z"
            ) from error
        return time


def _has_openings(body: bytes, count: int) -> bool:
    """Whether so many lists, and no more, are opened in it; four times as fast as counting bytes."""
    place = -1
    for _ in range(count):
        place = body.find(b"[", place + 1)
        if place < 0:
            return False
    return body.find(b"[", place + 1) < 0


def encode_answer(answer: Mapping[str, Any], media_type: str = JSON) -> bytes:
    """The answer of ``/rank``: JSON, or its ``items`` and ``scores`` as tensors beside the rest.

    The binary form is a safetensors file of ``items`` I64 [k], ``scores`` F64 [k], and ``answer`` U8
    with the other fields as a JSON object. ``items`` and ``scores`` are numpy arrays.
    """
    if media_type == JSON:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    columns = {name: np.ascontiguousarray(answer[name]) for name in ("items", "scores")}
    rest = {name: value for name, value in answer.items() if name not in columns}
    return save(columns | {"answer": _bytes(rest)})


def encode_rank_binary(
    fields: Mapping[str, Any], items: np.ndarray, scores: Mapping[str, np.ndarray]
) -> bytes:
    """A binary body of ``/rank``; scores are sent as float32 unless they are float64 already."""
    tensors = {"request": _bytes(fields), "item_id": np.asarray(items, dtype=np.int64)}
    for name, column in scores.items():
        column = np.asarray(column)
        kind = np.float64 if column.dtype == np.float64 else np.float32
        tensors[f"scores.{name}"] = np.ascontiguousarray(column, dtype=kind)
    return save(tensors)


def decode_answer_binary(body: bytes) -> dict[str, Any]:
    """What :func:`encode_answer` wrote, as its JSON form would be read. Raises ``ValueError``."""
    try:
        tensors = {name: view["data"] for name, view in deserialize(body)}
        return orjson.loads(tensors["answer"]) | {
            "items": np.frombuffer(tensors["items"], "<i8").tolist(),
            "scores": np.frombuffer(tensors["scores"], "<f8").tolist(),
        }
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a binary answer: {error}") from error


def new_id() -> str:
    """32 random hex digits; asking the system for them each time would give up the interpreter's lock."""
    return f"{_random.getrandbits(128):032x}"


def timestamp(time: datetime) -> str:
    """ISO-8601 in UTC with microseconds, as the log writes it: ``2026-01-05T12:00:00.000000Z``."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def local_day(time: datetime, utc_offset_hours: int) -> str:
    """The calendar's day of a time, ``YYYY-MM-DD``."""
    return (time.astimezone(UTC) + timedelta(hours=utc_offset_hours)).date().isoformat()


def _strict(name: str, fields: Mapping[str, tuple[Any, Any]]) -> Any:
    """A type whose field names come from the settings and need not be names in Python."""
    places = {f"field_{place}": field for place, field in enumerate(fields)}
    return defstruct(
        name,
        [(place, *fields[field]) for place, field in places.items()],
        rename=places,
        forbid_unknown_fields=True,
    )


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes | bytearray) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError(_reason(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}"[:_LONGEST_REASON]) from error


def _reason(message: str) -> str:
    """msgspec's message with the field first: ```candidates.item_id[3]: expected `int```."""
    match = _PLACE.match(message)
    assert match is not None  # every text matches
    text, path = match["text"], match["path"] or ""
    inside = f"{path}." if path else ""
    if missing := _MISSING.match(text):
        return f"{inside}{missing[1]} is missing"
    if unknown := _UNKNOWN.match(text):
        return f"unknown field {inside}{unknown[1]}"[:_LONGEST_REASON]
    text = text[:1].lower() + text[1:]
    return f"{path or 'the body'}: {text}"[:_LONGEST_REASON]


def _refuse_repeated(items: list[int]) -> None:
    if len(set(items)) != len(items):
        seen: set[int] = set()
        repeated = next(item for item in items if item in seen or seen.add(item))
        raise RequestError(f"candidates.item_id names item {repeated} more than once")


def _tensors(body: bytes) -> dict[str, dict[str, Any]]:
    """The tensors of a binary body by name: their type, shape and bytes."""
    if int.from_bytes(body[:8], "little") > MAXIMUM_BINARY_HEADER:
        raise RequestError(
            f"the body is not a safetensors file with a header of at most {MAXIMUM_BINARY_HEADER} bytes"
        )
    try:
        return dict(deserialize(body))
    except SafetensorError as error:
        raise RequestError(f"the body is not a safetensors file: {error}"[:_LONGEST_REASON]) from error


def _tensor(tensors: dict[str, dict[str, Any]], name: str, kinds: tuple[str, ...]) -> tuple[str, bytearray]:
    """Take out one tensor of one dimension; its type and its bytes."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise RequestError(f"the tensor {name} is missing")
    if tensor["dtype"] not in kinds or len(tensor["shape"]) != 1:
        raise RequestError(
            f"{name}: {tensor['dtype']} of shape {tensor['shape']}, expected one dimension of "
            f"{' or '.join(kinds)}"
        )
    return tensor["dtype"], tensor["data"]


def _bytes(fields: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(orjson.dumps(fields), np.uint8)
