"""How does a served request reach the index, and how does it leave again?

One SQLite file, written in the same group commit as the decision log, says what the workers know together
of requests, sessions and arms. It is an index and not a record: it is kept for ``LATE_DAYS``, survives a
killed process but need not survive a power cut, and feedback may name its user and session itself.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import orjson

from serving.log.day_files import NOWHERE, Place
from serving.log.index import counts, events, requests, returns, sessions, tallies
from serving.log.index.file import connect, prepare
from training.contract.log import LATE_DAYS, Id

RETENTION_S = LATE_DAYS * 86_400.0
_PURGE_SHARE = 0.005  # of the retention, between two purges
_PARTS = (requests, sessions, counts, returns, tallies, events)
_SERVED_PARTS = (requests, sessions, returns, counts)


class ServedRequest(NamedTuple):
    """One served request; ``event_s`` is its time in seconds since 1970, ``epoch`` that of its session.

    ``policy`` is the SHA-256 of the policy that its arm would serve, "" for none and for the static arm;
    ``failed`` whether that policy gave no usable action in time, ``bounded`` how many of the action's
    ``entries`` were at a bound. ``aside``: the user is in the arm by exception, and not as it was drawn.
    """

    request_id: str
    user_id: Id
    session_id: str
    event_s: float
    arm: str
    policy: str = ""
    failed: bool = False
    slow: bool = False
    bounded: int = 0
    entries: int = 0
    aside: bool = False
    epoch: int = 0


_COLUMNS = (*ServedRequest._fields, *Place._fields)

# One statement for a whole batch, in a transaction of its own: the interpreter's lock, which SQLite gives up
# and takes again at every call, is otherwise what a commit waits for. ``served`` holds nothing: what is
# inserted into it goes to every part's table.
_SERVED = f"""
CREATE TEMP VIEW served AS SELECT {", ".join(f"NULL AS {name}" for name in (*_COLUMNS, "now"))};
CREATE TEMP TRIGGER serve INSTEAD OF INSERT ON served BEGIN
{"".join(part.ON_SERVED for part in _SERVED_PARTS)}
END;
"""
# ?1 is a JSON array of requests, ?2 the time
_FIELDS = ", ".join(f"json_extract(value, '$[{at}]')" for at in range(len(_COLUMNS)))
_ADD = f"INSERT INTO served SELECT {_FIELDS}, ?2 FROM json_each(?1)"  # noqa: S608 -- numbers of our own


_OF_USERS = ("requests", "sessions", "returns", "tallies", "past")
# of a user, and of a JSON array of their requests
_FORGET = (
    "DELETE FROM fed WHERE request_id IN (SELECT value FROM json_each(:requests))",
    "DELETE FROM shown WHERE request_id IN (SELECT value FROM json_each(:requests))",
    *(f"DELETE FROM {t} WHERE user_id = :user" for t in _OF_USERS),  # noqa: S608 -- names of our own
)


def requests_of(path: Path, user: Id) -> list[str]:
    """The requests of a user that the index at ``path`` knows."""
    if not path.exists():
        return []
    connection = connect(path)
    try:
        rows = connection.execute("SELECT request_id FROM requests WHERE user_id = ?", (user,)).fetchall()
    finally:
        connection.close()
    return [request_id for (request_id,) in rows]


def forget(path: Path, user: Id, request_ids: Sequence[str]) -> None:
    """Take a user out of the index at ``path``, all or nothing, and every byte of them out of its file.

    A canary's evidence is then of the other users. To be called while no service runs.
    """
    if not path.exists():
        return
    values = {"user": user, "requests": orjson.dumps(request_ids).decode()}
    connection = connect(path)
    try:
        connection.execute("PRAGMA secure_delete = ON")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _FORGET:
                connection.execute(statement, values)
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


class Options(TypedDict, total=False):
    """``retention_s``: how long things are kept. ``reward`` gives the reward of one item's event,
    ``negative`` whether it has feedback of negative weight; ``clock`` the epoch seconds that things are kept
    by. ``text_users``: users' ids are text."""

    retention_s: float
    reward: Callable[[Mapping[str, Any]], float]
    negative: Callable[[Mapping[str, Any]], bool]
    clock: Callable[[], float]
    text_users: bool


_DEFAULTS = Options(
    retention_s=RETENTION_S,
    reward=lambda event: 0.0,
    negative=lambda event: False,
    clock=time.time,
    text_users=False,
)


class RequestIndex:
    """``add`` belongs to the decision log's thread; whose the parts are, they say themselves. ``local``: it
    waits for no network.
    """

    local = True
    fence: int | None = None  # number of the lease of :meth:`lead`; a machine's own needs none

    def __init__(self, path: Path, gap_minutes: float, **options: Unpack[Options]) -> None:
        self._how = how = _DEFAULTS | options
        self._clock, self._retention_s = how["clock"], how["retention_s"]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = connect(path)
        prepare(self._writer, [part.TABLE for part in _PARTS], how["text_users"])
        self._writer.executescript(_SERVED)
        self.requests: requests.FindsRequests = requests.Requests(path)
        self.sessions: sessions.Sessions = sessions.FileSessions(path, gap_minutes)
        self.counts = counts.Counts(path)
        self.returns = returns.Returns(path)
        self.tallies = tallies.Tallies(path)
        self.events: events.TakesEvents = events.Events(path, how["reward"], how["negative"], how["clock"])
        self._purged = 0.0

    def claim(self, asked: Sequence[tuple[str, Id]]) -> list[bool]:
        """Take request ids for their users, before they are logged; False for one that is another user's.

        Raises one of :data:`FAILURES`.
        """
        rows = self._writer.execute(requests.CLAIM, (orjson.dumps(asked).decode(), self._clock()))
        owners = dict(rows.fetchall())
        return [owners[request_id] == user_id for request_id, user_id in asked]

    def add(self, served: Sequence[ServedRequest], places: Iterable[Place] = repeat(NOWHERE)) -> None:
        """Record served requests, and where their lines are, all or none. Raises one of :data:`FAILURES`."""
        now = self._clock()
        rows = [(*one, *place) for one, place in zip(served, places, strict=False)]
        self._writer.execute(_ADD, (orjson.dumps(rows).decode(), now))
        if now - self._purged > self._retention_s * _PURGE_SHARE:
            self._purge(now)

    def lead(self, seconds: float) -> bool:
        """Whether this machine's guardrail is the one to look, for so many seconds to come."""
        return True

    def close(self) -> None:
        parts = (self.requests, self.sessions, self.counts, self.returns, self.tallies, self.events)
        for part in (*parts, self._writer):
            part.close()

    def _purge(self, now: float) -> None:
        with self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            for part in _PARTS:
                for statement in part.FORGET.split(";"):
                    self._writer.execute(statement, (now - self._retention_s,))
        self._purged = now
