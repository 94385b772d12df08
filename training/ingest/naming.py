"""What the name of a column says of it: whose columns are ours, and what heads and signals are called.

Names are how people say what a column is; :mod:`training.ingest.inferring` holds them against the values.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from training.contract.arrays import Float64Array
from training.contract.errors import SettingsError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import DEFAULT_HEADS, HeadSettings, SignalSettings

# the contract's columns that are neither predictions, nor feedback, nor traits
REQUIRED = {
    IMPRESSIONS: (
        "request_id",
        "user_id",
        "item_id",
        "event_ts",
        "position",
        "play_time_ms",
        "duration_ms",
    ),
    USERS: ("user_id", "updated_ts"),
}
OPTIONAL = {IMPRESSIONS: ("session_id", "feedback_ts"), USERS: ()}
WHAT = {
    "request_id": "the id of the ranking request",
    "user_id": "the id of the user",
    "item_id": "the id of the item",
    "event_ts": "the time of the request",
    "position": "the place in the list, 0 at the top",
    "play_time_ms": "the milliseconds played (0 where nothing is)",
    "duration_ms": "the length of the item in milliseconds (0 where unknown)",
    "updated_ts": "the time from which a profile holds",
}

_ID = r"(_?(id|uuid|guid|key|hash|no))?"
_ITEM = (
    r"(item|article|video|product|doc|document|content|post|story|photo|track|song|movie|film|clip|media|"
    r"listing|ad|news|asset|sku|book|recipe|note|object|episode|show|offer|photo|card)"
)
_USER = (
    r"(user|uid|member|reader|viewer|customer|account|visitor|device|listener|player|buyer|client|consumer|"
    r"subscriber|person)"
)
# in the order in which they are looked for; the contract's own name always comes first
PATTERNS: Mapping[str, str] = {
    "request_id": rf"(req|request|rec|ranking|query|search|page|slate|trace|impression|rid){_ID}",
    "session_id": rf"(sess|session|visit){_ID}",
    "user_id": rf"{_USER}{_ID}",
    "item_id": rf"{_ITEM}{_ID}",
    "position": r"(item_?)?(position|pos|slot|rank|index|idx|place)",
    "feedback_ts": r"(feedback|response)_?(ts|time|timestamp|at)",
    "event_ts": r"((event|served|shown|request|req|impression|view|log|logged|created|server)_?)?"
    r"(ts|time|timestamp|at|datetime)(_?(utc|s|ms|us|ns))?",
    "updated_ts": r"((updated?|changed?|modified|created|valid|profile|snapshot)_?)?"
    r"(ts|time|timestamp|at|from|since|datetime|as_of|asof)(_?(utc|s|ms|us|ns))?",
    "play_time_ms": r"(play|played|watch|watched|view|viewed|read|dwell|listen|listened|stay|consumed)"
    r"_?(time|duration)?_?(ms|millis|milliseconds)",
    "duration_ms": rf"({_ITEM}_?)?(duration|length|len)?_?(ms|millis|milliseconds)",
}
# of a time played or a length that is no milliseconds
OTHER_UNIT = r"(play|watch|view|read|dwell|listen|stay).*_(s|sec|secs|seconds|min|minutes|time|duration)"

_PREDICTED = re.compile(r"^(p|pred|predicted|prob|probability|score|est|estimated|exp|expected)_(.+)$")
_SCORED = re.compile(r"^(.+)_(p|pred|prediction|predicted|prob|probability|score|est|estimate)$")
_RATES = {"ctr": "click", "cvr": "purchase", "cr": "purchase", "vtr": "view"}
_STEMS = {
    "clicked": "click",
    "liked": "like",
    "disliked": "dislike",
    "shared": "share",
    "subscribed": "subscribe",
    "unsubscribed": "unsubscribe",
    "purchased": "purchase",
    "bought": "purchase",
    "followed": "follow",
    "commented": "comment",
    "saved": "save",
    "bookmarked": "bookmark",
    "hidden": "hide",
    "reported": "report",
    "forwarded": "forward",
    "converted": "convert",
    "skipped": "skip",
    "blocked": "block",
    "ordered": "order",
    "finished": "finish",
    "completed": "complete",
    "opened": "open",
    "viewed": "view",
    "watched": "watch",
    "downloaded": "download",
    "rated": "rate",
    "sub": "subscribe",
    "fav": "favourite",
}
WORDS = {*_STEMS.values(), "long_view", "hate", "read", "play"}
NEGATIVE = {
    "hate",
    "dislike",
    "hide",
    "report",
    "block",
    "unsubscribe",
    "unfollow",
    "skip",
    "complain",
    "spam",
}
_WEIGHTS = {"click": 0.1, "open": 0.1, "view": 0.1, "long_view": 0.3, "finish": 0.3, "complete": 0.3}
_STRONG = {"follow", "subscribe", "purchase", "order", "convert"}
_TIME = {"time", "dwell", "duration", "watch", "s", "sec", "secs", "second", "seconds", "length"}
_MILLIS, _MINUTES = {"ms", "millis", "milliseconds"}, {"min", "mins", "minute", "minutes"}
_LEGAL = re.compile(r"[a-z][a-z0-9_]{0,40}")
_TEN_HOURS_S = 36_000.0  # of a time: no score is longer than ten hours


def plain(name: str) -> str:
    """A column's name in lower case, its words joined by ``_``, as settings take names."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def legal(name: str) -> bool:
    """Whether settings take it as the name of a head, a signal or a column."""
    return bool(_LEGAL.fullmatch(name))


def head_of(name: str) -> str | None:
    """What a column named like a prediction predicts; None for other names."""
    bare = plain(name)
    if bare in _RATES:
        return _RATES[bare]
    found = _PREDICTED.match(bare) or _SCORED.match(bare)
    if found is not None:
        word = found[2] if found.re is _PREDICTED else found[1]
        return _RATES.get(word) or _stem(word)
    if bare.startswith("p") and _RATES.get(bare[1:]):
        return _RATES[bare[1:]]
    if bare.startswith("p") and _stem(bare[1:]) in WORDS:
        return _stem(bare[1:])
    return None


def signal_of(name: str) -> str:
    """What a 0/1 column of feedback is called."""
    bare = re.sub(r"^(is|has|did|was)_|_(flag|label|event)$", "", plain(name))
    return _stem(bare)


def _stem(word: str) -> str:
    return _STEMS.get(word, word)


def new_head(name: str, values: Float64Array | None = None) -> HeadSettings:
    """A head's settings by its name, and by a sample of its scores where there is one.

    A time has a maximum in the unit that its name says, seconds where it says none.
    """
    known = {head.name: head for head in DEFAULT_HEADS}.get(name)
    largest = None if values is None or not np.isfinite(values).any() else float(np.nanmax(values))
    if known is not None and (largest is None or largest <= known.maximum):
        return known
    words = set(name.split("_"))
    if largest is None or largest > 1.0:
        if words & _MILLIS:
            return _of_time(name, 1000.0, largest)
        if words & _MINUTES:
            return _of_time(name, 1.0 / 60.0, largest)
        if words & _TIME:
            return _of_time(name, 1.0, largest)
    if largest is not None and largest > 1.0:
        middle = float(np.nanmedian(values)) if values is not None else 1.0
        return HeadSettings(
            name=name, beta=_round_up(max(middle / 10.0, 0.1)), static=0.3, maximum=_round_up(4.0 * largest)
        )
    if words & NEGATIVE:
        return HeadSettings(name=name, beta=0.01, low=-1.0, high=0.0, static=-0.2)
    rare = values is not None and largest is not None and float(np.nanmean(values)) < 0.05
    return HeadSettings(name=name, beta=0.01 if rare else 0.1, static=0.3 if rare else 0.5)


def _of_time(name: str, per_second: float, largest: float | None) -> HeadSettings:
    most = _TEN_HOURS_S * per_second
    maximum = most if largest is None or largest <= most else _round_up(4.0 * largest)
    return HeadSettings(name=name, beta=max(1.0 * per_second, 0.01), high=2.0, static=0.3, maximum=maximum)


def _round_up(value: float) -> float:
    """To one digit of 1, 2 or 5."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1.0, 2.0, 5.0, 10.0) if digit * power >= value)


def new_signal(name: str, column: str) -> SignalSettings:
    """A signal's weight by its name: a guess that says which feedback is wanted."""
    words = {name, *name.split("_")}
    if words & NEGATIVE:
        weight = -1.0
    elif words & _STRONG:
        weight = 1.0
    else:
        weight = _WEIGHTS.get(name, 0.5)
    return SignalSettings(name=name, column=column, weight=weight, positive_interaction=weight >= 0.5)


def named_heads(text: str) -> tuple[HeadSettings, ...]:
    """Heads of a list of names; :class:`SettingsError` for one that is no name, or is there twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not legal(name):
            raise SettingsError(
                f"--heads: {name!r} is no name of a head: lower-case letters, digits and _, "
                f"a letter first, as {plain(name) or 'click'}"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"--heads: named twice: {', '.join(twice)}")
    return tuple(new_head(name) for name in names)
