"""How does the log write a time, and which day's is it?"""

from datetime import UTC, datetime, tzinfo


def timestamp(time: datetime) -> str:
    """ISO-8601 in UTC with microseconds: ``2026-01-05T12:00:00.000000Z``."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def local_day(time: datetime, zone: tzinfo) -> str:
    """The day of a time in ``zone``, ``YYYY-MM-DD``."""
    return time.astimezone(zone).date().isoformat()
