"""A day that the service and files bring: every request once, whatever is landed first, and how often."""

import itertools
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import (
    DAY,
    MIDNIGHT,
    SHANGHAI,
    decision,
    event,
    feedback,
    impressions,
    lake_bytes,
    read,
    write_log,
)
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.ingest import column_changes, land, land_files, land_service_log

NEXT = DAY + timedelta(days=1)


def shown(request: str, items: list[int], minutes: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """A request's rows as files have them."""
    time = MIDNIGHT + timedelta(minutes=minutes)
    return [
        {"request_id": request, "item_id": item, "position": n, "event_ts": time, **more}
        for n, item in enumerate(items)
    ]


def deliver(settings: Settings, folder: Path, day: date, some: list[dict[str, Any]]) -> None:
    path = folder / IMPRESSIONS / f"dt={day}" / "a.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(impressions(some, settings), path)


def kept(settings: Settings, day: date = DAY) -> dict[str, list[tuple[int, int]]]:
    """By request its items and whether they were clicked."""
    rows = sorted(read(settings, day=day), key=lambda row: (row["request_id"], row["position"]))
    return {
        request: [(row["item_id"], row["is_click"]) for row in those]
        for request, those in itertools.groupby(rows, lambda row: row["request_id"])
    }


def lay_out(settings: Settings, folder: Path) -> dict[str, Callable[[], Any]]:
    """Served requests s1 (with feedback) and s2 (without), f1 of the ranker before; all are in files."""
    write_log(settings, "decisions", DAY, [decision("s1", 1, (1, 2)), decision("s2", 2, (3, 4))])
    write_log(settings, "feedback", DAY, [feedback("s1", 3, event(1, 9, is_click=1))])
    rows = shown("s1", [1, 2], 1) + shown("s2", [3], 2, is_click=1) + shown("f1", [5, 6], 4, is_click=1)
    deliver(settings, folder, DAY, rows)
    return {
        "service": lambda: land_service_log(settings, DAY),
        "files": lambda: land_files(settings, DAY, folder),
    }


WANTED = {
    "f1": [(5, 1), (6, 1)],  # the files' alone
    "s1": [(1, 1), (2, 0)],  # the service's, which knows what was felt
    "s2": [(3, 1)],  # decided by the service; what was felt is in the files alone
}
ORDERS = [
    ("service", "files"),
    ("files", "service"),
    ("files", "service", "files", "service", "service", "files"),
]


@pytest.mark.parametrize("order", ORDERS)
def test_a_day_of_both_has_each_request_once_in_whatever_order(
    settings: Settings, tmp_path: Path, order: tuple[str, ...]
) -> None:
    landings = lay_out(settings, tmp_path / "logs")
    for name in order:
        record = landings[name]()
    assert kept(settings) == WANTED
    assert sorted(row["request_id"] for row in read(settings, DECISIONS)) == ["s1", "s2"]
    landed = record["tables"][IMPRESSIONS]
    assert (landed["rows"], landed["requests_in_both"]) == (5, 2)
    assert landed["rows_by_source"] == {"files": 3, "service": 2}
    lake = lake_bytes(settings)
    for name in order:
        assert landings[name]()["tables"][IMPRESSIONS]["changed_days"] == []
    assert lake_bytes(settings) == lake


def test_any_order_ends_at_the_same_lake(tmp_path: Path) -> None:
    lakes = []
    for n, order in enumerate(ORDERS):
        settings = Settings(data=tmp_path / str(n), calendar=SHANGHAI)
        landings = lay_out(settings, tmp_path / f"logs{n}")
        for name in order:
            landings[name]()
        lakes.append(lake_bytes(settings))
    assert lakes[0] == lakes[1] == lakes[2]


def test_what_comes_late_to_either_source_of_a_merged_day_comes_in(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "logs"
    landings = lay_out(settings, folder)
    landings["files"]()
    landings["service"]()
    # the next day's feedback reaches s2, and the next delivery holds a late row of the day
    write_log(settings, "decisions", NEXT, [decision("n1", 24 * 60 + 1, (1,))])
    write_log(settings, "feedback", NEXT, [feedback("s2", 24 * 60 + 2, event(4, 5, is_click=1))])
    late = shown("f2", [7], 30) + shown("g1", [8], 24 * 60 + 5)
    deliver(settings, folder, NEXT, late)
    assert land_service_log(settings, NEXT)["tables"][IMPRESSIONS]["changed_days"] == [str(DAY)]
    assert kept(settings)["s2"] == [(3, 0), (4, 1)]  # feedback reached the service: its list counts
    assert land_files(settings, NEXT, folder)["tables"][IMPRESSIONS]["days"] == [str(DAY), str(NEXT)]
    assert kept(settings) == {**WANTED, "s2": [(3, 0), (4, 1)], "f2": [(7, 0)]}
    assert kept(settings, NEXT) == {"g1": [(8, 0)], "n1": [(1, 0)]}


def test_late_decisions_join_a_day_of_files(settings: Settings, tmp_path: Path) -> None:
    deliver(settings, tmp_path / "logs", DAY, shown("f1", [5]))
    land_files(settings, DAY, tmp_path / "logs")
    write_log(settings, "decisions", NEXT, [decision("r0", 30), decision("n1", 24 * 60 + 1)])
    land_service_log(settings, NEXT)
    assert set(kept(settings)) == {"f1", "r0"}


def test_exact_duplicates_are_counted_in_a_merged_day_too(settings: Settings, tmp_path: Path) -> None:
    write_log(settings, "decisions", DAY, [decision("s1", 1, (1, 2))])
    deliver(settings, tmp_path / "logs", DAY, shown("f1", [5]) + shown("f1", [5]))
    land_service_log(settings, DAY)
    assert land_files(settings, DAY, tmp_path / "logs")["tables"][IMPRESSIONS]["duplicates_removed"] == 1
    assert kept(settings)["f1"] == [(5, 0)]


def test_another_source_still_replaces_a_day_and_is_not_joined(settings: Settings, tmp_path: Path) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "kuairand")
    write_log(settings, "decisions", NEXT, [decision("r0", 30), decision("n1", 24 * 60 + 1)])
    with pytest.raises(DataError, match="landed from kuairand"):
        land_service_log(settings, NEXT)


def test_columns_of_each_source_are_held_against_its_own(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for name in lay_out(settings, folder).values():
        name()
    write_log(settings, "decisions", NEXT, [decision("n1", 24 * 60 + 1, (1,))])
    path = folder / IMPRESSIONS / f"dt={NEXT}" / "a.parquet"
    path.parent.mkdir(parents=True)
    table = impressions(shown("g1", [8], 24 * 60 + 5), settings)
    pq.write_table(table.append_column("shelf", pa.array([3])), path)
    land_service_log(settings, NEXT)
    land_files(settings, NEXT, folder)
    changes = column_changes.schema_changes(settings, IMPRESSIONS, NEXT)
    assert [(one["column"], one["change"], one["since"]) for one in changes] == [("shelf", "new", str(DAY))]
