"""How have the columns of a day's sources changed since the day that each brought before?"""

from collections.abc import Mapping
from datetime import date
from typing import Any

from training.contract.settings import Settings
from training.ingest.landing import read_note

TEXT = "text"  # the type of a CSV's columns


def schema_changes(settings: Settings, table: str, day: date) -> list[dict[str, str]]:
    """How the columns of the day's sources differ from those of the day that each brought before.

    Each has ``column``, ``change`` (``new``, ``gone`` or ``retyped``), ``since`` (that day) and ``text``.
    """
    layout = settings.layout
    found = []
    for source, now in _columns(read_note(layout.partition(table, day))).items():
        for earlier in reversed([d for d in layout.days(table) if d < day]):
            before = _columns(read_note(layout.partition(table, earlier))).get(source)
            if before is not None:
                found += _column_changes(before, now, str(earlier))
                break
    return found


def _columns(note: Mapping[str, Any] | None) -> dict[str, Mapping[str, str]]:
    """Each source's columns, with their types there."""
    parts = {} if note is None else note.get("parts", {note.get("source"): note})
    return {name: part["columns"] for name, part in parts.items() if "columns" in part}


def _column_changes(before: Mapping[str, str], now: Mapping[str, str], since: str) -> list[dict[str, str]]:
    found = []
    for name in sorted({*before, *now}):
        if name not in before:
            change, text = "new", f"{name} ({now[name]}) is new"
        elif name not in now:
            change, text = "gone", f"{name} ({before[name]}) is gone"
        elif before[name] != now[name] and not _by_text(before[name], now[name]):
            change, text = "retyped", f"{name} was {before[name]} and is {now[name]}"
        else:
            continue
        found.append({"column": name, "change": change, "since": since, "text": text})
    return found


def _by_text(before: str, now: str) -> bool:
    """CSV has no types: a delivery of it among those of Parquet changes none."""
    return TEXT in before.split(" or ") or TEXT in now.split(" or ")
