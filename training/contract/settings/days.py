"""How time is cut: into local days, and a user's requests into sessions."""

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from training.contract.settings.section import Section

_FIRST_LISTED, _LAST_LISTED = date(2010, 1, 1), date(2050, 1, 1)


# Python finds these, and another engine or machine does not: of no place, this machine's, with leap seconds
_NO_PLACE = re.compile(r"Factory|localtime|posixrules|(posix|right)/.*")


def is_zone(name: str) -> bool:
    """Whether it is the IANA name of a zone that every engine knows."""
    if _NO_PLACE.fullmatch(name):
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


class CalendarSettings(Section):
    timezone: str = Field(
        "UTC",
        description="IANA name, like Europe/Berlin, of the zone in which a day and an hour of day are cut",
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_zone(name):
            raise ValueError(f"{name!r} is no IANA time zone: a name like Europe/Berlin, or UTC")
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def day_of(self, moment: datetime) -> date:
        """The local day of an instant."""
        return moment.astimezone(self.zone).date()

    def day_start(self, day: date) -> datetime:
        """The instant at which a local day starts, in UTC: where midnight is left out, the first after it."""
        return datetime.combine(day, time(), self.zone).astimezone(UTC)

    def left_out(self, hour: int, minute: int) -> date | None:
        """The first listed day on which clocks are put forward over a time of day, if there is one."""
        for begins, _ in self.midnights[1:]:
            for day in (begins - timedelta(days=1), begins):  # clocks are changed within one of the two
                wall = datetime.combine(day, time(hour, minute), self.zone)
                if wall.astimezone(UTC).astimezone(self.zone).replace(tzinfo=None) != wall.replace(
                    tzinfo=None
                ):
                    return day
        return None

    @property
    def midnights(self) -> tuple[tuple[date, int], ...]:
        """From which day on a local day starts how many seconds before UTC's, oldest first.

        For SQL, whose engines know time zones of their own, of another year: the days of a lake and of its
        tables must be cut alike. Days before and after the listed ones start as the nearest of them.
        """
        return _midnights(self.timezone)


@lru_cache
def _midnights(timezone: str) -> tuple[tuple[date, int], ...]:
    calendar, utc = CalendarSettings(timezone=timezone), CalendarSettings(timezone="UTC")
    found: list[tuple[date, int]] = []
    for number in range((_LAST_LISTED - _FIRST_LISTED).days):
        day = _FIRST_LISTED + timedelta(days=number)
        seconds = int((utc.day_start(day) - calendar.day_start(day)).total_seconds())
        if not found or found[-1][1] != seconds:
            found.append((day, seconds))
    return tuple(found)


class SessionSettings(Section):
    gap_minutes: float = Field(
        30.0, gt=0.0, le=1440.0, description="idle minutes that end a session, a day at most (ours)"
    )
    max_requests: int | None = Field(
        None,
        ge=1,
        description="requests after which the platform itself ends a session, which is then truncated, not "
        "over; none: it never does. The simulated world has its own (ours)",
    )

    @property
    def gap(self) -> timedelta:
        return timedelta(minutes=self.gap_minutes)
