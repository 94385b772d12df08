"""How many rows a day has, beside the recent days: together, and of each source that brings some.

While the service takes over the traffic, rows move from the files to its log: what must hold still is the sum
of both. A source's own rows are held against its own recent days, and a change of them alone is shown and
stops nothing. The sum is held against recent days that share a source with it, and where none does, all.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.ingest.landing import read_note, rows_by_source
from training.validation.checks import Check, Severity, measure, severity_of


@dataclass
class Volumes:
    """Measures of a day's volume, checks on them, and what could not be judged, as (what, why)."""

    settings: Settings
    measures: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    not_judged: list[tuple[str, str]] = field(default_factory=list)


def judged(
    settings: Settings,
    table: str,
    day: date,
    place: tuple[Path, int],
    recent: Mapping[date, tuple[Path, int]],
) -> Volumes:
    """Of a table's partition and its rows, beside those of the recent days."""
    found, (folder, now) = Volumes(settings), place
    today = _sources(folder, now)
    days = {one: _sources(*those) for one, those in recent.items()}
    like = [
        rows
        for one, (_, rows) in recent.items()
        if not today or not days[one] or days[one].keys() & today.keys()
    ]
    severity = severity_of(settings, "volume")
    if table == DECISIONS and _rolls_out(settings, [day, *recent]):
        severity = "warning"  # the service decides on a share that grows
    like = like or [rows for _, rows in recent.values()]
    found.measures["recent_median_rows"] = statistics.median(like)
    _check(found, "rows_to_recent_median", f"{now} rows", now, like, severity)
    every = sorted({name for sources in (today, *days.values()) for name in sources})
    if "service" in today and "world" not in today:
        every = [name for name in every if name != "world"]  # its past leads up to the service's first day
    for source in every if len(every) > 1 else ():
        past = [sources[source] for sources in days.values() if source in sources]
        rows = today.get(source, 0)
        if past:
            told = f"{rows} rows of the {source}"
            _check(found, f"rows_of_{source}_to_recent_median", told, rows, past, "warning")
        else:
            found.not_judged.append((f"volume of the {source}", "no recent day came from it"))
    return found


def _check(found: Volumes, name: str, told: str, rows: int, past: list[int], severity: Severity) -> None:
    limits, median = found.settings.validation, statistics.median(past)
    ratio = rows / max(median, 1)
    found.measures[name] = ratio
    text = (
        f"{told} are between {limits.min_volume_ratio:g} and {limits.max_volume_ratio:g} times the median of "
        f"the last {len(past)} days, {median:g}"
    )
    found.checks.append(
        measure(name, text, limits.min_volume_ratio, limits.max_volume_ratio, severity, source="rows")
    )


def _sources(folder: Path, rows: int) -> dict[str, int]:
    """A partition's rows by what brought them; empty where that is not known."""
    note = read_note(folder)
    if note is None or "source" not in note:
        return {}
    return rows_by_source(note) if "parts" in note else {note["source"]: rows}


def _rolls_out(settings: Settings, days: list[date]) -> bool:
    """Whether impressions of these days come from several sources."""
    partitions = [settings.layout.partition(IMPRESSIONS, one) for one in days]
    return len({name for one in partitions if one.is_dir() for name in _sources(one, 0)}) > 1
