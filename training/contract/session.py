"""When a session is over, what of it a state holds, and how feedback moves that.

The service applies these rules to what it reads and pushes, the parity check to what dbt computed,
so that both give the same state for the same instant.

**The idle gap** is one rule, :func:`within_gap`: two instants belong together when at most the gap lies
between them, in whole seconds, because Feast keeps timestamps in whole seconds. The service and the
simulator call it here; dbt has it as the macro ``within_gap`` (``dbt_project/macros/idle_gap.sql``), and
``tests/dbt_project/test_sessions.py`` holds both against each other.

**A stored session** is a mapping of :func:`training.contract.state.session_columns` to numbers, with
``sess_session_id``, ``sess_last_ts`` (time of its latest feedback) and ``request_id`` (whose feedback
that was). Feedback at t counts for every request at t or later, except the one that it answers: a tie counts.

**The decayed sums** go by requests in the order in which their feedback came: the latest weighs 1, the one
before it :data:`DECAY`. What is told later of a request that already counts adds its difference at weight 1,
which is exact for the latest request.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from training.contract.settings import Settings
from training.contract.state import session_columns

# Days of the log that a session reaches back into, or a day's rows can still change: an idle gap is a day at
# most (settings). Its last request becomes terminal, or gets its s', once the log has gone on, and users of
# the day before have come back. Two and not one, because a day's log may end within an idle gap of its start.
REACH_DAYS = 2
# Weight of a request relative to the one after it (ours): three requests back weigh a third. Averages so
# decayed explain more of the hidden satisfaction than those of the session or of the last page do.
DECAY = 0.7


def within_gap(one: datetime, other: datetime, gap: timedelta) -> bool:
    """Whether two instants, in either order, are at most ``gap`` apart, each cut to its whole second."""
    return abs(other.replace(microsecond=0) - one.replace(microsecond=0)) <= gap


def beyond_gap(gap: timedelta) -> timedelta:
    """A pause that ends a session wherever within its second it begins."""
    return gap + timedelta(seconds=1)


def is_current(session: Mapping[str, Any], session_id: str, event_ts: datetime, gap: timedelta) -> bool:
    """Whether a stored session is the one of a request: the same id, and not idle for over ``gap``."""
    last: datetime | None = session.get("sess_last_ts")
    if last is None or session.get("sess_session_id") != session_id:
        return False
    return within_gap(last, event_ts, gap)


class Shown(NamedTuple):
    """What a request showed: how many items, and the sum over them of each head's prediction."""

    items: int
    predictions: Sequence[float]


class SessionRules(NamedTuple):
    """What of the settings decides how feedback moves a session: ``signals`` maps a signal's name to its
    column in the events, ``heads`` are in the order of :class:`Shown`'s predictions."""

    signals: Mapping[str, str]
    heads: Sequence[str]
    gap: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Self:
        signals = {signal.name: signal.column for signal in settings.signals}
        return cls(signals, settings.head_names, settings.session.gap)


def add_feedback(
    session: Mapping[str, Any],
    rules: SessionRules,
    session_id: str,
    request_id: str,
    event_ts: datetime,
    events: Iterable[Mapping[str, Any]],
    before: Iterable[Mapping[str, Any]] = (),
    shown: Shown | None = None,
    shown_before: Shown | None = None,
) -> dict[str, Any] | None:
    """The stored session after one piece of feedback; None when it must stay as it is.

    ``events`` is all that is known of the request by now, the last for each item, and ``before`` what
    was known when its earlier feedback was added, so that the same feedback twice changes nothing, and a
    corrected one corrects. An event has the signals' columns (0/1; missing counts as 0) and
    ``play_time_ms``. ``shown`` is what the request showed, as far as is known by now, and ``shown_before``
    as it was when its earlier feedback was added, None where that is the same, or there was none. ``shown``
    is None where it is not known what the request showed: then that is taken to be the items of the events,
    without predictions.

    A first request of its session, and one that comes over the gap after the last, starts from zero.
    Feedback of an earlier request of the same session adds to the sums, counts in the decayed ones as if it
    had come just before the latest, and leaves ``last_*`` alone; feedback of another session that is older
    than the stored one, or of this one by more than the gap, is too late, and changes nothing.
    """
    page = _page(rules, events, shown)
    told = list(before)
    counted = bool(told) or shown_before is not None
    was = _page(rules, told, shown_before or shown) if counted else dict.fromkeys(page, 0.0)
    names = session_columns(list(rules.signals), rules.heads)
    last = session.get("sess_last_ts")
    late = last is not None and event_ts.replace(microsecond=0) < last.replace(microsecond=0)
    if not is_current(session, session_id, event_ts, rules.gap):
        if late:
            return None
        moved = dict.fromkeys(names, 0.0)
        again = False
        counted, was = False, dict.fromkeys(was, 0.0)  # it was counted in sums that are gone
    else:
        moved = {name: session[name] or 0.0 for name in names}
        again = session["request_id"] == request_id
    if not again and not counted:
        moved["sess_requests"] += 1.0
    for name, value in page.items():
        decayed, latest = moved[f"decayed_{name}"], moved[f"last_{name}"]
        if again or counted:
            decayed += value - was[name]
        elif late:
            decayed = latest + DECAY * (value + decayed - latest)
        else:
            decayed = value + DECAY * decayed
        moved[f"decayed_{name}"] = decayed
        if f"sess_{name}" in moved:
            moved[f"sess_{name}"] += value - was[name]
        if not late or again:
            moved[f"last_{name}"] = value
    return {
        **moved,
        "sess_session_id": session_id,
        "sess_last_ts": last if late else event_ts,
        "request_id": session["request_id"] if late else request_id,
    }


def _page(rules: SessionRules, events: Iterable[Mapping[str, Any]], shown: Shown | None) -> dict[str, float]:
    """What one request adds to each of the sums."""
    rows = list(events)
    if shown is None:
        shown = Shown(len(rows), [0.0] * len(rules.heads))
    return {
        "impressions": float(shown.items),
        **{
            f"{name}_count": float(sum(row.get(column) or 0 for row in rows))
            for name, column in rules.signals.items()
        },
        "play_s": sum(row.get("play_time_ms") or 0 for row in rows) / 1000.0,
        **{f"p_{head}": float(value) for head, value in zip(rules.heads, shown.predictions, strict=True)},
    }
