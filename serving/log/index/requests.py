"""Which user and session was a request served for? ``POST /feedback`` names only the request."""

import threading
from pathlib import Path

from serving.log.index.file import connect

TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, user_id INTEGER NOT NULL, session_id TEXT NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_seen ON requests (seen);
"""
ON_SERVED = "INSERT OR REPLACE INTO requests VALUES (NEW.request_id, NEW.user_id, NEW.session_id, NEW.now);"
FORGET = "DELETE FROM requests WHERE seen < ?"


class Requests:
    """For any thread."""

    def __init__(self, path: Path) -> None:
        self._connection, self._lock = connect(path), threading.Lock()

    def find(self, request_id: str) -> tuple[int, str] | None:
        """(user_id, session_id) of a served request, or None. Raises sqlite3.Error."""
        with self._lock:
            found: tuple[int, str] | None = self._connection.execute(
                "SELECT user_id, session_id FROM requests WHERE request_id = ?", (request_id,)
            ).fetchone()
        return found

    def close(self) -> None:
        self._connection.close()
