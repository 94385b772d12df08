"""Two days of awkward traffic through the service's own pipeline, its log landed and transformed: the states
that were served are those that Feast gives for the same instants, all of them.

Sessions named and not, over midnight and around the idle gap; feedback in parts, twice, corrected, late, and
none; lists of which all is seen, and of which a part is. Once with ids that are numbers, and once with text
of digits for users and unsigned numbers for items.
"""

import asyncio
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

import serving.state.online_state  # noqa: F401 -- as in tests/serving/test_engine.py
from serving.engine import Engine
from tests.end_to_end.small_days import write_settings
from training import features, ingest
from training.contract.layout import DECISIONS
from training.contract.settings import Settings
from training.warehouse import transform

DAYS = [date(2026, 1, 5), date(2026, 1, 6)]
USERS = 30
GAP = timedelta(minutes=30)
PAUSES = (
    *[timedelta(seconds=s) for s in (20, 45, 90, 240)] * 4,
    GAP - timedelta(seconds=40),  # within the gap of the feedback, too
    *[GAP + timedelta(microseconds=us) for us in (-1, 0, 300_000, 1_000_000, 1_300_000)],
    timedelta(minutes=50),
)
Call = tuple[datetime, str, dict[str, Any]]
IDS = {"numbers": {}, "text": {"users": "string", "items": "uint64"}}
ITEMS = 9


def stamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")


class Traffic:
    """One user's requests from 22:00 to 2:00 of local time. ``calls`` are made in this order."""

    def __init__(self, settings: Settings, user: int) -> None:
        self.random, self.settings = Random(user), settings
        text = settings.ids.users == "string"
        self.user = f"{user:03d}" if text else user  # 007, which no number is
        self.items = [2**64 - 1 - n if text else n for n in range(ITEMS)]
        self.scrolls = user % 2 == 0  # all items come, and four are looked at
        self.calls: list[Call] = []
        self.shown: dict[str, int] = {}
        midnight = settings.day_start(DAYS[1])
        at = midnight - timedelta(hours=2) + timedelta(microseconds=self.random.randrange(10**7))
        session, number, waiting, pause = "s0" if user % 3 else None, 0, None, timedelta()
        while at < midnight + timedelta(hours=2):
            if session is not None and self.random.random() < 0.1:
                session = f"s{number}"
            request = f"{user}-{number}"
            self.calls.append((at, "rank", self.rank(request, session, at)))
            told = at + timedelta(seconds=8, microseconds=self.random.randrange(10**6))
            how = self.random.choice(("whole", "parts", "twice", "corrected", "late", "none"))
            # dbt knows a request by its last feedback: parts of it, or of a later one, beside the idle gap
            # are not what this is about; nor is feedback told of before requests that it is younger than
            if how not in ("whole", "none") and (pause > GAP / 2 or abs(at - midnight) < GAP / 6):
                how = "whole"
            if waiting is not None:  # of the request before: later than this one's, but told to be earlier
                self.feedback(request, told, 4)
                self.feedback(waiting, told - timedelta(seconds=4), 4)
                waiting = None
            elif how == "late":
                waiting = request
            elif how != "none":
                self.feedback(request, told, 2 if how == "parts" else 4)
                if how != "whole":
                    self.feedback(request, told + timedelta(seconds=3), 4, anew=how != "twice")
            # a late one is told of within its session, else it would be of one that is over
            pause = timedelta(seconds=30) if waiting else self.random.choice(PAUSES)
            at, number = max(at + pause, told + timedelta(seconds=9)), number + 1

    def rank(self, request: str, session: str | None, at: datetime) -> dict[str, Any]:
        heads = self.settings.heads
        scores = {head.name: [self.random.random() for _ in range(ITEMS)] for head in heads}
        k = ITEMS if self.scrolls else 4
        body = {"request_id": request, "user_id": self.user, "k": k, "event_ts": stamp(at)}
        named = {} if session is None else {"session_id": f"{self.user}-{session}"}
        return {**body, **named, "candidates": {"item_id": self.items, "scores": scores}}

    def feedback(self, request: str, at: datetime, items: int, anew: bool = False) -> None:
        """Of the first items shown; ``anew`` with other values than before."""
        random = Random(f"{request}{at if anew else ''}")
        events = [
            {
                **{signal.column: random.randrange(2) for signal in self.settings.signals},
                "play_time_ms": random.randrange(60_000),
                "duration_ms": random.choice((0, 30_000)),
            }
            for _ in range(items)
        ]
        body = {"request_id": request, "events": events, "event_ts": stamp(at)}
        self.calls.append((at, "feedback", {**body, **({"shown": items} if self.scrolls else {})}))


async def run(settings: Settings, calls: list[Call]) -> None:
    engine = Engine(settings, "w1", [])
    engine.wait_for_store(120.0)
    assert engine.unready is None
    items: dict[str, list[int]] = {}
    for _, kind, body in calls:
        if kind == "rank":
            answer = orjson.loads(await engine.rank(orjson.dumps(body)))
            items[body["request_id"]] = answer["items"]
        else:
            shown = items[body["request_id"]]
            events = [{"item_id": i, **event} for i, event in zip(shown, body["events"], strict=False)]
            answer = orjson.loads(await engine.feedback(orjson.dumps({**body, "events": events})))
            assert answer["state_moved"]
    engine.close()


@pytest.fixture(scope="module", params=IDS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What the two days leave."""
    folder: Path = tmp_path_factory.mktemp("states")
    ids = IDS[request.param]
    settings = write_settings(folder, {"gate": {"parity_sample": 100_000}, **({"ids": ids} if ids else {})})
    features.apply(settings)
    traffic = [Traffic(settings, user) for user in range(1, USERS + 1)]
    midnight = settings.day_start(DAYS[1])
    for number, day in enumerate(DAYS):
        calls = []
        for one in traffic:
            ranked = {body["request_id"]: at for at, kind, body in one.calls if kind == "rank"}
            calls += [c for c in one.calls if (ranked[c[2]["request_id"]] >= midnight) is bool(number)]
        asyncio.run(run(settings, calls))
        ingest.land_service_log(settings, day)
        transform.run(settings, day)
        features.materialise(settings, day)
    return settings


@pytest.mark.parametrize("day", DAYS)
def test_every_served_state_is_what_feast_gives(settings: Settings, day: date) -> None:
    record = features.parity(settings, day)
    assert record["compared"] > 5 * USERS
    assert (record["mismatched"], record["worst"]) == (0, [])


def test_the_traffic_was_what_it_is_said_to_be(settings: Settings) -> None:
    rows = [
        row
        for day in DAYS
        for row in pq.read_table(
            settings.layout.mart("fct_transitions") / f"dt={day}" / "part-0.parquet"
        ).to_pylist()
    ]
    decisions = {
        row["request_id"]: row
        for day in DAYS
        for row in pq.read_table(settings.layout.partition(DECISIONS, day) / "part-0.parquet").to_pylist()
    }
    assert any("~" in row["session_id"] for row in rows), "no named session was cut"
    assert any(row["step"] and row["event_ts"].hour == 0 and row["event_ts"].minute < 5 for row in rows)
    # of nine that came back four were seen, where anybody said so
    assert {row["impressions"] for row in rows} == {4, ITEMS}
    assert {type(row["user_id"]) for row in rows} == {str if settings.ids.users == "string" else int}
    # dbt's sessions are the service's
    assert all(row["session_id"] == decisions[row["request_id"]]["session_id"] for row in rows)
    states = np.array([row["state"] for row in rows])
    moving = [
        states[:, at]
        for at, name in enumerate(settings.state_spec.entry_names)
        if name.startswith(("sess_", "last_", "decayed_"))
    ]
    assert all((entry > 0).mean() > 0.2 for entry in moving)
