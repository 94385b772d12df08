"""The index of several replicas of the service: in Redis, with the same answers as the file of one machine.

What must happen as one is a script (:mod:`serving.log.index.scripts`). The guardrail's sums stay in SQLite:
the replica that holds the lease copies what changed in Redis into a file of its own, and looks at that. So
the lease may move: the next holder's file takes in what Redis still knows, :data:`RETENTION_S` of it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, Unpack

import orjson
import redis

from serving.log.day_files import NOWHERE, Place
from serving.log.index import scripts
from serving.log.index.events import KnownEvents, RequestEvents
from serving.log.index.file import IndexUnreachable
from serving.log.index.request_index import Options, RequestIndex, ServedRequest
from serving.log.index.requests import Served
from serving.log.index.sessions import Last, Session, SessionRequest, Sessions
from training.contract.in_service.row import FENCE, KEY
from training.contract.log import Id

PREFIX = "mtf_index:"
_AT_ONCE = 5_000  # changes that are copied in one transaction
_PULLED = "CREATE TABLE IF NOT EXISTS pulled (one INTEGER PRIMARY KEY, until INTEGER NOT NULL)"
_COUNTS = "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_RETURNS = """
INSERT INTO returns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 0, 0)
    ON CONFLICT DO UPDATE SET mixed = excluded.mixed, reward = excluded.reward,
    negative = excluded.negative, seen = excluded.seen, open = 1
    WHERE (mixed, reward, negative, seen) IS NOT
        (excluded.mixed, excluded.reward, excluded.negative, excluded.seen)
"""


class _Shared:
    """Redis, the prefix of the keys in it, for how long they are kept, and the clock."""

    def __init__(
        self, server: "redis.Redis", prefix: str, retention_s: float, clock: Callable[[], float]
    ) -> None:
        self.server, self.prefix, self.clock = server, prefix, clock
        self._kept = str(max(1, int(retention_s * 1000)))
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, arguments: Iterable[str | bytes], now: float | None = None) -> Any:
        """A script that begins with prefix, time that keys are kept for, and the time."""
        head = [self.prefix, self._kept, repr(self.clock() if now is None else now)]
        return self.script(script, [], [*head, *arguments])

    def script(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        if script not in self._scripts:
            self._scripts[script] = self.server.register_script(script)
        with answering():
            return self._scripts[script](keys=keys, args=arguments)

    @property
    def kept_ms(self) -> int:
        return int(self._kept)


@contextmanager
def answering() -> Iterator[None]:
    """Raises :class:`IndexUnreachable` for what Redis' client raises."""
    try:
        yield
    except redis.RedisError as error:
        raise IndexUnreachable(f"Redis, which holds the index of requests: {error}") from error


class _Requests:
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    def find(self, request_id: str) -> Served | None:
        with answering():
            found: Any = self._shared.server.get(f"{self._shared.prefix}request:{request_id}")
        entry = orjson.loads(found) if found else []
        if len(entry) < 2:  # claimed, and not served
            return None
        user_id, session_id, event_s, *place = entry
        return Served(user_id, session_id, event_s, Place(*place))

    def close(self) -> None: ...


class _Sessions(Sessions):
    """A session that begins is told to the others at once, before its first request is logged."""

    def __init__(self, shared: _Shared, gap_minutes: float) -> None:
        super().__init__(gap_minutes)
        self._shared = shared

    def of(self, requests: Sequence[SessionRequest]) -> list[Session]:
        with self._lock:
            found: dict[int, Session] = {}
            texts, todo = self._read({one.user_id for one in requests}), [*range(len(requests))]
            while todo:
                stored = {user: _last(text) for user, text in texts.items() if text}
                for at in todo:
                    asked = requests[at]
                    found[at] = self._of(asked.user_id, asked.session_id, asked.event_ts, stored)
                lost = self._begin([(requests[at], found[at]) for at in todo], texts, stored)
                for user in lost:
                    self._remembered.pop(user, None)
                texts |= lost
                todo = [at for at in todo if requests[at].user_id in lost]
        return [found[at] for at in range(len(requests))]

    def _read(self, users: Iterable[Id]) -> dict[Id, bytes]:
        asked = [*users]
        with answering():
            pipe = self._shared.server.pipeline(transaction=False)
            for user in asked:
                pipe.hget(f"{self._shared.prefix}user:{_text(user)}", "last")
            return {user: text or b"" for user, text in zip(asked, pipe.execute(), strict=True)}

    def _begin(
        self,
        found: Sequence[tuple[SessionRequest, Session]],
        texts: Mapping[Id, bytes],
        stored: Mapping[Id, Last],
    ) -> dict[Id, bytes]:
        """Those users of whom somebody else began one meanwhile, and that."""
        begun: dict[Id, tuple[float, Session]] = {}
        for (user, _, event_ts), session in found:
            known = stored.get(user)
            if known is None or session.session_id != known.session_id:
                begun[user] = (event_ts.timestamp(), session)
        arguments: list[str | bytes] = []
        for user, (event_s, session) in begun.items():
            known = stored.get(user)
            if known is None or event_s >= known.event_s:
                last = _encoded(session.session_id, event_s, session.arm, session.epoch)
                arguments.extend((_text(user), texts[user], last, repr(event_s)))
        if not arguments:
            return {}
        answer = self._shared.run(scripts.BEGIN, arguments)
        return {orjson.loads(user): text for user, text in zip(answer[::2], answer[1::2], strict=True)}

    def close(self) -> None: ...


class _Events:
    def __init__(
        self,
        shared: _Shared,
        reward: Callable[[Mapping[str, Any]], float],
        negative: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self._shared, self._reward, self._negative = shared, reward, negative

    def add(self, batch: Sequence[RequestEvents]) -> list[KnownEvents]:
        arguments: list[str | bytes] = []
        for fed in batch:
            arguments.extend((fed.request_id, fed.session_id, str(len(fed.events))))
            for item, event in fed.events.items():
                rewards = repr(float(self._reward(event))), str(int(self._negative(event)))
                arguments.extend((_text(item), *rewards, orjson.dumps(event)))
            shown = None if fed.shown is None else [*{*fed.shown}]
            arguments.append(str(-1 if shown is None else len(shown)))
            arguments.extend(map(_text, shown or ()))
        answers = self._shared.run(scripts.FEED, arguments)
        return [_known(fed, *answer) for fed, answer in zip(batch, answers, strict=True)]

    def not_moved(self, request_id: str, items: Iterable[Id], shown: Iterable[Id] | None = None) -> None:
        moved = b"" if shown is None else orjson.dumps([*shown])
        fed = f"{self._shared.prefix}fed:{request_id}"
        self._shared.script(scripts.NOT_MOVED, [], [fed, moved, *map(_text, items)])

    def close(self) -> None: ...


class SharedIndex(RequestIndex):
    """As :class:`RequestIndex`, for all replicas; ``path`` is of the guardrail's copy, this replica's own.

    Raises :class:`IndexUnreachable` while Redis does not answer.
    """

    local = False

    def __init__(
        self,
        server: "redis.Redis",
        path: Path,
        gap_minutes: float,
        prefix: str = PREFIX,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(path, gap_minutes, **options)
        for part in (self.requests, self.sessions, self.events):
            part.close()
        self._shared = _Shared(server, prefix, self._retention_s, self._clock)
        self.requests = _Requests(self._shared)
        self.sessions = _Sessions(self._shared, gap_minutes)
        self.events = _Events(self._shared, self._how["reward"], self._how["negative"])
        self._name = f"{path.stem} {os.getpid()} {threading.get_ident()} {id(self)}"

    def claim(self, asked: Sequence[tuple[str, Id]]) -> list[bool]:
        pipe = self._shared.server.pipeline(transaction=False)
        for request_id, user_id in asked:
            key = f"{self._shared.prefix}request:{request_id}"
            # whoever was first stays: so the two need not be one
            pipe.set(key, orjson.dumps([user_id]), nx=True, px=self._shared.kept_ms)
            pipe.get(key)
        with answering():
            owners = [orjson.loads(entry)[0] for entry in pipe.execute()[1::2]]
        return [owner == user_id for owner, (_, user_id) in zip(owners, asked, strict=True)]

    def add(self, served: Sequence[ServedRequest], places: Iterable[Place] = repeat(NOWHERE)) -> None:
        arguments: list[str | bytes] = []
        for one, place in zip(served, places, strict=False):
            entry = orjson.dumps([one.user_id, one.session_id, one.event_s, *place])
            last = _encoded(one.session_id, one.event_s, one.arm, one.epoch)
            arguments.extend((one.request_id, entry, _text(one.user_id), last, repr(one.event_s)))
            arguments.extend((one.session_id, one.arm, one.policy, str(int(one.aside))))
            arguments.extend(str(int(n)) for n in (one.failed, one.slow, one.bounded, one.entries))
        self._shared.run(scripts.ADD, arguments)

    def lead(self, seconds: float) -> bool:
        """Takes the lease, or prolongs it, and copies what changed since the last look.

        :attr:`fence` is its number then, higher with each that is taken.
        """
        if not self._lease(seconds):
            return False
        self._pull()
        return self._lease(seconds)  # a first copy may take longer than that

    def _lease(self, seconds: float) -> bool:
        keys = [f"{self._shared.prefix}guardrail", KEY]
        number = int(self._shared.script(scripts.LEAD, keys, [self._name, int(seconds * 1000), FENCE]))
        self.fence = number or None
        return bool(number)

    def _pull(self) -> None:
        writer, touched = self._writer, f"{self._shared.prefix}touched"
        writer.execute(_PULLED)
        row = writer.execute("SELECT until FROM pulled").fetchone()
        since = 0 if row is None else int(row[0])
        while True:
            with answering():
                # with those of the last instant again, for more may have come in it
                changed: Any = self._shared.server.zrangebyscore(
                    touched, since, "+inf", start=0, num=_AT_ONCE, withscores=True
                )
                pipe = self._shared.server.pipeline(transaction=False)
                for member, _ in changed:
                    name = "session" if member[:1] == b"s" else "counts"
                    pipe.hgetall(f"{self._shared.prefix}{name}:".encode() + member[1:])
                entries = pipe.execute() if changed else []
            if changed:
                since = int(changed[-1][1])
            with writer:
                writer.execute("BEGIN IMMEDIATE")
                for (member, _), entry in zip(changed, entries, strict=True):
                    if entry and member[:1] == b"s":
                        writer.execute(_RETURNS, _return_row(member[1:].decode(), entry))
                    elif entry:
                        writer.executemany(_COUNTS, _count_rows(int(member[1:]), entry))
                writer.execute("INSERT OR REPLACE INTO pulled VALUES (1, ?)", (since,))
            if len(changed) < _AT_ONCE:
                break
        now = self._clock()
        if now - self._purged > 60.0:
            self._purge(now)
            with answering():
                seconds, micros = self._shared.server.time()  # type: ignore[misc]
                until = seconds * 1_000_000 + micros - self._shared.kept_ms * 1000
                self._shared.server.zremrangebyscore(touched, "-inf", until)


def forget(server: "redis.Redis", user: Id, request_ids: Sequence[str], prefix: str = PREFIX) -> None:
    """Take a user out, with what is known of these requests of theirs."""
    with answering():
        entries: Any = [server.get(f"{prefix}request:{request_id}") for request_id in request_ids]
        sessions = {entry[1] for entry in map(orjson.loads, filter(None, entries)) if len(entry) > 1}
        gone = [f"{prefix}{kind}:{one}" for kind in ("request", "fed", "shown") for one in request_ids]
        server.delete(f"{prefix}user:{_text(user)}", *gone, *(f"{prefix}session:{one}" for one in sessions))
        if sessions:
            server.zrem(f"{prefix}touched", *(f"s{one}" for one in sessions))


def _text(one: Id) -> str:
    return orjson.dumps(one).decode()


def _encoded(session_id: str, event_s: float, arm: str | None, epoch: int | None) -> bytes:
    return orjson.dumps([session_id, event_s, arm, epoch])


def _last(text: bytes) -> Last:
    return Last(*orjson.loads(text))


def _known(fed: RequestEvents, fields: Sequence[bytes], told: Sequence[bytes]) -> KnownEvents:
    kept = dict(zip(fields[::2], fields[1::2], strict=True))
    stored = {orjson.loads(key[1:]): text.split(b" ", 3) for key, text in kept.items() if key[:1] == b"i"}
    order = sorted(stored, key=lambda item: (str(type(item)), item))
    before = {item: orjson.loads(stored[item][3]) for item in order if stored[item][0] == b"1"}
    was_told = frozenset(map(orjson.loads, told)) if b"told" in kept else None
    moved = kept.get(b"moved", b"")
    shown_before = was_told if moved == b"=" else frozenset(orjson.loads(moved)) if moved else None
    shown_now = was_told
    if fed.shown is not None:
        shown_now = frozenset(fed.shown) | (was_told or frozenset())
    return KnownEvents(
        list(before.values()), list({**before, **fed.events}.values()), shown_before, shown_now
    )


def _return_row(session_id: str, entry: Mapping[bytes, bytes]) -> tuple[Any, ...]:
    return (
        session_id,
        orjson.loads(entry[b"user"]),
        entry[b"arm"].decode(),
        entry[b"policy"].decode(),
        int(entry[b"mixed"]),
        float(entry[b"reward"]),
        int(entry[b"negative"]),
        float(entry[b"began"]),
        float(entry[b"seen"]),
    )


def _count_rows(slot: int, entry: Mapping[bytes, bytes]) -> list[tuple[Any, ...]]:
    by_arm: dict[tuple[str, str], dict[str, int]] = {}
    for field, count in entry.items():
        arm, policy, name = field.decode().split("|")
        by_arm.setdefault((arm, policy), {})[name] = int(count)
    names = ("requests", "failed", "slow", "bounded", "entries")
    return [(slot, *key, *(counts.get(name, 0) for name in names)) for key, counts in by_arm.items()]
