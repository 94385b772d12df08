"""The calendar: local days of every length, and SQL that cuts them as Python does."""

from datetime import UTC, date, datetime, timedelta

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.contract.settings import Settings
from training.contract.settings.days import CalendarSettings
from training.ingest.schema import local_day_sql

# summer time, midnights that are left out or come twice, half hours, half an hour of summer time, none
ZONES = (
    *("Europe/Berlin", "America/Havana", "Africa/Cairo", "America/Santiago", "Asia/Kolkata"),
    *("Australia/Lord_Howe", "Africa/Casablanca", "Asia/Shanghai", "UTC"),
)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Havana", date(2026, 3, 8), 23),
        ("Asia/Kolkata", date(2026, 3, 29), 24),
    ],
)
def test_a_day_is_as_long_as_its_zone_makes_it(zone: str, day: date, hours: float) -> None:
    calendar = CalendarSettings(timezone=zone)
    start, end = calendar.day_start(day), calendar.day_start(day + timedelta(days=1))
    assert end - start == timedelta(hours=hours)
    assert calendar.day_of(start) == calendar.day_of(end - timedelta(microseconds=1)) == day


@hypothesis_settings(deadline=None)  # a zone's days are listed once
@given(
    zone=st.sampled_from(ZONES),
    moments=st.lists(
        st.datetimes(datetime(2010, 1, 2), datetime(2049, 12, 30), timezones=st.just(UTC)), min_size=1
    ),
    days=st.lists(st.dates(date(2010, 1, 2), date(2049, 12, 30)), min_size=1),
)
def test_sql_cuts_days_as_python_does(zone: str, moments: list[datetime], days: list[date]) -> None:
    settings = Settings(calendar=CalendarSettings(timezone=zone))
    starts = [settings.day_start(day) for day in days]
    every = [*moments, *starts, *(start - timedelta(microseconds=1) for start in starts)]
    with duckdb.connect() as connection:
        connection.register("times", pa.table({"m": pa.array(every, pa.timestamp("us", "UTC"))}))
        found = connection.execute(f"select {local_day_sql(settings, 'm')} from times").fetchall()  # noqa: S608
    assert [day for (day,) in found] == [settings.calendar.day_of(moment) for moment in every]


@pytest.mark.parametrize(
    "name",
    [
        "Berlin",
        "",
        "Europe",
        "UTC+1",
        "+01:00",
        "../etc/passwd",
        "Factory",
        "localtime",
        "posixrules",
        "right/UTC",
    ],
)
def test_a_zone_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is no IANA time zone: a name like Europe/Berlin"):
        CalendarSettings(timezone=name)


def test_a_nightly_run_is_not_at_an_hour_that_is_left_out_once_a_year() -> None:
    london = {"timezone": "Europe/London"}
    with pytest.raises(ValidationError, match=r"no such time in Europe/London on 20\d\d-03-"):
        Settings(calendar=london, orchestration={"schedule": "30 1 * * *"})
    Settings(calendar=london, orchestration={"schedule": "30 2 * * *"})
    for zone in ZONES:
        Settings(calendar={"timezone": zone})
