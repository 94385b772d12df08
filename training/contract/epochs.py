"""Epochs of the assignment: in each, users are drawn to arms anew, so that nobody is explored on for ever.

An epoch is ``serving.exploration.epoch_days`` local days; they are counted from :data:`FIRST_DAY`, so every
worker, every replica and the offline code know the epoch of an instant without having to ask.
"""

from datetime import date, datetime, tzinfo

FIRST_DAY = date(1970, 1, 1)


def epoch_of_day(day: date, epoch_days: int) -> int:
    """The epoch of a local day."""
    return (day - FIRST_DAY).days // epoch_days


def epoch_of(event_ts: datetime, zone: tzinfo, epoch_days: int) -> int:
    """The epoch of an instant, by the calendar of ``zone``."""
    return epoch_of_day(event_ts.astimezone(zone).date(), epoch_days)
