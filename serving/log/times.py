"""How does the log write a time, and which day's is it?"""

from datetime import UTC, datetime, timedelta


def timestamp(time: datetime) -> str:
    """ISO-8601 in UTC with microseconds: ``2026-01-05T12:00:00.000000Z``."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def local_day(time: datetime, utc_offset_hours: int) -> str:
    """The calendar's day of a time, ``YYYY-MM-DD``."""
    return (time.astimezone(UTC) + timedelta(hours=utc_offset_hours)).date().isoformat()
