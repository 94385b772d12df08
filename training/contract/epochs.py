"""Epochs of the assignment: in each, users are drawn to arms anew, so that nobody is explored on for ever.

An epoch is ``serving.exploration.epoch_days`` local days; they are counted from :data:`FIRST_DAY`, so every
worker, every replica and the offline code know the epoch of an instant without having to ask.
"""

from datetime import date, datetime

FIRST_DAY = date(1970, 1, 1)
_DAY_S = 86_400


def epoch_of_day(day: date, epoch_days: int) -> int:
    """The epoch of a local day."""
    return (day - FIRST_DAY).days // epoch_days


def epoch_of(event_ts: datetime, utc_offset_hours: int, epoch_days: int) -> int:
    """The epoch of an instant (with its zone)."""
    return int((event_ts.timestamp() + utc_offset_hours * 3_600) // _DAY_S) // epoch_days
