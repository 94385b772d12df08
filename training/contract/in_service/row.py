"""What is in service, as one row of Redis that every replica follows: a hash, and a list of its history.

A change is a script that takes all of the row or nothing: it is refused when the row is no longer of the
version that was read, or when its lease of the guardrail is not the newest. The row begins as the files of
whoever changes it first; from then on these are not read, and a file of the data folder remembers that.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from training.contract.databases import redis_client
from training.contract.errors import InServiceError
from training.contract.files import write_json_atomic
from training.contract.in_service import policies
from training.contract.in_service.files import Files
from training.contract.in_service.value import PARTS, InService
from training.contract.pointer import PolicyPointer, chain
from training.contract.records import now
from training.contract.settings import Settings

KEY = "mtf_in_service"
FENCE = "fence"  # the row's field that counts the guardrail's leases
HISTORY = f"{KEY}:history"

# nothing where the row is still of the version that is known
_READ = """
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version == ARGV[1] then return {version} end
local row = {version, redis.call('LRANGE', KEYS[2], 0, -1)}
for at = 2, #ARGV do row[#row + 1] = redis.call('HGET', KEYS[1], ARGV[at]) or '' end
return row
"""
_WRITE = """
if ARGV[2] ~= '' and ARGV[2] ~= redis.call('HGET', KEYS[1], 'fence') then return 'fenced' end
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if ARGV[1] ~= version then return 'changed' end
local parts = tonumber(ARGV[3])
for at = 4, 2 * parts + 3, 2 do
  if ARGV[at + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[at])
  else redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
end
if version == '0' then redis.call('DEL', KEYS[2]) end
for at = 2 * parts + 4, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[at]) end
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 'written'
"""
_REFUSED = {
    "fenced": "the guardrail's lease is another replica's by now, so what this one decided is refused",
    "changed": "what is in service was changed meanwhile, so this change is refused: look, and try it again",
}


class Row:
    def __init__(self, settings: Settings, server: "redis.Redis") -> None:
        self._settings, self._server = settings, server
        self._read, self._write = (server.register_script(text) for text in (_READ, _WRITE))
        self._lock = threading.Lock()
        self._known: tuple[int, dict[str, str], list[str]] = (0, {}, [])
        self._marker = settings.layout.in_redis
        self._marked = False

    def read(self) -> InService:
        """What Redis says now; all of it is sent only where it has changed since the last time."""
        with self._lock:
            with _answering():
                asked: Any = self._read([KEY, HISTORY], [str(self._known[0]), *PARTS])
            version = int(asked[0])
            if version and len(asked) > 1:
                texts = dict(zip(PARTS, (text.decode() for text in asked[2:]), strict=True))
                self._known = version, texts, [line.decode() for line in asked[1]]
            if version == 0:
                self._known = (0, {}, [])
                return self._first()
            self._mark()
            version, texts, lines = self._known
        return self._value(version, texts, lines)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody waits: a change that came between is told from the version."""
        yield

    def write(self, row: InService, fence: int | None) -> None:
        """Policy files go to the object store first: no replica is to see a name without its file.

        Those that the row names already are there, so a way back does not wait for the store.
        """
        named = {pointer.sha256 for pointer in _named(row.before)}
        served = (row.champion, row.challenger)
        for pointer in _named(row):
            if (row.version == 0 or pointer.sha256 not in named) and (
                pointer in served or (self._settings.data / pointer.policy).exists()
            ):
                policies.keep(self._settings, pointer)
        first = row.version == 0
        texts = {part: row.text(part) or "" for part in (PARTS if first else row.changes)}
        lines = row.lines if first else row.added
        parts = [text for both in texts.items() for text in both]
        token = "" if fence is None else str(fence)
        with _answering(", and may have made this change: look before it is tried again"):
            said: Any = self._write(
                [KEY, HISTORY], [str(row.version), token, str(len(texts)), *parts, *lines]
            )
        if said != b"written":
            raise InServiceError(_REFUSED[said.decode()])

    def _first(self) -> InService:
        """The files', all read now. Raises :class:`InServiceError` where there was a row before."""
        if self._marker.exists():
            raise InServiceError(
                f"Redis has lost what is in service ({KEY}): bring its data back, or remove {self._marker} "
                "to begin anew with the files beside it (`mtf backup` puts the row there)"
            )
        files = Files(self._settings).read()
        texts = {part: files.text(part) or "" for part in PARTS}
        return self._value(0, texts, files.lines)

    def _value(self, version: int, texts: dict[str, str], lines: Sequence[str]) -> InService:
        return InService(
            self._settings,
            lambda part: texts[part] or None,
            lambda: lines,
            lambda part: f"Redis, {KEY} {part}",
            version,
        )

    def _mark(self) -> None:
        if not self._marked and not self._marker.exists():
            write_json_atomic(self._marker, {"since": now()})
        self._marked = True


def _named(row: InService) -> Iterator[PolicyPointer]:
    """Every policy that serves, tries to, or can be gone back to."""
    yield from chain(row.champion)
    yield from chain(row.challenger)


_rows: dict[tuple[str, str], Row] = {}
_rows_lock = threading.Lock()


def row_of(settings: Settings) -> Row:
    """One of a process for each server and data folder, so that it knows what it has read."""
    key = settings.store.redis_url, str(settings.data)
    with _rows_lock:
        row = _rows.get(key)
        if row is None or row._settings is not settings:
            row = _rows[key] = Row(settings, redis_client(settings.store))
        return row


@contextmanager
def _answering(doubt: str = "") -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise InServiceError(
            f"Redis, which holds what is in service, does not answer{doubt}: {error}"
        ) from error
