from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from serving.log.times import local_day, timestamp


def test_a_time_is_written_in_utc_and_is_of_the_calendars_day():
    moment = datetime.fromisoformat("2026-01-05T20:30:00.000001+08:00")
    assert timestamp(moment) == "2026-01-05T12:30:00.000001Z"
    shanghai = ZoneInfo("Asia/Shanghai")
    assert local_day(moment, shanghai) == "2026-01-05"
    assert local_day(datetime(2026, 1, 5, 16, tzinfo=UTC), shanghai) == "2026-01-06"


def test_a_day_has_the_hours_that_its_zone_gives_it():
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in ((date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 10, 26), 24)):
        first = datetime.combine(day, time(), berlin).astimezone(UTC)
        last = first + timedelta(hours=hours)
        assert local_day(first, berlin) == local_day(last - timedelta(microseconds=1), berlin) == str(day)
        assert local_day(last, berlin) == str(day + timedelta(days=1))
