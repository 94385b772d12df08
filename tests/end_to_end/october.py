"""A week over the October night in Berlin, with ids that are text: half of it served, half from files.

The *facts* are what users asked and did, kept here while they happen. In :class:`Week` they arrive as such
do: users of one half ask the running service over HTTP, which logs; the others' rows come in files, CSV and
Parquet, some of them a day late; feedback comes after midnight; files also tell of what was served; and on
one night nothing runs. In :func:`backfill` they arrive as nobody's do: each day's whole, a file a table.
"""

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dags import earlier_days, stages
from serving.release.client import Client, Ranking
from tests.end_to_end import small_days
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import DECISION, files_of
from training.contract.records import write_record
from training.contract.settings import Settings
from training.ingest.schema import conform, table_spec

ZONE = "Europe/Berlin"
FIRST = date(2026, 10, 22)
DAYS = [FIRST + timedelta(days=n) for n in range(7)]
OCTOBER_NIGHT = date(2026, 10, 25)  # clocks go back from 3 to 2
MISSED = OCTOBER_NIGHT  # on whose night nothing ran
HEADS = ("click", "like", "watch")
PAGE, SHOWN = 4, 3  # items that are answered, and that are seen of them
ONE_DAY = timedelta(days=1)
LAST_STAGE = "parity"
Row = dict[str, Any]


def write_settings(folder: Path, **more: dict[str, Any]) -> Settings:
    """``mtf.yaml`` in a folder, its data below ``data``."""
    chosen = {
        "data": str(folder / "data"),
        "calendar": {"timezone": ZONE},
        "ids": {"users": "string", "items": "string"},
        "heads": [
            {"name": "click", "static": 1.0, "high": 2.0},
            {"name": "like", "static": 0.3},
            {"name": "watch", "static": 0.3, "beta": 1.0, "maximum": 600.0},
        ],
        "signals": [
            {"name": "click", "column": "is_click", "weight": 0.1},
            {"name": "like", "column": "is_like", "weight": 0.5, "positive_interaction": True},
        ],
        "state": {
            "profile": [
                {"column": "country", "kind": "categorical", "categories": ["DE", "AT", "CH"]},
                {"column": "age_days", "kind": "saturating", "half": 100},
            ]
        },
        "serving": {
            "accept_event_ts": True,
            "state_budget_ms": 5000,
            "policy_budget_ms": 5000,
            "queue_budget_ms": 60000,
            "shares": {"static": 0.2, "random": 0.4, "noise": 0.4},
            "max_exploration": 0.8,
            "guardrail": {"slow_ms": 5000},
        },
        "validation": {
            "min_transitions": 20,
            "min_drift_rows": 100_000,  # so few rows differ from day to day
            "min_volume_ratio": 0.01,
            "max_volume_ratio": 100.0,
        },
        "gate": {"evidence": "offline", "parity_sample": 50},
    }
    return small_days.written(folder, chosen, more)


# --- the facts


@dataclass(frozen=True)
class Request:
    """A user's question, and what they did: an event of each item, 0 where it was not seen."""

    request_id: str
    user_id: str
    event_ts: datetime
    items: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    events: dict[str, dict[str, int]]

    @property
    def number(self) -> int:
        return int(self.request_id.rpartition("-")[2])


Facts = dict[str, dict[date, list[Row]]]  # rows under the contract's names, by table and local day


def users() -> list[str]:
    """Ids with zeros in front, which are another user's without them, and such as UUIDs are."""
    uuid = "0b6f6a52-9f9e-4a8e-9d0a-{:012x}"
    return [f"{n:05d}" if n % 3 else str(n) if n % 2 else uuid.format(n) for n in range(96)]


def is_served(user: str) -> bool:
    """On whose side a user is: a user is on one."""
    return users().index(user) % 4 < 2


def profiles(day: date) -> list[Row]:
    """All users on the first day, and on others those whose profile changed."""
    start = datetime(day.year, day.month, day.day, 6, tzinfo=UTC)
    return [
        {
            "user_id": user,
            "updated_ts": start + timedelta(seconds=n),
            "country": ("DE", "AT", "CH")[(n + day.day) % 3],
            "age_days": 10 * n + day.day,
        }
        for n, user in enumerate(users())
        if day == FIRST or (n + day.day) % 8 == 0
    ]


def requests(settings: Settings, day: date) -> list[Request]:
    """A day's requests by time: of every user some minutes apart, some of them over midnight, and on the
    October night at the same wall clock twice."""
    drawn, found = random.Random(day.toordinal()), []
    start, end = (settings.day_start(one) for one in (day, day + ONE_DAY))
    for n, user in enumerate(users()):
        begins = start + (end - start) * drawn.random()
        times = [begins + timedelta(seconds=200 * place + drawn.random()) for place in range(3)]
        if n % 6 == 0:
            times += [end - timedelta(minutes=9), start + timedelta(minutes=7)]
        if n % 4 in (1, 2) and day == OCTOBER_NIGHT:  # 02:30 in summer, and 02:30 in winter
            times += [datetime(2026, 10, 25, hour, 30, n % 60, tzinfo=UTC) for hour in (0, 1)]
        found += [(time, user) for time in times if start <= time < end]
    return [_request(day, n, time, user, drawn) for n, (time, user) in enumerate(sorted(found))]


def _request(day: date, number: int, time: datetime, user: str, drawn: random.Random) -> Request:
    items = tuple(f"{n:04d}" if n % 2 else f"v{n}" for n in drawn.sample(range(400), 6))
    scores = {head: tuple(round(drawn.random(), 4) for _ in items) for head in HEADS}
    events = {}
    for item in items:
        played = drawn.randrange(20_000)
        events[item] = {
            "is_click": int(drawn.random() < 0.5),
            "is_like": int(drawn.random() < 0.1),
            "play_time_ms": played,
            "duration_ms": 20_000,
        }
    return Request(f"r{day:%d}-{number:03d}", user, time, items, scores, events)


def shown(request: Request, items: Sequence[str], **more: Any) -> list[Row]:
    """The rows of a request of which these items were seen, in this order."""
    return [
        {
            "request_id": request.request_id,
            "user_id": request.user_id,
            "item_id": item,
            "event_ts": request.event_ts,
            "position": place,
            **{f"p_{head}": request.scores[head][request.items.index(item)] for head in HEADS},
            **request.events[item],
            **more,
        }
        for place, item in enumerate(items[:SHOWN])
    ]


# --- as they come


class Week:
    """Lives through the week on a data folder whose service runs: traffic, deliveries and nights.

    ``facts`` are then complete. A night is what the DAGs do, in their order, in this process, up to
    :data:`LAST_STAGE`: what is learnt of the tables makes none.
    """

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings, self.client = settings, client
        self.facts: Facts = {table: {day: [] for day in DAYS} for table in (IMPRESSIONS, DECISIONS, USERS)}
        self.late_rows = self.late_feedback = 0
        self._rows: list[Row] = []  # of today that tomorrow's delivery holds
        self._unfed: list[tuple[Request, Ranking]] = []  # of today whose feedback comes tomorrow

    def live(self) -> None:
        for day in DAYS:
            self._traffic(day)
            if day != MISSED:
                self._night(day)
        for day in DAYS:
            self.facts[DECISIONS][day] = list(_logged(self.settings, day))

    def _traffic(self, day: date) -> None:
        delivered, unfed = self._rows, self._unfed
        self._rows, self._unfed = [], []
        self.late_rows += len(delivered)
        self.late_feedback += len(unfed)
        morning = self.settings.day_start(day) + timedelta(seconds=1)
        for n, (request, ranking) in enumerate(unfed):
            self._feed(request, ranking, morning + timedelta(milliseconds=n))
        last = day == DAYS[-1]
        for request in requests(self.settings, day):
            if not is_served(request.user_id):
                rows = shown(request, request.items)
                self.facts[IMPRESSIONS][day] += rows
                late = not last and request.number % 10 == 3
                (self._rows if late else delivered).extend(rows)
                continue
            ranking = self.client.rank(
                request.user_id,
                request.items,
                request.scores,
                k=PAGE,
                request_id=request.request_id,
                event_ts=request.event_ts.isoformat(),
            )
            match request.number % 5:
                case 0:  # the service is not told what was done, but the files are
                    rows = shown(request, ranking.items)
                    self.facts[IMPRESSIONS][day] += rows
                    delivered += rows
                case 1 if not last:
                    self._unfed.append((request, ranking))
                case 2:  # the files tell of it, too, and have not seen the likes
                    delivered += [row | {"is_like": 0} for row in shown(request, ranking.items)]
                    self._feed(request, ranking, request.event_ts + timedelta(seconds=30))
                case _:
                    self._feed(request, ranking, request.event_ts + timedelta(seconds=30))
        self.facts[USERS][day] = profiles(day)
        _deliver(self.settings, day, delivered, self.facts[USERS][day])

    def _feed(self, request: Request, ranking: Ranking, time: datetime) -> None:
        """Three items were seen, and of the first two is told what was done."""
        told = ranking.items[: SHOWN - 1]
        self.client.feedback(
            request.request_id,
            [{"item_id": item, **request.events[item]} for item in told],
            user_id=request.user_id,
            event_ts=time.isoformat(),
            shown=SHOWN,
        )
        day = self.settings.calendar.day_of(request.event_ts)
        rows = shown(request, ranking.items, session_id=ranking.session_id, feedback_ts=time)
        nothing = dict.fromkeys(next(iter(request.events.values())), 0)
        self.facts[IMPRESSIONS][day] += [row if row["item_id"] in told else row | nothing for row in rows]

    def _night(self, day: date) -> None:
        missed, failed = earlier_days.run_missed(self.settings, day)
        for stage in ("land", "validate_landed"):
            stages.run_stage(self.settings, day, stage)
        reopened, broken = earlier_days.reopen(self.settings, day)
        if failed or broken:
            raise RuntimeError(f"the night of {day}: {failed | broken}")
        for one in (*missed, day, *reopened):
            run_day(self.settings, one)


def _logged(settings: Settings, day: date) -> Iterator[Row]:
    """The service's decisions of a day, by no code of ours that lands them."""
    names = [column.name for column in DECISION]
    for path in files_of(settings.layout.serving_log / "decisions", day):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield {name: row[name] for name in names}


def _deliver(settings: Settings, day: date, rows: list[Row], users: list[Row]) -> None:
    """A day's files: Parquet on one day, CSV on the next, and both on the third."""
    half = len(rows) // 2
    parts = {0: {"a.parquet": rows}, 1: {"a.csv": rows}}.get(
        day.toordinal() % 3, {"0/a.csv": rows[half:], "1/a.parquet": rows[:half]}
    )
    for name, part in parts.items():
        _write(settings, IMPRESSIONS, day, name, part)
    _write(settings, USERS, day, "a.csv" if day.day % 2 else "a.parquet", users)


def _write(settings: Settings, table: str, day: date, name: str, rows: list[Row]) -> None:
    path = settings.logs.folder / table / f"dt={day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        for row in rows:
            local = {
                name: value.astimezone(settings.calendar.zone).isoformat()
                for name, value in row.items()
                if isinstance(value, datetime)
            }
            writer.writerow(row | local)


def run_day(settings: Settings, day: date) -> None:
    """The day up to :data:`LAST_STAGE`; the record of the last one says that the day is done."""
    for stage in stages.DAY_STAGES[: stages.DAY_STAGES.index(LAST_STAGE) + 1]:
        stages.run_stage(settings, day, stage)
    write_record(settings.layout, day, "promote", {"skipped": "nothing is learnt here"})


# --- and as they do not


def backfill(settings: Settings, facts: Facts) -> None:
    """Every day's facts, whole, in one Parquet file a table; then the days in order."""
    for table, days in facts.items():
        for day, rows in days.items():
            spec = table_spec(settings, table)
            whole = pa.Table.from_pylist([dict.fromkeys(spec.schema.names) | row for row in rows])
            path = settings.logs.folder / table / f"dt={day}" / "a.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(conform(spec, whole, f"{table} of {day}"), path)
    for day in DAYS:
        run_day(settings, day)
