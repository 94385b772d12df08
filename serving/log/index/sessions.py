"""Which session is a request of, and which arm and epoch does that keep?

A request without a session continues the user's last one, and one that names a session that one, where
they are within the idle gap of it (:func:`training.contract.session.within_gap`). After the gap a session
begins, with an arm and an epoch of its own: a named one takes the name, ``~`` and its first microsecond,
as dbt names a session that it cuts, and further requests of that name are part of it.
"""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from serving.log.index.file import connect
from training.contract.log import Id
from training.contract.session import within_gap

TABLE = """
CREATE TABLE IF NOT EXISTS sessions (
    user_id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, event_s REAL NOT NULL, arm TEXT NOT NULL,
    epoch INTEGER NOT NULL, seen REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_seen ON sessions (seen);
"""
ON_SERVED = """
INSERT INTO sessions VALUES (NEW.user_id, NEW.session_id, NEW.event_s, NEW.arm, NEW.epoch, NEW.now)
    ON CONFLICT (user_id) DO UPDATE SET session_id = excluded.session_id, event_s = excluded.event_s,
    arm = excluded.arm, epoch = excluded.epoch, seen = NEW.now
    -- a row of the future was written before the clock was set back
    WHERE excluded.event_s >= event_s OR seen > NEW.now;
"""
FORGET = "DELETE FROM sessions WHERE seen < ?"

_REMEMBERED_USERS = 100_000
_EPOCH = datetime.fromtimestamp(0, UTC)


class SessionRequest(NamedTuple):
    """Whose session, which one if the request names it, and when."""

    user_id: Id
    session_id: str | None
    event_ts: datetime


class Session(NamedTuple):
    """The session of a request, its arm, and the epoch of the assignment in which it began.

    ``arm`` and ``epoch`` are None for its first request.
    """

    session_id: str
    arm: str | None
    epoch: int | None


class Last(NamedTuple):
    """A user's last session: ``event_s`` is the time of its latest request, in seconds since 1970."""

    session_id: str
    event_s: float
    arm: str | None
    epoch: int | None

    @property
    def event_ts(self) -> datetime:
        return datetime.fromtimestamp(self.event_s, UTC)

    def is_of(self, name: str | None) -> bool:
        """Whether it is the session of that name, or was cut from it."""
        if name is None:
            return False
        whole, _, cut = self.session_id.rpartition("~")
        return self.session_id == name or (whole == name and cut.isdigit())


class Sessions(ABC):
    """For any thread. What this process has seen is remembered beside the stored, which comes later."""

    def __init__(self, gap_minutes: float) -> None:
        self._lock = threading.Lock()  # of what is remembered, and of what reads the stored
        self._gap = timedelta(minutes=gap_minutes)
        self._remembered: OrderedDict[Id, Last] = OrderedDict()

    @abstractmethod
    def of(self, requests: Sequence[SessionRequest]) -> list[Session]:
        """The sessions of requests, in their order: each the one that it names, else the user's last, while
        that is within the gap, else a new one. Raises one of FAILURES.
        """

    def hold(self, user_id: Id, session_id: str, arm: str, epoch: int) -> None:
        """The arm and the epoch of a session, for its next requests."""
        with self._lock:
            last = self._remembered.get(user_id)
            if last is not None and last.session_id == session_id and (last.arm, last.epoch) != (arm, epoch):
                self._remembered[user_id] = last._replace(arm=arm, epoch=epoch)

    def close(self) -> None:  # noqa: B027 -- there may be nothing to close
        ...

    def _of(self, user_id: Id, name: str | None, event_ts: datetime, stored: Mapping[Id, Last]) -> Session:
        event_s = event_ts.timestamp()
        last, known = self._remembered.get(user_id), stored.get(user_id)
        if last is None or known is None:
            last = last or known
        elif last.is_of(name) == known.is_of(name):
            # the nearest in time: another worker may know a later one than this process, and a clock that
            # was set back leaves sessions of the future behind
            last = min(known, last, key=lambda one: (abs(event_s - one.event_s), one.arm is None))
        elif known.is_of(name):
            last = known
        if last is not None and (name is None or last.is_of(name)):
            if within_gap(last.event_ts, event_ts, self._gap):
                name = last.session_id
            elif name is not None:
                name = f"{name}~{(event_ts - _EPOCH) // timedelta(microseconds=1)}"
        session_id = f"{user_id}-{int(event_s * 1000)}" if name is None else name
        arm = epoch = None
        if last is not None and last.session_id == session_id:
            arm, epoch = last.arm, last.epoch
        # remembered at once: the user's next request may come before this one is on disk
        self._remember(user_id, Last(session_id, event_s, arm, epoch))
        return Session(session_id, arm, epoch)

    def _remember(self, user_id: Id, last: Last) -> None:
        self._remembered[user_id] = last
        self._remembered.move_to_end(user_id)
        if len(self._remembered) > _REMEMBERED_USERS:
            self._remembered.popitem(last=False)


class FileSessions(Sessions):
    """In SQLite."""

    def __init__(self, path: Path, gap_minutes: float) -> None:
        super().__init__(gap_minutes)
        self._connection = connect(path)

    def of(self, requests: Sequence[SessionRequest]) -> list[Session]:
        with self._lock:
            stored = self._stored({one.user_id for one in requests if not self._sure(*one)})
            return [self._of(*request, stored) for request in requests]

    def _sure(self, user_id: Id, name: str | None, event_ts: datetime) -> bool:
        """Whether the session that it names runs, by what this process remembers: no other knows better."""
        last = self._remembered.get(user_id) if name is not None else None
        if last is None or not last.is_of(name):
            return False
        return abs(event_ts.timestamp() - last.event_s) < self._gap.total_seconds() - 1.0  # within whole ones

    def _stored(self, users: Collection[Id]) -> dict[Id, Last]:
        if not users:
            return {}
        marks = ",".join("?" * len(users))
        rows = self._connection.execute(
            f"SELECT user_id, session_id, event_s, arm, epoch FROM sessions WHERE user_id IN ({marks})",  # noqa: S608 -- question marks
            tuple(users),
        )
        return {user_id: Last(*rest) for user_id, *rest in rows}

    def close(self) -> None:
        self._connection.close()
