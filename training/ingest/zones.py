"""In which zone are someone's days cut? What a sample of times and the days of its deliveries say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from training.contract.settings import is_zone

_STEP = 30 * 60  # seconds, of offsets that are tried
_CLOSE = 0.001  # share of the rows in their days by which two offsets are alike
_NARROW = 4 * 3600  # seconds: days that leave the offset more freedom say nothing of it
_WELL_KNOWN = (
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    "Europe/Istanbul",
    "Asia/Dubai",
    "Asia/Kolkata",
    "Asia/Jakarta",
    "Asia/Shanghai",
    "Asia/Tokyo",
    "Australia/Sydney",
    "America/Sao_Paulo",
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
)


@dataclass(frozen=True)
class Times:
    """Times of one delivery: instants (int64 microseconds), or the wall clock's where they have no offset."""

    day: date | None
    microseconds: np.ndarray
    on_a_wall: bool


@dataclass(frozen=True)
class Zone:
    """The zone that is known, and why; or None, and what is known of it."""

    name: str | None
    why: str
    examples: tuple[str, ...] = ()


def infer(times: Sequence[Times], named: Sequence[str], offsets: Sequence[int], machine: str) -> Zone:
    """The zone of the days.

    ``named`` are zones that Parquet columns name, ``offsets`` those in the text of times, in seconds, and
    ``machine`` the zone of this machine, which is taken only where the days are its own.
    """
    one = next((t for t in times if t.day is not None), None) or (times[0] if times else None)
    moment = _moment(one)
    fit = _offsets([t for t in times if t.day is not None and not t.on_a_wall])
    own = [name for name in dict.fromkeys(named) if name not in ("UTC", "Etc/UTC", "GMT", "Z", "+00:00")]
    for name in own:
        if not is_zone(name):  # a fixed offset, as +01:00
            continue
        offset = _offset(name, moment)
        if not fit or _near(offset, fit):
            return Zone(name, "which your Parquet files name")
    shifted = sorted({offset for offset in offsets if offset})
    if not shifted and fit and _near(0, fit) and fit[-1] - fit[0] <= _NARROW:
        return Zone("UTC", "in which the days of your deliveries are cut")
    if shifted:
        told, possible = f"your times carry {', '.join(map(_written, shifted))}", shifted
    elif fit and fit[-1] - fit[0] <= _NARROW:
        told, possible = f"your days begin at {_written(fit[0])} to {_written(fit[-1])} of UTC", fit
    else:
        return Zone(None, "your times do not say")
    if machine != "UTC" and is_zone(machine) and _near(_offset(machine, moment), possible):
        return Zone(machine, f"the zone of this machine: {told}")
    examples = tuple(name for name in _WELL_KNOWN if _near(_offset(name, moment), possible))
    return Zone(None, told, examples)


def _offsets(times: Sequence[Times]) -> list[int]:
    """Offsets of UTC, in seconds, by which as many rows as can be are of their deliveries' days."""
    if not times:
        return []
    tried = np.arange(-12 * 3600, 14 * 3600 + 1, _STEP)
    inside, total = np.zeros(len(tried)), 0
    for one in times:
        assert one.day is not None
        midnight = int(datetime(one.day.year, one.day.month, one.day.day, tzinfo=UTC).timestamp())
        since = np.sort(one.microseconds // 1_000_000 - midnight)
        inside += np.searchsorted(since, 86_400 - tried) - np.searchsorted(since, -tried)
        total += len(since)
    share = inside / max(total, 1)
    return [int(offset) for offset in tried[share >= share.max() - _CLOSE]]


def _near(offset: int, offsets: Sequence[int]) -> bool:
    return any(abs(offset - one) < _STEP for one in offsets)


def _moment(one: Times | None) -> datetime:
    if one is None or not len(one.microseconds):
        return datetime.now(UTC)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(np.median(one.microseconds)))


def _offset(name: str, moment: datetime) -> int:
    offset = moment.astimezone(ZoneInfo(name)).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _written(seconds: int) -> str:
    minutes = abs(seconds) // 60
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
