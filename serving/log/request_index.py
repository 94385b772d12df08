"""What the workers know together of requests, sessions and arms, kept over restarts.

``POST /feedback`` names only the request; and a request without a session continues the user's last
one when that is not older than the session gap. One SQLite file answers both, written in the same
group commit as the decision log. It is an index and not a record: it is kept for ``LATE_DAYS``, survives a
killed process but need not survive a power cut, and feedback may name its user and session itself.
"""

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from training.contract.log import LATE_DAYS

RETENTION_S = LATE_DAYS * 86_400.0
_PURGE_SHARE = 0.005  # of the retention, between two purges
_REMEMBERED_USERS = 100_000

_SCHEMA_VERSION = 3
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
CREATE TABLE IF NOT EXISTS counts (
    slot INTEGER NOT NULL, arm TEXT NOT NULL, policy TEXT NOT NULL, requests INTEGER NOT NULL,
    failed INTEGER NOT NULL, slow INTEGER NOT NULL, bounded INTEGER NOT NULL, entries INTEGER NOT NULL,
    PRIMARY KEY (slot, arm, policy)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS returns (
    session_id TEXT PRIMARY KEY, arm TEXT NOT NULL, policy TEXT NOT NULL, reward REAL NOT NULL,
    began REAL NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS returns_seen ON returns (seen);
CREATE TABLE IF NOT EXISTS fed (
    request_id TEXT NOT NULL, item_id INTEGER NOT NULL, event BLOB NOT NULL, moved INTEGER NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (request_id, item_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fed_seen ON fed (seen);
"""

# One statement for a whole batch, in a transaction of its own: the interpreter's lock, which SQLite gives up
# and takes again at every call, is otherwise what a commit waits for. ``served`` holds nothing.
_SERVED = """
CREATE TEMP VIEW served AS SELECT NULL AS request_id, NULL AS user_id, NULL AS session_id, NULL AS event_s,
    NULL AS arm, NULL AS policy, NULL AS failed, NULL AS slow, NULL AS bounded, NULL AS entries, NULL AS now;
CREATE TEMP TRIGGER serve INSTEAD OF INSERT ON served BEGIN
    INSERT OR REPLACE INTO requests VALUES (NEW.request_id, NEW.user_id, NEW.session_id, NEW.now);
    INSERT INTO sessions VALUES (NEW.user_id, NEW.session_id, NEW.event_s, NEW.arm, NEW.now)
        ON CONFLICT (user_id) DO UPDATE SET session_id = excluded.session_id, event_s = excluded.event_s,
        arm = excluded.arm, seen = NEW.now
        -- a row of the future was written before the clock was set back
        WHERE excluded.event_s >= event_s OR seen > NEW.now;
    -- a session that saw two policies or arms speaks of neither
    INSERT INTO returns VALUES (NEW.session_id, NEW.arm, NEW.policy, 0, NEW.now, NEW.now)
        ON CONFLICT DO UPDATE SET policy = CASE WHEN arm = excluded.arm AND policy = excluded.policy
        THEN policy ELSE 'mixed' END, seen = NEW.now;
    INSERT INTO counts VALUES (CAST(NEW.now AS INTEGER), NEW.arm, NEW.policy, 1, NEW.failed, NEW.slow,
        NEW.bounded, NEW.entries)
        ON CONFLICT DO UPDATE SET requests = requests + 1, failed = failed + NEW.failed,
        slow = slow + NEW.slow, bounded = bounded + NEW.bounded, entries = entries + NEW.entries;
END;
"""


class Entry(NamedTuple):
    """One served request; ``event_s`` is its time in epoch seconds.

    ``policy`` is the SHA-256 of the policy that its arm would serve, "" for none and for the static arm;
    ``failed`` whether that policy gave no usable action in time, ``bounded`` how many of the action's
    ``entries`` were at a bound.
    """

    request_id: str
    user_id: int
    session_id: str
    event_s: float
    arm: str
    policy: str = ""
    failed: bool = False
    slow: bool = False
    bounded: int = 0
    entries: int = 0


# ?1 is a JSON array of entries, ?2 the time
_FIELDS = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(Entry._fields)))
_ADD = f"INSERT INTO served SELECT {_FIELDS}, ?2 FROM json_each(?1)"  # noqa: S608 -- numbers of our own


class Fed(NamedTuple):
    """Feedback for the items of one request: ``events`` by item, and the reward of an event."""

    request_id: str
    session_id: str
    events: Mapping[int, Mapping[str, int]]


class Known(NamedTuple):
    """All feedback for one request, the last event of each item: ``before`` what already moved the
    state, ``now`` with the latest feedback."""

    before: list[dict[str, int]]
    now: list[dict[str, int]]


@dataclass(frozen=True)
class ArmCounts:
    """What was counted of an arm and policy; see :class:`Entry`."""

    requests: int = 0
    failed: int = 0
    slow: int = 0
    bounded: int = 0
    entries: int = 0


@dataclass(frozen=True)
class ArmReturns:
    """Number, sum and sum of squares of the rewards of an arm's sessions."""

    sessions: int = 0
    total: float = 0.0
    squares: float = 0.0


class Session(NamedTuple):
    """The session of a request; ``arm`` is None for its first one."""

    session_id: str
    arm: str | None


class _Last(NamedTuple):
    session_id: str
    event_s: float
    arm: str | None


class RequestIndex:
    """``add`` belongs to the decision log's thread, ``feed`` to the feedback log's, ``counted`` and
    ``returns`` to the guardrail's, every other method to any.

    ``reward`` gives the reward of one item's event; ``clock`` the epoch seconds that things are kept by.
    """

    def __init__(
        self,
        path: Path,
        gap_minutes: float,
        retention_s: float = RETENTION_S,
        reward: Callable[[Mapping[str, int]], float] = lambda event: 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = _connect(path)
        _prepare(self._writer)
        self._writer.executescript(_SERVED)
        self._reader = _connect(path)
        self._feeder = _connect(path)
        self._counter = _connect(path)
        self._feeding = threading.Lock()  # of the connection, between feed and not_moved
        self._reading = threading.Lock()  # of the other one, and of the sessions remembered here
        self._reward, self._clock = reward, clock
        self._gap_s = gap_minutes * 60.0
        self._retention_s = retention_s
        self._sessions: OrderedDict[int, _Last] = OrderedDict()
        self._purged = 0.0

    def add(self, entries: list[Entry]) -> None:
        """Record served requests, all or none. Raises sqlite3.Error."""
        now = self._clock()
        self._writer.execute(_ADD, (orjson.dumps([*map(tuple, entries)]).decode(), now))
        if now - self._purged > self._retention_s * _PURGE_SHARE:
            self._purge(now)

    def _purge(self, now: float) -> None:
        with self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            for table in ("requests", "sessions", "returns", "fed"):
                self._writer.execute(
                    f"DELETE FROM {table} WHERE seen < ?",  # noqa: S608 -- names of our own
                    (now - self._retention_s,),
                )
            self._writer.execute("DELETE FROM counts WHERE slot < ?", (now - self._retention_s,))
        self._purged = now

    def feed(self, batch: Sequence[Fed]) -> list[Known]:
        """Record feedback, all or none; an item's later event replaces its earlier one.

        The session's reward moves by the difference. Raises sqlite3.Error.
        """
        now = self._clock()
        known = []
        with self._feeding, self._feeder as feeder:
            feeder.execute("BEGIN IMMEDIATE")
            for fed in batch:
                rows = feeder.execute(
                    "SELECT item_id, event, moved FROM fed WHERE request_id = ?", (fed.request_id,)
                ).fetchall()
                stored = {item: (orjson.loads(event), moved) for item, event, moved in rows}
                gained = sum(
                    self._reward(event) - (self._reward(stored[item][0]) if item in stored else 0.0)
                    for item, event in fed.events.items()
                )
                feeder.executemany(
                    "INSERT OR REPLACE INTO fed VALUES (?, ?, ?, 1, ?)",
                    [(fed.request_id, item, orjson.dumps(e), now) for item, e in fed.events.items()],
                )
                feeder.execute(
                    "UPDATE returns SET reward = reward + ?, seen = ? WHERE session_id = ?",
                    (gained, now, fed.session_id),
                )
                before = {item: event for item, (event, moved) in stored.items() if moved}
                known.append(Known(list(before.values()), list({**before, **fed.events}.values())))
        return known

    def not_moved(self, request_id: str, items: Iterable[int]) -> None:
        """The store did not take this feedback: sent again, it still has to move the state."""
        with self._feeding, self._feeder as feeder:
            feeder.executemany(
                "UPDATE fed SET moved = 0 WHERE request_id = ? AND item_id = ?",
                [(request_id, item) for item in items],
            )

    def counted(self, since: float, until: float) -> dict[tuple[str, str], ArmCounts]:
        """Requests from one epoch second to another, both with it, by (arm, policy). Raises sqlite3.Error."""
        rows = self._counter.execute(
            "SELECT arm, policy, sum(requests), sum(failed), sum(slow), sum(bounded), sum(entries) "
            "FROM counts WHERE slot BETWEEN ? AND ? GROUP BY arm, policy",
            (int(since), int(until)),
        )
        return {(arm, policy): ArmCounts(*numbers) for arm, policy, *numbers in rows}

    def returns(self, began: float, idle_since: float) -> dict[tuple[str, str], ArmReturns]:
        """Rewards of the sessions that began at ``began`` or later and saw nothing since ``idle_since``.

        By (arm, policy), in epoch seconds. Raises sqlite3.Error.
        """
        rows = self._counter.execute(
            "SELECT arm, policy, count(*), sum(reward), sum(reward * reward) FROM returns "
            "WHERE seen >= ?1 AND seen <= ?2 AND began >= ?1 GROUP BY arm, policy",
            (began, idle_since),
        )
        return {(arm, policy): ArmReturns(*numbers) for arm, policy, *numbers in rows}

    def find(self, request_id: str) -> tuple[int, str] | None:
        """(user_id, session_id) of a served request, or None. Raises sqlite3.Error."""
        with self._reading:
            return self._reader.execute(
                "SELECT user_id, session_id FROM requests WHERE request_id = ?", (request_id,)
            ).fetchone()

    def sessions(self, requests: Sequence[tuple[int, str | None, datetime]]) -> list[Session]:
        """The sessions of requests, in their order: each its own, else the user's last within the gap, else
        a new one.

        ``requests`` are (user_id, session_id, event_ts). Raises sqlite3.Error.
        """
        with self._reading:
            asked = {
                user_id
                for user_id, session_id, _ in requests
                if session_id is None
                or (last := self._sessions.get(user_id)) is None
                or last.session_id != session_id
            }
            stored = self._stored(asked)
            return [self._session(*request, stored) for request in requests]

    def _session(
        self, user_id: int, session_id: str | None, event_ts: datetime, stored: Mapping[int, _Last]
    ) -> Session:
        event_s = event_ts.timestamp()
        last = self._sessions.get(user_id)
        if session_id is None or last is None or last.session_id != session_id:
            # the nearest in time: another worker may know a later one than this process, and a clock that
            # was set back leaves sessions of the future behind
            known = [one for one in (stored.get(user_id), last) if one is not None]
            last = min(known, key=lambda one: abs(event_s - one.event_s), default=None)
        if session_id is None:
            if last is not None and abs(event_s - last.event_s) <= self._gap_s:
                session_id = last.session_id
            else:
                session_id = f"{user_id}-{int(event_s * 1000)}"
        arm = last.arm if last is not None and last.session_id == session_id else None
        # remembered at once: the user's next request may come before this one is on disk
        self._remember(user_id, _Last(session_id, event_s, arm))
        return Session(session_id, arm)

    def _stored(self, users: Collection[int]) -> dict[int, _Last]:
        if not users:
            return {}
        marks = ",".join("?" * len(users))
        rows = self._reader.execute(
            f"SELECT user_id, session_id, event_s, arm FROM sessions WHERE user_id IN ({marks})",  # noqa: S608 -- question marks
            tuple(users),
        )
        return {user_id: _Last(*rest) for user_id, *rest in rows}

    def hold(self, user_id: int, session_id: str, arm: str) -> None:
        """The arm of a session, for its next requests."""
        with self._reading:
            last = self._sessions.get(user_id)
            if last is not None and last.session_id == session_id and last.arm != arm:
                self._sessions[user_id] = last._replace(arm=arm)

    def _remember(self, user_id: int, last: _Last) -> None:
        self._sessions[user_id] = last
        self._sessions.move_to_end(user_id)
        if len(self._sessions) > _REMEMBERED_USERS:
            self._sessions.popitem(last=False)

    def close(self) -> None:
        for connection in (self._reader, self._writer, self._feeder, self._counter):
            connection.close()


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
