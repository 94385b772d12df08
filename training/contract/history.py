"""What was promoted, rolled back or shared out, when and why: one file of JSON lines, oldest first."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.contract.files import locked, write_text_atomic
from training.contract.layout import Layout

Event = dict[str, Any]


def read(layout: Layout) -> list[Event]:
    """Every event; each has at least ``action``, ``ts`` and ``reason``."""
    path = _path(layout)
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def append(layout: Layout, event: Mapping[str, Any]) -> None:
    """Add one event, with its ``ts``, atomically."""
    lines = [json.dumps(e, sort_keys=True) for e in [*read(layout), {"ts": now(), **event}]]
    write_text_atomic(_path(layout), "\n".join(lines) + "\n")


@contextmanager
def changing(layout: Layout) -> Iterator[None]:
    """Hold what is served against other processes: the service, the daily loop and people change it.

    Whoever reads a pointer or the shares in order to replace them does both inside. Not reentrant.
    """
    with locked(layout.serving / "changing.lock"):
        yield


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _path(layout: Layout) -> Path:
    return layout.serving / "history.jsonl"
