"""Whom was a request served for, and what did it show? ``POST /feedback`` names only the request."""

import threading
from pathlib import Path
from typing import NamedTuple

import orjson

from serving.log.index.file import connect
from training.contract.session import Shown

TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, user_id INTEGER NOT NULL, session_id TEXT NOT NULL, items INTEGER NOT NULL,
    predictions TEXT NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_seen ON requests (seen);
"""
ON_SERVED = """
INSERT OR REPLACE INTO requests VALUES
    (NEW.request_id, NEW.user_id, NEW.session_id, NEW.items, NEW.predictions, NEW.now);
"""
FORGET = "DELETE FROM requests WHERE seen < ?"


class Served(NamedTuple):
    """Whose request it was, and what it showed."""

    user_id: int
    session_id: str
    shown: Shown


class Requests:
    """For any thread."""

    def __init__(self, path: Path) -> None:
        self._connection, self._lock = connect(path), threading.Lock()

    def find(self, request_id: str) -> Served | None:
        """A served request, or None. Raises sqlite3.Error."""
        with self._lock:
            found = self._connection.execute(
                "SELECT user_id, session_id, items, predictions FROM requests WHERE request_id = ?",
                (request_id,),
            ).fetchone()
        if found is None:
            return None
        user_id, session_id, items, predictions = found
        return Served(user_id, session_id, Shown(items, orjson.loads(predictions)))

    def close(self) -> None:
        self._connection.close()
