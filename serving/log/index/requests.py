"""Whom was a request served for, and where is its line? ``POST /feedback`` names only the request.

A ``request_id`` is one user's: an id of the caller's own making is taken for its user before the request is
logged, and refused to any other (:meth:`serving.log.index.request_index.RequestIndex.claim`).
"""

import threading
from pathlib import Path
from typing import NamedTuple, Protocol

from serving.log.day_files import Place
from serving.log.index.file import connect
from training.contract.log import Id

TABLE = """
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, user_id NOT NULL, session_id TEXT, event_s REAL, file TEXT,
    start INTEGER, size INTEGER, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_seen ON requests (seen);
"""
ON_SERVED = """
INSERT OR REPLACE INTO requests VALUES
    (NEW.request_id, NEW.user_id, NEW.session_id, NEW.event_s, NEW.file, NEW.start, NEW.size, NEW.now);
"""
# ?1 is a JSON array of [request_id, user_id], ?2 the time; gives whose each of them is. What is only claimed
# has no session: it was not served.
CLAIM = """
INSERT INTO requests (request_id, user_id, seen)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), ?2 FROM json_each(?1) WHERE true
    ON CONFLICT DO UPDATE SET seen = seen RETURNING request_id, user_id
"""
FORGET = "DELETE FROM requests WHERE seen < ?"


class Served(NamedTuple):
    """Whose request it was, when it came, in seconds since 1970, and where its line is."""

    user_id: Id
    session_id: str
    event_s: float
    place: Place


class FindsRequests(Protocol):
    """For any thread."""

    def find(self, request_id: str) -> Served | None:
        """A served request, or None. Raises one of :data:`serving.log.index.file.FAILURES`."""

    def close(self) -> None: ...


class Requests:
    """In SQLite."""

    def __init__(self, path: Path) -> None:
        self._connection, self._lock = connect(path), threading.Lock()

    def find(self, request_id: str) -> Served | None:
        with self._lock:
            found = self._connection.execute(
                "SELECT user_id, session_id, event_s, file, start, size FROM requests "
                "WHERE request_id = ? AND session_id IS NOT NULL",
                (request_id,),
            ).fetchone()
        if found is None:
            return None
        user_id, session_id, event_s, *place = found
        return Served(user_id, session_id, event_s, Place(*place))

    def close(self) -> None:
        self._connection.close()
