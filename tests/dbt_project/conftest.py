"""A small lake written by hand, with traps, and one warehouse that the tests share."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.columns import Column, decision_columns, impression_columns, user_columns
from training.contract.settings import Settings

ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "int8": pa.int8(),
    "float": pa.float32(),
    "double": pa.float64(),
    "list<float>": pa.list_(pa.float32()),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
}
ZEROS = {"string": "", "float": 0.5}


def schema(columns: list[Column]) -> pa.Schema:
    return pa.schema([(column.name, ARROW[column.type]) for column in columns])


@dataclass
class Lake:
    """Rows by table and local day; :meth:`land` writes the partitions of some days.

    Times are given in local time, as a person reads the calendar.
    """

    settings: Settings
    rows: dict[tuple[str, date], list[dict[str, Any]]] = field(default_factory=dict)

    def instant(self, local: str) -> datetime:
        offset = timedelta(hours=self.settings.calendar.utc_offset_hours)
        return datetime.fromisoformat(local).replace(tzinfo=UTC) - offset

    def request(
        self,
        request_id: str,
        user: int,
        local: str,
        session: str | None = "S",
        items: Iterable[dict[str, Any]] = ({},),
        feedback_after_s: float | None = 20.0,
        decision: bool = True,
        **decided: Any,
    ) -> None:
        """One request with its shown items (their signal columns, play and duration)."""
        day = date.fromisoformat(local[:10])
        event_ts = self.instant(local)
        common = {"request_id": request_id, "session_id": session, "user_id": user, "event_ts": event_ts}
        feedback_ts = None if feedback_after_s is None else event_ts + timedelta(seconds=feedback_after_s)
        for position, item in enumerate(items):
            row = {
                column.name: 0.5 if column.name.startswith("p_") else 0
                for column in impression_columns(self.settings)
            }
            row |= {"item_id": position, "position": position, "feedback_ts": feedback_ts, **common, **item}
            self.rows.setdefault(("impressions", day), []).append(row)
        if decision:
            row = {
                "policy_version": "static",
                "arm": "static",
                "state": [float(user), float(len(self.rows))],
                "action": [0.0, 0.5],
                "action_mean": [0.0, 0.4],
                "log_density": -1.0,
                "fallback": None,
                "state_spec": self.settings.state_spec.version,
            }
            self.rows.setdefault(("decisions", day), []).append({**common, **row, **decided})

    def user(self, user: int, local: str, **profile: Any) -> None:
        day = date.fromisoformat(local[:10])
        row = {column.name: None for column in user_columns(self.settings)}
        self.rows.setdefault(("users", day), []).append(
            {**row, "user_id": user, "updated_ts": self.instant(local), **profile}
        )

    def land(self, *days: date) -> None:
        schemas = {
            "impressions": schema(impression_columns(self.settings)),
            "decisions": schema(decision_columns()),
            "users": schema(user_columns(self.settings)),
        }
        for (table, day), rows in self.rows.items():
            if day in days:
                folder = self.settings.layout.partition(table, day)
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(rows, schema=schemas[table]), folder / "part-0.parquet")

    @property
    def days(self) -> list[date]:
        return sorted({day for _, day in self.rows})


def export(settings: Settings, mart: str, day: date | str | None = None) -> list[dict[str, Any]]:
    """Exported rows of one day, or of every day in order."""
    paths = sorted(settings.layout.mart(mart).glob(f"dt={day or '*'}/part-0.parquet"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


def contents(settings: Settings) -> dict[str, str]:
    """Every export's rows by path, as text that can be compared."""
    root = settings.layout.marts
    return {
        str(path.relative_to(root)): json.dumps(pq.ParquetFile(path).read().to_pylist(), default=str)
        for path in sorted(root.glob("*/dt=*/part-0.parquet"))
    }


def project(path: Path) -> Path:
    return Path(__file__).parents[2] / "dbt_project" / path
