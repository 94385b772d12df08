"""Volume while the service takes over the traffic: the sum holds still, and each source has its own past."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from training.contract.files import write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.validation.volumes import Volumes, judged

DAY = date(2026, 1, 12)


def note(settings: Settings, table: str, day: date, **rows: int) -> tuple[Path, int]:
    """A landed partition of so many rows of each source, and how many that is."""
    folder, total = settings.layout.partition(table, day), sum(rows.values())
    (source, *others) = rows
    content = {"rows": total, "source": "files and service" if others else source}
    if others:
        content["parts"] = {name: {"rows": count} for name, count in rows.items()}
    write_json_atomic(folder / "_landed.json", content)
    return folder, total


def volumes(
    tmp_path: Path, today: dict[str, int], *past: dict[str, int], table: str = IMPRESSIONS
) -> Volumes:
    settings = Settings(data=tmp_path)
    recent = {}
    for back, rows in enumerate(past, start=1):
        one = DAY - timedelta(days=back)
        recent[one] = note(settings, table, one, **rows)
    return judged(settings, table, DAY, note(settings, table, DAY, **today), recent)


def broken(found: Volumes) -> dict[str, str]:
    """Field and severity of every check that fails."""
    failed = {}
    for check in found.checks:
        ratio = found.measures[check.column]
        if not check.arguments["min_value"] <= ratio <= check.arguments["max_value"]:
            failed[check.column] = check.severity
    return failed


ALL, ONE, HALF = {"files": 1000}, {"files": 990, "service": 10}, {"files": 500, "service": 500}
DONE = {"service": 1000}
TOTAL, SERVICE, FILES = (
    "rows_to_recent_median",
    "rows_of_service_to_recent_median",
    "rows_of_files_to_recent_median",
)


@pytest.mark.parametrize(
    ("name", "today", "past", "expected"),
    [
        ("files alone", ALL, [ALL] * 3, {}),
        ("the first hundredth is served", ONE, [ALL] * 3, {}),
        ("from a hundredth to a half", HALF, [ONE] * 3, {SERVICE: "warning", FILES: "warning"}),
        ("from a half to all", DONE, [HALF] * 3, {FILES: "warning"}),
        ("all for some days", DONE, [DONE] * 3, {}),
        ("back to none", ALL, [HALF] * 3, {SERVICE: "warning"}),
        (
            "the service alone, files not yet landed",
            {"service": 180},
            [ALL] * 3,
            {TOTAL: "critical", FILES: "warning"},
        ),
        # half of the traffic is gone
        ("the files are missing", {"service": 500}, [HALF] * 3, {TOTAL: "critical", FILES: "warning"}),
        ("the log is missing", {"files": 500}, [HALF] * 3, {TOTAL: "critical", SERVICE: "warning"}),
        ("half of the files are missing", {"files": 500}, [ALL] * 3, {TOTAL: "critical"}),
        ("a shard of the files is missing", {"files": 200, "service": 500}, [HALF] * 3, {FILES: "warning"}),
        ("the service after a simulated past", DONE, [{"world": 1000}] * 3, {}),
        ("half of a simulated past's", {"service": 500}, [{"world": 1000}] * 3, {TOTAL: "critical"}),
    ],
)
def test_volume_is_judged_by_what_brings_it(tmp_path, name, today, past, expected) -> None:
    found = volumes(tmp_path, today, *past)
    assert broken(found) == expected


def test_decisions_that_grow_with_the_share_stop_nothing(tmp_path) -> None:
    settings = Settings(data=tmp_path)
    for back in range(4):
        note(settings, IMPRESSIONS, DAY - timedelta(days=back), **ONE)
    found = volumes(tmp_path, {"service": 100}, *[{"service": 2}] * 3, table=DECISIONS)
    assert broken(found) == {TOTAL: "warning"}


def test_decisions_of_a_service_that_has_all_traffic_are_judged(tmp_path) -> None:
    settings = Settings(data=tmp_path)
    for back in range(4):
        note(settings, IMPRESSIONS, DAY - timedelta(days=back), **DONE)
    found = volumes(tmp_path, {"service": 100}, *[{"service": 200}] * 3, table=DECISIONS)
    assert broken(found) == {TOTAL: "critical"}
