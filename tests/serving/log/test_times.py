from datetime import UTC, datetime

from serving.log.times import local_day, timestamp


def test_a_time_is_written_in_utc_and_is_of_the_calendars_day():
    time = datetime.fromisoformat("2026-01-05T20:30:00.000001+08:00")
    assert timestamp(time) == "2026-01-05T12:30:00.000001Z"
    assert local_day(time, 8) == "2026-01-05"
    assert local_day(datetime(2026, 1, 5, 16, tzinfo=UTC), 8) == "2026-01-06"
