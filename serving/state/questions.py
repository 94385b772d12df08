"""What is the online store asked, and told?"""

from datetime import datetime
from typing import Any, NamedTuple

from training.contract.log import Id
from training.contract.session import Shown
from training.contract.settings import Settings


def nobody(settings: Settings) -> Id:
    """An id that no user has, to ask a store for."""
    return -1 if settings.ids.kept("user_id") == "int64" else ""


class StateRequest(NamedTuple):
    """Whose state, at which request; ``event_ts`` is timezone-aware."""

    user_id: Id
    session_id: str
    event_ts: datetime


class Feedback(NamedTuple):
    """What a user did with one request.

    ``events`` has one mapping per item that feedback is known of, with the signals' 0/1 columns and
    ``play_time_ms``; ``before`` those among them that already moved the state, as they did; ``shown`` what
    the request showed, if that is known, and ``shown_before`` as it was when they moved it, None where that
    is the same, or none did.
    """

    user_id: Id
    session_id: str
    request_id: str
    event_ts: datetime
    events: list[dict[str, Any]]
    before: list[dict[str, Any]] = []  # noqa: RUF012 -- never changed
    shown: Shown | None = None
    shown_before: Shown | None = None
