"""Which fields does a body have, of which types and within which limits?

Declared once, as msgspec types built from the settings: they are what the parser enforces while it reads,
what the OpenAPI document shows, and what a refusal names a field by.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, defstruct

from serving.http.ids import Ids
from serving.http.requests import RequestError
from training.contract.settings import ServingSettings, Settings

MAXIMUM_ID_LENGTH = 200  # characters of a request or session id
MAXIMUM_MS = 2**53  # the largest integer that every JSON reader keeps exact

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
LONGEST_REASON = 300  # characters: a reason may quote a name that the caller made up


class Bodies:
    """The types of the bodies under one set of settings.

    ``rank`` is the JSON body of ``/rank``, ``fields`` what of it is beside the candidates, ``rank_fields``
    the part of it that a binary body keeps as JSON, ``feedback`` the body of ``/feedback``.
    """

    def __init__(self, settings: Settings) -> None:
        serving = settings.serving
        self.users = Ids(settings.ids.users, "ids.users")
        self.items = Ids(settings.ids.items, "ids.items")
        user, item = self.users.type, self.items.type
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
                        list[item],  # type: ignore[valid-type]  # made here
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
            ("user_id", user),
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
                        description="when absent, the user's last session; one that was idle for over "
                        f"{settings.session.gap_minutes:g} minutes goes on as a new one"
                    ),
                ],
                None,
            ),
            ("k", Annotated[int, Meta(ge=1, le=serving.max_k)] | None, serving.default_k),
            (
                "shown",
                Annotated[
                    Annotated[int, Meta(ge=0, le=serving.max_k)] | None,
                    Meta(
                        description="how many of the items, from the top, are taken as shown while no "
                        f"feedback says which; when absent, {_default_shown(serving)}"
                    ),
                ],
                None,
            ),
            # no feature of the context is known: the hour is taken from the time of the request
            ("context", _strict("Context", {}) | None, None),
            _EVENT_TS,
        ]
        self.rank = defstruct("RankBody", [("candidates", candidates), *fields], forbid_unknown_fields=True)
        self.fields = defstruct("Fields", fields, forbid_unknown_fields=True)
        # a tensor holds numbers only
        named = [("item_id", list[item])] if settings.ids.items == "string" else []  # type: ignore[valid-type]  # made here
        self.rank_fields = defstruct("RankFields", [*named, *fields], forbid_unknown_fields=True)
        event = _strict(
            "Event",
            {
                "item_id": (item, msgspec.NODEFAULT),
                **{signal.column: (Literal[0, 1] | bool, 0) for signal in settings.signals},
                "play_time_ms": (Milliseconds, 0),
                "duration_ms": (Milliseconds, 0),
            },
        )
        self.feedback = defstruct(
            "FeedbackBody",
            [
                ("request_id", Identifier),
                (
                    "events",
                    Annotated[list[event], Meta(max_length=serving.max_k)] | None,  # type: ignore[valid-type]  # made here
                    None,
                ),
                (
                    "shown",
                    Annotated[
                        Annotated[int, Meta(ge=0, le=serving.max_k)]
                        | Annotated[list[item], Meta(max_length=serving.max_k)]  # type: ignore[valid-type]  # made here
                        | None,
                        Meta(
                            description="what the user saw: the items, or how many from the top of the list. "
                            "What several messages name is added up, and an item with an event was seen. "
                            "Where no message says it, what /rank took as shown"
                        ),
                    ],
                    None,
                ),
                (
                    "user_id",
                    Annotated[
                        user | None,
                        Meta(description="needed only when another machine ranked the request"),
                    ],
                    None,
                ),
                ("session_id", Identifier | None, None),
                _EVENT_TS,
            ],
            forbid_unknown_fields=True,
        )


def _default_shown(serving: ServingSettings) -> str:
    return "all" if serving.default_shown is None else f"{serving.default_shown} (serving.default_shown)"


def _strict(name: str, fields: Mapping[str, tuple[Any, Any]]) -> Any:
    """A type whose field names come from the settings and need not be names in Python."""
    places = {f"field_{place}": field for place, field in enumerate(fields)}
    return defstruct(
        name,
        [(place, *fields[field]) for place, field in places.items()],
        rename=places,
        forbid_unknown_fields=True,
    )


def decode(decoder: msgspec.json.Decoder[Any], body: bytes | bytearray) -> Any:
    """A body by its type. Raises :class:`RequestError` naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError(_reason(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}"[:LONGEST_REASON]) from error


def _reason(message: str) -> str:
    """msgspec's message with the field first: ```candidates.item_id[3]: expected `int```."""
    match = _PLACE.match(message)
    assert match is not None  # every text matches
    text, path = match["text"], match["path"] or ""
    inside = f"{path}." if path else ""
    if missing := _MISSING.match(text):
        return f"{inside}{missing[1]} is missing"
    if unknown := _UNKNOWN.match(text):
        return f"unknown field {inside}{unknown[1]}"[:LONGEST_REASON]
    text = text[:1].lower() + text[1:]
    return f"{path or 'the body'}: {text}"[:LONGEST_REASON]
