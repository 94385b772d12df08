"""Which feedback is known of a request, and has it moved the state?"""

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from serving.log.index.file import connect
from serving.log.index.returns import add_reward
from training.contract.log import Id

TABLE = """
CREATE TABLE IF NOT EXISTS fed (
    request_id TEXT NOT NULL, item_id NOT NULL, event BLOB NOT NULL, moved INTEGER NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (request_id, item_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fed_seen ON fed (seen);
-- JSON arrays of the items that feedback says were shown, and of those among them that moved the state
CREATE TABLE IF NOT EXISTS shown (
    request_id TEXT PRIMARY KEY, items TEXT NOT NULL, moved TEXT, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS shown_seen ON shown (seen);
"""
FORGET = "DELETE FROM fed WHERE seen < ?1; DELETE FROM shown WHERE seen < ?1"


class RequestEvents(NamedTuple):
    """Feedback for the items of one request: ``events`` by item, and the items that it says were ``shown``,
    None where it says nothing of that."""

    request_id: str
    session_id: str
    events: Mapping[Id, Mapping[str, Any]]
    shown: Collection[Id] | None = None


class KnownEvents(NamedTuple):
    """All feedback for one request, the last event of each item: ``before`` what already moved the
    state, ``now`` with the latest feedback. Likewise what was said to be shown, None before it was."""

    before: list[dict[str, Any]]
    now: list[dict[str, Any]]
    shown_before: frozenset[Id] | None = None
    shown_now: frozenset[Id] | None = None


class TakesEvents(Protocol):
    """:meth:`add` belongs to the feedback log's thread, :meth:`not_moved` to any. Both raise
    one of :data:`serving.log.index.file.FAILURES`."""

    def add(self, batch: Sequence[RequestEvents]) -> list[KnownEvents]:
        """Record feedback, all or none; an item's later event replaces its earlier one.

        The session's reward moves by the difference.
        """

    def not_moved(self, request_id: str, items: Iterable[Id], shown: Collection[Id] | None = None) -> None:
        """The store did not take this feedback: sent again, it still has to move the state.

        ``shown`` is what the state knows to have been shown, as before this feedback.
        """

    def close(self) -> None: ...


class Events:
    """In SQLite."""

    def __init__(
        self,
        path: Path,
        reward: Callable[[Mapping[str, Any]], float],
        negative: Callable[[Mapping[str, Any]], bool],
        clock: Callable[[], float],
    ) -> None:
        self._connection, self._lock = connect(path), threading.Lock()
        self._reward, self._negative, self._clock = reward, negative, clock

    def add(self, batch: Sequence[RequestEvents]) -> list[KnownEvents]:
        now = self._clock()
        known = []
        with self._lock, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            for fed in batch:
                rows = connection.execute(
                    "SELECT item_id, event, moved FROM fed WHERE request_id = ?", (fed.request_id,)
                ).fetchall()
                stored = {item: (orjson.loads(event), moved) for item, event, moved in rows}
                replaced = [stored[item][0] for item in fed.events if item in stored]
                gained = sum(map(self._reward, fed.events.values())) - sum(map(self._reward, replaced))
                negative = sum(map(self._negative, fed.events.values())) - sum(map(self._negative, replaced))
                connection.executemany(
                    "INSERT OR REPLACE INTO fed VALUES (?, ?, ?, 1, ?)",
                    [(fed.request_id, item, orjson.dumps(e), now) for item, e in fed.events.items()],
                )
                add_reward(connection, fed.session_id, gained, negative, now)
                before = {item: event for item, (event, moved) in stored.items() if moved}
                shown = _add_shown(connection, fed, now)
                known.append(
                    KnownEvents(list(before.values()), list({**before, **fed.events}.values()), *shown)
                )
        return known

    def not_moved(self, request_id: str, items: Iterable[Id], shown: Collection[Id] | None = None) -> None:
        with self._lock, self._connection as connection:
            connection.execute(
                "UPDATE shown SET moved = ? WHERE request_id = ?",
                (None if shown is None else _listed(shown), request_id),
            )
            connection.executemany(
                "UPDATE fed SET moved = 0 WHERE request_id = ? AND item_id = ?",
                [(request_id, item) for item in items],
            )

    def close(self) -> None:
        self._connection.close()


def _add_shown(
    connection: sqlite3.Connection, fed: RequestEvents, now: float
) -> tuple[frozenset[Id] | None, frozenset[Id] | None]:
    """What was said to be shown, before and with this feedback; within the caller's transaction."""
    row = connection.execute(
        "SELECT items, moved FROM shown WHERE request_id = ?", (fed.request_id,)
    ).fetchone()
    items, moved = (None, None) if row is None else row
    told = None if items is None else frozenset(orjson.loads(items))
    before = None if moved is None else frozenset(orjson.loads(moved))
    if fed.shown is not None:
        told = frozenset(fed.shown) | (told or frozenset())
    if told is not None:
        listed = _listed(told)
        connection.execute(
            "INSERT OR REPLACE INTO shown VALUES (?, ?, ?, ?)", (fed.request_id, listed, listed, now)
        )
    return before, told


def _listed(items: Collection[Id]) -> str:
    return orjson.dumps(sorted(items, key=str)).decode()
