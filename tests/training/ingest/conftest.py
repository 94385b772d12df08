"""A service log and KuaiRand files that the tests write row by row."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.contract.settings.days import CalendarSettings
from training.ingest.kuairand import LOG_COLUMNS

DAY = date(2026, 1, 5)
MIDNIGHT = datetime(2026, 1, 4, 16, tzinfo=UTC)  # at which DAY starts, UTC+8

SHANGHAI = CalendarSettings(timezone="Asia/Shanghai")

Line = dict[str, Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", calendar=SHANGHAI)


def stamp(minutes: float) -> str:
    return (MIDNIGHT + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def decision(request: str, minutes: float = 0.0, items: Sequence[int] = (10, 11), **changes: Any) -> Line:
    return {
        "v": 1,
        "request_id": request,
        "session_id": "s1",
        "user_id": 7,
        "event_ts": stamp(minutes),
        "policy_version": "p1",
        "arm": "noise",
        "state": [0.1, 2.0],
        "action": [0.5, -0.25],
        "action_mean": [0.5, 0.0],
        "log_density": -1.5,
        "fallback": None,
        "state_spec": "s0",
        "items": list(items),
        "scores": {"click": [0.5] * len(items), "play_time": [12.5] * len(items)},
    } | changes


def feedback(request: str, minutes: float, *events: Line, **changes: Any) -> Line:
    return {
        "v": 1,
        "request_id": request,
        "user_id": 7,
        "event_ts": stamp(minutes),
        "events": list(events),
    } | changes


def event(item: int, play: int = 0, duration: int = 0, **signals: int) -> Line:
    return {"item_id": item, "play_time_ms": play, "duration_ms": duration} | signals


def write_log(settings: Settings, kind: str, day: date, lines: Iterable[Line], worker: str = "w1") -> Path:
    path = settings.layout.serving_log / kind / f"{day.isoformat()}.{worker}.000000.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(settings: Settings, table: str = IMPRESSIONS, day: date = DAY) -> list[dict[str, Any]]:
    return pq.ParquetFile(settings.layout.partition(table, day) / "part-0.parquet").read().to_pylist()


def partition_bytes(settings: Settings, table: str = IMPRESSIONS, day: date = DAY) -> bytes:
    return (settings.layout.partition(table, day) / "part-0.parquet").read_bytes()


def lake_bytes(settings: Settings) -> dict[str, bytes]:
    lake = settings.layout.root / "lake"
    return {str(p.relative_to(lake)): p.read_bytes() for p in sorted(lake.rglob("*.parquet"))}


def impressions(rows: Iterable[dict[str, Any]], settings: Settings) -> pa.Table:
    """An impressions table from rows that name only what matters to the test."""
    filled = [
        {
            "request_id": "r",
            "user_id": 7,
            "item_id": 1,
            "event_ts": MIDNIGHT,
            "position": 0,
            "play_time_ms": 0,
            "duration_ms": 0,
            **{signal.column: 0 for signal in settings.signals},
        }
        | row
        for row in rows
    ]
    return pa.Table.from_pylist(filled)


def kuairand_row(**values: int) -> dict[str, int]:
    """A row of the log: 25 April 2022, 18:00 local, on the main page."""
    return (
        dict.fromkeys(LOG_COLUMNS, 0)
        | {
            "user_id": 1,
            "video_id": 100,
            "date": 20220425,
            "hourmin": 1800,
            "time_ms": 1_650_880_800_000,
            "play_time_ms": 5_000,
            "duration_ms": 60_000,
            "tab": 1,
        }
        | values
    )
