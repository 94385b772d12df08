"""A small lake written by hand, with traps, and one warehouse that the tests share."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.columns import Column, decision_columns, impression_columns, user_columns
from training.contract.settings import Settings, StateSettings
from training.warehouse import transform

ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "int8": pa.int8(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "float": pa.float32(),
    "double": pa.float64(),
    "list<float>": pa.list_(pa.float32()),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
}
DAYS = [date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)]


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
        return datetime.fromisoformat(local).replace(tzinfo=self.settings.calendar.zone).astimezone(UTC)

    def request(
        self,
        request_id: str,
        user: int | str,
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
            item_id = position if self.settings.ids.items == "int64" else f"i{position}"
            row |= {"item_id": item_id, "position": position, "feedback_ts": feedback_ts, **common, **item}
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

    def user(self, user: int | str, local: str, changed: str | None = None, **profile: Any) -> None:
        """A profile landed on the day of ``local``, which says of itself to be of ``changed``."""
        day = date.fromisoformat(local[:10])
        row = {column.name: None for column in user_columns(self.settings)}
        self.rows.setdefault(("users", day), []).append(
            {**row, "user_id": user, "updated_ts": self.instant(changed or local), **profile, "dt": day}
        )

    def land(self, *days: date, without: frozenset[str | int] = frozenset()) -> None:
        """Write all partitions of some days, leaving out the requests and profiles that are to come late."""
        schemas = {
            "impressions": schema(impression_columns(self.settings)),
            "decisions": schema(decision_columns(self.settings.ids)),
            "users": schema(user_columns(self.settings)),
        }
        for (table, day), rows in self.rows.items():
            if day in days:
                folder = self.settings.layout.partition(table, day)
                folder.mkdir(parents=True, exist_ok=True)
                kept = [row for row in rows if row.get("request_id", row["user_id"]) not in without]
                pq.write_table(pa.Table.from_pylist(kept, schema=schemas[table]), folder / "part-0.parquet")

    def all(self, table: str) -> list[dict[str, Any]]:
        return [row for (name, _), rows in self.rows.items() if name == table for row in rows]


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


def random_lake(settings: Settings, seed: int = 7, days: list[date] = DAYS) -> Lake:
    """Visits of 24 users at any minute of some days, many of them across midnight.

    A third of the users have no session id, a third a new one a visit, a third one for ever. Feedback
    is sometimes missing or minutes late; some requests were served without a state, or with one of
    another specification; some durations are unknown.
    """
    random = Random(seed)
    lake = Lake(settings)
    for user in range(24):
        name = user if settings.ids.users == "int64" else f"{user:03d}"
        for day in days:
            for visit in range(random.randint(0, 3)):
                at = datetime.combine(day, time(random.choice([0, 9, 20, 23]), random.randint(0, 59)))
                session = (None, f"v{user}-{day:%d}-{visit}", f"u{user}")[user % 3]
                for _ in range(random.randint(1, 5)):
                    if at.date() > days[-1]:
                        break
                    stateless = {"state": None, "fallback": "store"} if random.random() < 0.05 else {}
                    changed = {"state_spec": "s0"} if random.random() < 0.05 else {}
                    state = {"state": [random.random() for _ in range(3)]}
                    lake.request(
                        f"r{random.getrandbits(32):08x}",
                        name,
                        at.isoformat(),
                        session,
                        items=[_item(random, settings) for _ in range(random.randint(1, 6))],
                        feedback_after_s=random.choice([None, 400.0, *[random.uniform(5, 60)] * 6]),
                        arm=("champion", "static")[user % 2],
                        **{**state, **stateless, **changed},
                    )
                    at += timedelta(minutes=random.choice([1, 4, 12, 25, 45]), seconds=random.random())
        for day in days if user % 4 == 1 else [days[user % 3]] if user % 2 else []:
            lake.user(
                name,
                f"{day}T01:00:00",
                changed=random.choice([None, None, "2025-12-24T10:00:00", "2026-03-01T10:00:00"]),
                user_active_degree=random.choice(["full_active", "low_active"]),
                fans_user_num=random.choice([None, 2.0]),
            )
    return lake


def _item(random: Random, settings: Settings) -> dict[str, Any]:
    signals = {signal.column: int(random.random() < 0.3) for signal in settings.signals}
    return {
        **signals,
        **{f"p_{head.name}": random.choice([None, random.random()]) for head in settings.heads},
        "play_time_ms": random.choice([0, random.randint(1, 300_000)]),
        "duration_ms": random.choice([0, 15_000, 60_000]),
    }


@dataclass(frozen=True)
class Warehouse:
    """One lake transformed twice: the days out of order, with rows of the first coming late, and at once."""

    lake: Lake
    daily: Settings
    at_once: Settings
    records: dict[str, Any]


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    root = tmp_path_factory.mktemp("transform")
    state = StateSettings(history_length=9)
    daily = Settings(data=root / "daily", state=state)
    at_once = Settings(data=root / "at_once", state=state)
    lake = random_lake(daily)
    late = frozenset(sorted(r["request_id"] for r in lake.rows["decisions", DAYS[0]])[::5])
    late |= frozenset(r["user_id"] for r in lake.rows["users", DAYS[0]][::2])
    records = {}
    for day in (DAYS[0], DAYS[2], DAYS[1]):
        lake.land(day, without=late if day == DAYS[0] else frozenset())
        if day == DAYS[1]:
            lake.land(DAYS[0])
        records[str(day)] = transform.run(daily, day)
    other = Lake(at_once, lake.rows)
    other.land(*DAYS)
    records["at once"] = transform.run(at_once, DAYS[-1])
    return Warehouse(lake, daily, at_once, records)
