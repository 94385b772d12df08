"""The session part of a state: when stored sums still count, and how feedback moves them.

The service applies these rules to what it reads and pushes, the parity check to what dbt computed,
so that both give the same state for the same instant.

A stored session is a mapping of :func:`training.contract.state.session_columns` to numbers, with
``sess_session_id``, ``sess_last_ts`` (time of its latest feedback) and ``request_id`` (whose feedback
that was). Times are compared in whole seconds, because Feast keeps timestamps in whole seconds.
Feedback at t counts for every request at t or later, except the one that it answers: a tie counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from training.contract.state import session_columns


def is_current(session: Mapping[str, Any], session_id: str, event_ts: datetime, gap: timedelta) -> bool:
    """Whether a stored session is the one of a request: the same id, and not idle for over ``gap``."""
    last: datetime | None = session.get("sess_last_ts")
    if last is None or session.get("sess_session_id") != session_id:
        return False
    return event_ts - last.replace(microsecond=0) <= gap


def add_feedback(
    session: Mapping[str, Any],
    signals: Mapping[str, str],
    session_id: str,
    request_id: str,
    event_ts: datetime,
    events: Iterable[Mapping[str, Any]],
    gap: timedelta,
    before: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any] | None:
    """The stored session after one piece of feedback; None when it must stay as it is.

    ``events`` is all that is known of the request by now, the last for each item, and ``before`` what
    was known when its earlier feedback was added, so that the same feedback twice changes nothing, and a
    corrected one corrects. ``signals`` maps a signal's name to its column in ``events`` (0/1; missing
    counts as 0), whose items also carry ``play_time_ms``. A first request of its session, and one that
    comes ``gap`` after the last, starts from zero. Feedback of an earlier request of the same session
    adds to the sums and leaves ``last_*`` alone; feedback of another session that is older than the
    stored one is too late, and changes nothing.
    """
    sums = _sums(signals, events)
    known = list(before)
    was = _sums(signals, known)
    last = session.get("sess_last_ts")
    late = last is not None and event_ts.replace(microsecond=0) < last.replace(microsecond=0)
    if not is_current(session, session_id, event_ts, gap):
        if late:
            return None
        moved = dict.fromkeys(session_columns(list(signals)), 0.0)
        again = False
        known, was = [], dict.fromkeys(was, 0.0)  # it was counted in sums that are gone
    else:
        moved = {name: session[name] or 0.0 for name in session_columns(list(signals))}
        again = session["request_id"] == request_id
    if not again and not known:
        moved["sess_requests"] += 1.0
    for name, value in sums.items():
        moved[f"sess_{name}"] += value - was[name]
        if not late or again:
            moved[f"last_{name}"] = value
    return {
        **moved,
        "sess_session_id": session_id,
        "sess_last_ts": last if late else event_ts,
        "request_id": session["request_id"] if late else request_id,
    }


def _sums(signals: Mapping[str, str], events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    rows: Sequence[Mapping[str, Any]] = list(events)
    return {
        "impressions": float(len(rows)),
        **{
            f"{name}_count": float(sum(row.get(column) or 0 for row in rows))
            for name, column in signals.items()
        },
        "play_s": sum(row.get("play_time_ms") or 0 for row in rows) / 1000.0,
    }
