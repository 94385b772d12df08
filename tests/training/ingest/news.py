"""A small company's delivery, as its own tools write it: what the tests of files vary."""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from training.contract.settings import HeadSettings, LogsSettings, Settings, SignalSettings, StateSettings
from training.contract.settings.days import CalendarSettings
from training.contract.settings.state import ProfileFeature

DAY = date(2026, 11, 24)
Row = dict[str, Any]


def news_settings(data: Path, timezone: str = "UTC", **changes: Any) -> Settings:
    """Three heads, two signals and two profile columns."""
    return Settings(
        data=data,
        calendar=CalendarSettings(timezone=timezone),
        heads=(
            HeadSettings(name="click", static=1.0, high=2.0),
            HeadSettings(name="share", static=0.5),
            HeadSettings(name="read_time", static=0.3, beta=1.0, maximum=3600.0),
        ),
        signals=(
            SignalSettings(name="click", column="is_click", weight=0.1),
            SignalSettings(name="share", column="is_share", weight=0.5, positive_interaction=True),
        ),
        state=StateSettings(
            profile=(
                ProfileFeature(column="country", kind="categorical", categories=("DE", "AT", "CH")),
                ProfileFeature(column="age_days", kind="numeric"),
            )
        ),
        **changes,
    )


def rows(settings: Settings, requests: int = 5, day: date = DAY) -> list[Row]:
    """Requests over the whole day, four items each, as the contract has them."""
    start = settings.day_start(day)
    seconds = int((settings.day_start(day + timedelta(days=1)) - start).total_seconds())
    return [
        {
            "request_id": f"r{day:%d}-{n}",
            "user_id": 1 + n % 3,
            "item_id": 1000 + 7 * n + position,
            "event_ts": start + timedelta(seconds=seconds * n // requests, milliseconds=37 * n % 997 + 1),
            "position": position,
            "p_click": 0.25 + position / 8,
            "p_share": 0.0625,
            "p_read_time": 20.5 + n,
            "is_click": (n + position) % 2,
            "is_share": int(position == 3),
            "play_time_ms": 1500 * position,
            "duration_ms": 60_000,
        }
        for n in range(requests)
        for position in range(4)
    ]


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def changed(some: Sequence[Row], **changes: Callable[[Any], Any]) -> list[Row]:
    return [row | {name: change(row[name]) for name, change in changes.items()} for row in some]


def csv_text(some: Sequence[Row], separator: str = ",", names: Sequence[str] | None = None) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    names = list(names or some[0])
    writer.writerow(names)
    for row in some:
        cells = [row[name] for name in names]
        writer.writerow([iso(cell) if isinstance(cell, datetime) else cell for cell in cells])
    return text.getvalue()


def place(folder: Path, name: str = "a.csv", table: str = "impressions", day: date = DAY) -> Path:
    path = folder / table / f"dt={day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def files_settings(data: Path, folder: Path, **changes: Any) -> Settings:
    return news_settings(data, logs=LogsSettings(source="files", folder=folder), **changes)
