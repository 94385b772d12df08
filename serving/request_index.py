"""Which user and session a request belonged to, shared by every worker and kept over restarts.

``POST /feedback`` names only the request; and a request without a session continues the user's last
one when that is not older than the session gap. One SQLite file answers both, written in the same
group commit as the decision log. It is an index and not a record: it is kept for two days, survives a
killed process but need not survive a power cut, and feedback may name its user and session itself.
"""

import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

RETENTION_S = 2 * 86_400.0
_PURGE_SHARE = 0.005  # of the retention, between two purges
_REMEMBERED_USERS = 100_000

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, user_id INTEGER NOT NULL, session_id TEXT NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_seen ON requests (seen);
CREATE TABLE IF NOT EXISTS sessions (
    user_id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, event_s REAL NOT NULL, arm TEXT NOT NULL,
    seen REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_seen ON sessions (seen);
"""


@dataclass(frozen=True)
class Entry:
    """One served request; ``event_s`` is its time in epoch seconds."""

    request_id: str
    user_id: int
    session_id: str
    event_s: float
    arm: str


class Session(NamedTuple):
    """The session of a request; ``arm`` is None for its first one."""

    session_id: str
    arm: str | None


class _Last(NamedTuple):
    session_id: str
    event_s: float
    arm: str | None


class RequestIndex:
    """``add`` belongs to the log's writer thread, every other method to the event loop's."""

    def __init__(self, path: Path, gap_minutes: float, retention_s: float = RETENTION_S) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = _connect(path)
        _prepare(self._writer)
        self._reader = _connect(path)
        self._gap_s = gap_minutes * 60.0
        self._retention_s = retention_s
        self._sessions: OrderedDict[int, _Last] = OrderedDict()
        self._purged = 0.0

    def add(self, entries: list[Entry]) -> None:
        """Record served requests, all or none. Raises sqlite3.Error."""
        now = time.time()
        with self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                [(entry.request_id, entry.user_id, entry.session_id, now) for entry in entries],
            )
            self._writer.executemany(
                "INSERT INTO sessions VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (user_id) DO UPDATE SET "
                "session_id = ?2, event_s = ?3, arm = ?4, seen = ?5 WHERE ?3 >= event_s",
                [(entry.user_id, entry.session_id, entry.event_s, entry.arm, now) for entry in entries],
            )
            if now - self._purged > self._retention_s * _PURGE_SHARE:
                self._writer.execute("DELETE FROM requests WHERE seen < ?", (now - self._retention_s,))
                self._writer.execute("DELETE FROM sessions WHERE seen < ?", (now - self._retention_s,))
                self._purged = now

    def find(self, request_id: str) -> tuple[int, str] | None:
        """(user_id, session_id) of a served request, or None. Raises sqlite3.Error."""
        return self._reader.execute(
            "SELECT user_id, session_id FROM requests WHERE request_id = ?", (request_id,)
        ).fetchone()

    def session(self, user_id: int, session_id: str | None, event_ts: datetime) -> Session:
        """The request's session: its own, else the user's last within the gap, else a new one.

        Raises sqlite3.Error.
        """
        event_s = event_ts.timestamp()
        last = self._sessions.get(user_id)
        if session_id is None or last is None or last.session_id != session_id:
            last = self._last(user_id)
        if session_id is None:
            if last is not None and abs(event_s - last.event_s) <= self._gap_s:
                session_id = last.session_id
            else:
                session_id = f"{user_id}-{int(event_s * 1000)}"
        arm = last.arm if last is not None and last.session_id == session_id else None
        # remembered at once: the user's next request may come before this one is on disk
        self._remember(user_id, _Last(session_id, event_s, arm))
        return Session(session_id, arm)

    def hold(self, user_id: int, session_id: str, arm: str) -> None:
        """The arm of a session, for its next requests."""
        last = self._sessions.get(user_id)
        if last is not None and last.session_id == session_id:
            self._sessions[user_id] = last._replace(arm=arm)

    def _remember(self, user_id: int, last: _Last) -> None:
        self._sessions[user_id] = last
        self._sessions.move_to_end(user_id)
        if len(self._sessions) > _REMEMBERED_USERS:
            self._sessions.popitem(last=False)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _last(self, user_id: int) -> _Last | None:
        """The user's latest session: another worker may know a later one than this process."""
        stored = self._reader.execute(
            "SELECT session_id, event_s, arm FROM sessions WHERE user_id = ?", (user_id,)
        ).fetchone()
        known = [
            last
            for last in (None if stored is None else _Last(*stored), self._sessions.get(user_id))
            if last is not None
        ]
        return max(known, key=lambda last: last.event_s, default=None)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables; those of another version are dropped, for an index may be lost."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA_VERSION:
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                connection.execute(f'DROP TABLE "{table}"')
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
