"""Taking a user out of the service's log and its index, while no service runs.

A line of theirs becomes a blank one of the same length, so that the index's places of all others hold; who
reads a log passes over blank lines.
"""

import fcntl
import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from serving.log.index.request_index import forget as forget_in_index
from serving.log.index.request_index import requests_of
from training.contract import shipped
from training.contract.databases import redis_client
from training.contract.errors import MtfError
from training.contract.files import sha256, write_atomic
from training.contract.log import Id
from training.contract.object_store import object_store
from training.contract.settings import Settings


def forget(settings: Settings, user: Id) -> int:
    """Take a user out of every replica's files of the log, what of them was shipped, and the index; how many
    lines they had.

    Their decisions go last: these tell which requests are theirs, where nothing else does. Killed, run it
    again. Raises :class:`MtfError`, and changes nothing, while a service writes; :class:`ObjectStoreError`.
    """
    layout = settings.layout
    files = sorted(layout.serving_log.glob("*/*.jsonl"), key=lambda path: path.parent.name == "decisions")
    for path in files:
        _refuse_written(path)
    requests = {request for path in files for request in _requests_of(path, user)}
    index = layout.serving / "requests.sqlite"
    requests |= set(requests_of(index, user))
    shipped_lines = 0 if settings.serving.ship.to is None else _forget_shipped(settings, user, requests)
    if settings.serving.index == "redis":
        from serving.log.index import shared

        shared.forget(redis_client(settings.store), user, sorted(requests))
    for path in (index, *layout.serving.glob("guardrail.*.sqlite")):
        forget_in_index(path, user, sorted(requests))
    return shipped_lines + sum(_blank(path, user, requests) for path in files)


def _forget_shipped(settings: Settings, user: Id, requests: Collection[str]) -> int:
    """Put every object that tells of the user there anew without them, and remove what no manifest names."""
    store, count = object_store(settings.serving.ship), 0
    for replica in shipped.replicas(store):
        for day in shipped.days_of(store, replica):
            manifest = shipped.read_manifest(store, replica, day)
            if manifest is None:
                continue
            fresh = []
            for part in manifest.parts:
                with tempfile.TemporaryDirectory(prefix="mtf-forgetting-") as scratch:
                    path = Path(scratch, part.file)
                    store.get(manifest.key(part), path)
                    if lines := _blank(path, user, requests):
                        count += lines
                        fresh.append(replace(part, sha256=sha256(path)))
                        store.put(manifest.key(fresh[-1]), path)
            if fresh:
                manifest = manifest.with_parts(fresh, final=manifest.final)
                shipped.write_manifest(store, manifest)
            named = {manifest.key(part) for part in manifest.parts}
            for name in store.names(f"{replica}/{day}"):
                if name.endswith(".jsonl") and (key := f"{replica}/{day}/{name}") not in named:
                    store.remove(key)
    return count


def _refuse_written(path: Path) -> None:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MtfError(
                f"a service writes {path}: stop it first, it would write this user again"
            ) from error


def _requests_of(path: Path, user: Id) -> Iterator[str]:
    text = orjson.dumps(user)
    with path.open("rb") as file:
        for raw in file:
            line = _parsed(raw) if text in raw else {}
            if line.get("user_id") == user and isinstance(line.get("request_id"), str):
                yield line["request_id"]


def _blank(path: Path, user: Id, requests: Collection[str]) -> int:
    named = re.compile(rb'"user_id":\s*' + re.escape(orjson.dumps(user)) + rb"(?![0-9])")

    def is_theirs(raw: bytes) -> bool:
        """An unfinished line is told by its text."""
        line = _parsed(raw)
        return line.get("user_id") == user or line.get("request_id") in requests or bool(named.search(raw))

    with path.open("rb") as file:
        theirs = {number for number, raw in enumerate(file) if is_theirs(raw)}
    if theirs:
        write_atomic(path, lambda temporary: _copy(path, temporary, theirs))
    return len(theirs)


def _copy(path: Path, to: Path, blank: Collection[int]) -> None:
    with path.open("rb") as file, to.open("wb") as target:
        for number, raw in enumerate(file):
            ending = b"\n" if raw.endswith(b"\n") else b""
            target.write(b" " * (len(raw) - len(ending)) + ending if number in blank else raw)


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        line = orjson.loads(raw)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}
