"""Which feedback is known of a request, and has it moved the state?"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from serving.log.index.file import connect
from serving.log.index.returns import add_reward

TABLE = """
CREATE TABLE IF NOT EXISTS fed (
    request_id TEXT NOT NULL, item_id INTEGER NOT NULL, event BLOB NOT NULL, moved INTEGER NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (request_id, item_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fed_seen ON fed (seen);
"""
FORGET = "DELETE FROM fed WHERE seen < ?"


class RequestEvents(NamedTuple):
    """Feedback for the items of one request: ``events`` by item."""

    request_id: str
    session_id: str
    events: Mapping[int, Mapping[str, int]]


class KnownEvents(NamedTuple):
    """All feedback for one request, the last event of each item: ``before`` what already moved the
    state, ``now`` with the latest feedback."""

    before: list[dict[str, int]]
    now: list[dict[str, int]]


class Events:
    """:meth:`add` belongs to the feedback log's thread, :meth:`not_moved` to any."""

    def __init__(
        self,
        path: Path,
        reward: Callable[[Mapping[str, int]], float],
        negative: Callable[[Mapping[str, int]], bool],
        clock: Callable[[], float],
    ) -> None:
        self._connection, self._lock = connect(path), threading.Lock()
        self._reward, self._negative, self._clock = reward, negative, clock

    def add(self, batch: Sequence[RequestEvents]) -> list[KnownEvents]:
        """Record feedback, all or none; an item's later event replaces its earlier one.

        The session's reward moves by the difference. Raises sqlite3.Error.
        """
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
                known.append(KnownEvents(list(before.values()), list({**before, **fed.events}.values())))
        return known

    def not_moved(self, request_id: str, items: Iterable[int]) -> None:
        """The store did not take this feedback: sent again, it still has to move the state."""
        with self._lock, self._connection as connection:
            connection.executemany(
                "UPDATE fed SET moved = 0 WHERE request_id = ? AND item_id = ?",
                [(request_id, item) for item in items],
            )

    def close(self) -> None:
        self._connection.close()
