"""Generated deliveries: the tables of the clean one, or a refusal that names the cause; never a third."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.training.ingest.conftest import lake_bytes
from tests.training.ingest.news import csv_text, news_settings, place, rows
from training.contract.errors import DataError
from training.ingest import land_files

Row = dict[str, Any]
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York")
DAYS = (date(2026, 11, 24), date(2026, 10, 25), date(2026, 3, 29))  # two of them of 25 and 23 hours in Berlin


@dataclass(frozen=True)
class Spelling:
    """How a delivery writes its times, and what its ``columns.json`` says of it."""

    name: str
    write: Callable[[datetime, ZoneInfo], Any]
    said: dict[str, str] | None
    refused: str = ""  # part of the message; "" where it must land


def _epoch(per_second: int) -> Callable[[datetime, ZoneInfo], int]:
    def write(moment: datetime, zone: ZoneInfo) -> int:
        micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        return micros * per_second // 1_000_000

    return write


def _wall(moment: datetime, zone: ZoneInfo) -> str:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S.%f")


TIMES = (
    Spelling("ISO", lambda t, z: t.isoformat(), None),
    Spelling("ISO of the zone", lambda t, z: t.astimezone(z).isoformat(), None),
    Spelling("BigQuery", lambda t, z: f"{_wall(t, ZoneInfo('UTC'))} UTC", None),
    Spelling("Snowflake", lambda t, z: t.astimezone(z).strftime("%Y-%m-%d %H:%M:%S.%f %z"), None),
    Spelling("milliseconds", _epoch(1_000), None),
    Spelling("seconds, said", lambda t, z: f"{_epoch(1_000)(t, z) / 1000:.3f}", {"unit": "s"}),
    Spelling("microseconds, said", _epoch(1_000_000), {"unit": "us"}),
    Spelling("wall clock of UTC, said", lambda t, z: _wall(t, ZoneInfo("UTC")), {"zone": "UTC"}),
    Spelling("wall clock, said", _wall, {"zone": "calendar"}, "clocks in"),  # refused only where it is two
    Spelling("seconds", lambda t, z: int(t.timestamp()), None, '"unit": "s"'),
    Spelling("microseconds", _epoch(1_000_000), None, '"unit": "us"'),
    Spelling("seconds, said to be micros", lambda t, z: int(t.timestamp()), {"unit": "us"}, '"unit": "s"'),
    Spelling("wall clock", _wall, None, "its offset is missing"),
    Spelling("date", lambda t, z: f"{t.astimezone(z):%Y-%m-%d}", None, "a date without a time of day"),
)
SIGNALS = (int, bool, float, lambda v: "yes" if v else "no", lambda v: "TRUE" if v else "FALSE")
IDS = (int, float)


@st.composite
def deliveries(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.sampled_from((2, 5, 9)))
    return {
        "zone": draw(st.sampled_from(ZONES)),
        "day": draw(st.sampled_from(DAYS)),
        "requests": count,
        "times": draw(st.sampled_from(TIMES)),
        "signal": draw(st.sampled_from(SIGNALS)),
        "ids": draw(st.sampled_from(IDS)),
        "separator": draw(st.sampled_from(",;\t|")),
        "order": draw(st.permutations(range(count * 4))),
        "cuts": sorted(draw(st.lists(st.integers(0, count * 4), max_size=3))),
        "kinds": draw(st.lists(st.sampled_from(["csv", "csv.gz", "CSV", "parquet"]), min_size=4, max_size=4)),
        "folders": draw(st.lists(st.sampled_from(["", "hour=01/", "a/b/"]), min_size=4, max_size=4)),
        "cut_off": draw(st.integers(0, 9)) == 0,
    }


def write(folder: Path, some: list[Row], drawn: dict[str, Any], zone: ZoneInfo) -> list[Path]:
    """The delivery's files; values as they were drawn, shards in any format."""
    spelled = [
        row
        | {
            "event_ts": drawn["times"].write(row["event_ts"], zone),
            "is_click": drawn["signal"](row["is_click"]),
            "user_id": drawn["ids"](row["user_id"]),
        }
        for row in (some[n] for n in drawn["order"])
    ]
    ends = [0, *drawn["cuts"], len(some)]
    paths = []
    for n, (begin, end) in enumerate(pairwise(ends)):
        kind, part = drawn["kinds"][n], spelled[begin:end]
        path = place(folder, f"{drawn['folders'][n]}{n}.{kind}", day=drawn["day"])
        if kind == "parquet":
            names = list(some[0])
            pq.write_table(pa.table({name: pa.array([row[name] for row in part]) for name in names}), path)
        else:
            text = csv_text(part, drawn["separator"], list(some[0])).encode()
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        paths.append(path)
    if drawn["times"].said is not None:
        said = {"impressions": {"event_ts": drawn["times"].said}}
        (folder / "columns.json").write_text(json.dumps(said))
    return paths


@cache  # zones, days and counts repeat
def clean_lake(zone: str, day: date, requests: int) -> dict[str, bytes]:
    """The lake of the same rows in one sound file."""
    with TemporaryDirectory() as folder:
        settings = news_settings(Path(folder) / "data", zone)
        table = pa.Table.from_pylist(rows(settings, requests, day))
        pq.write_table(table, place(Path(folder) / "logs", "a.parquet", day=day))
        land_files(settings, day, Path(folder) / "logs")
        return lake_bytes(settings)


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=deliveries())
def test_the_same_tables_or_a_refusal_with_its_cause(tmp_path_factory: Any, drawn: dict[str, Any]) -> None:
    root, day = tmp_path_factory.mktemp("generated"), drawn["day"]
    settings = news_settings(root / "data", drawn["zone"])
    some = rows(settings, drawn["requests"], day)
    paths = write(root / "logs", some, drawn, settings.calendar.zone)
    causes = [drawn["times"].refused] if drawn["times"].refused else []
    if drawn["cut_off"]:
        paths[0].write_bytes(paths[0].read_bytes()[:-7])
        causes += ["cut off", "unreadable Parquet", "Expected 12 columns", "no row of", "missing column"]
    try:
        record = land_files(settings, day, root / "logs")
    except DataError as error:
        event(f"refused: {drawn['times'].name}")
        assert causes and any(cause in str(error) for cause in causes), error
        assert lake_bytes(settings) == {}
    else:
        event(f"landed: {drawn['times'].name}")
        assert not drawn["cut_off"] or record["tables"]["impressions"]["rows"] == len(some)
        assert lake_bytes(settings) == clean_lake(drawn["zone"], day, drawn["requests"])
