"""Which days are landed, transformed and held back, and so which a run replaces.

The day itself, and every day whose landed content is not what was last transformed, with all transformed
days after it, since users' histories build on it. Transitions and policy metrics are also replaced on the
days before these that they can still change (``REACH_DAYS``). What was transformed is written down
in ``warehouse/transformed.json`` after a run that passed all its tests; from its beginning until then its
days have no content there, so that the next run does them again. Days whose validation
failed are held back: they are in no table until they pass.
"""

from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from training.contract.files import read_json, sha256, write_json_atomic
from training.contract.layout import TABLES
from training.contract.records import read_records, recorded_days
from training.contract.session import REACH_DAYS
from training.contract.settings import Settings


def forget(settings: Settings, days: Collection[date], tables: Sequence[str]) -> None:
    """Take deleted partitions out of what was transformed: that they are gone is no change of a day.

    To be called before they are deleted. Killed in between, the next run transforms these days again.
    """
    done = transformed(settings)
    for day in days:
        left = {t: c for t, c in done["days"].pop(day.isoformat(), {}).items() if t not in tables}
        if left:
            done["days"][day.isoformat()] = left
    if days:
        write_json_atomic(transformed_path(settings), done)


def begin(settings: Settings, first: date, last: date) -> None:
    """Write down that transformed days are being made anew: a run that does not end leaves them half made.

    A day that was not transformed is to be made in any case; days that are only looked back to are looked
    back to again by the run that makes these.
    """
    done = transformed(settings)
    between = [day for day in done["days"] if first.isoformat() <= day <= last.isoformat()]
    if between:
        done["days"] |= {day: {} for day in between}
        write_json_atomic(transformed_path(settings), done)


def window_of(landed: dict[str, Any], before: dict[str, Any], day: date) -> tuple[date, date, date]:
    """First day to look back to, first and last day to replace, given landed and transformed content."""
    changed = untransformed_days(landed, before, day)
    first = min([day.isoformat(), *changed])
    last = max([day.isoformat(), *before]) if changed else day.isoformat()
    earlier = sorted(d for d in before if d < first)[-REACH_DAYS:]
    back = min([first, *earlier])
    return date.fromisoformat(back), date.fromisoformat(first), date.fromisoformat(last)


def untransformed_days(landed: dict[str, Any], before: dict[str, Any], day: date) -> list[str]:
    """Days that are not transformed as they are landed; new days count up to ``day``."""
    new = {d for d in landed if d <= day.isoformat() and landed[d] != before.get(d)}
    return sorted(new | {d for d in before if landed.get(d) != before[d]})


def held_days(settings: Settings) -> list[date]:
    """Landed days that the daily run did not find valid, or has not judged: nothing is made of them."""
    records = {d: read_records(settings.layout, d) for d in recorded_days(settings.layout)}
    return [
        d
        for d, found in records.items()
        if "land" in found and not found.get("validate_landed", {}).get("success", False)
    ]


def landed_content(settings: Settings) -> dict[str, dict[str, str]]:
    """Content of every landed partition that is not held back: day → table → digest."""
    found: dict[str, dict[str, str]] = {}
    held = held_days(settings)
    for table in TABLES:
        for day in settings.layout.days(table):
            if day in held:
                continue
            digest = _content(settings.layout.partition(table, day))
            if digest:
                found.setdefault(day.isoformat(), {})[table] = digest
    return found


def _content(partition: Path) -> str:
    marker = partition / "_landed.json"
    if marker.exists():
        return read_json(marker)["sha256"]
    return " ".join(sha256(path) for path in sorted(partition.glob("*.parquet")))


def transformed_path(settings: Settings) -> Path:
    return settings.layout.warehouse.parent / "transformed.json"


def transformed(settings: Settings) -> dict[str, Any]:
    """The last run's models' ``variables``, ``engine``, and ``days`` of :func:`landed_content`'s content."""
    path = transformed_path(settings)
    done = read_json(path) if path.exists() else {"variables": None, "days": {}}
    return {"engine": "duckdb", **done}
