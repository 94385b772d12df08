"""Times of a file: units, offsets and spellings, and whether they can be of the delivery's days.

A time that is read wrong moves rows to another day without a word. So a number is of one unit, milliseconds
unless ``columns.json`` says another; a time without an offset is of no zone unless it says one; and what is
years away from the delivery's day is refused with the unit in which it would not be.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own names

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.ingest.columns_file import CALENDAR, COLUMNS_FILE, UNITS, Source
from training.ingest.landing import connect
from training.ingest.schema import TIMESTAMP
from training.ingest.values import EXACT, NO_VALUE, for_duckdb, is_number, is_text, listed

# 2026-01-05T10:30:00.123456+01:00 and what databases make of it: a blank for the T, a comma, an offset
# without its colon (Snowflake) or as UTC (BigQuery), with or without a blank before it
_ISO = (
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}(?::\d{2})?)(?:[.,](\d{1,9}))? *"
    r"(?:(Z|z|UTC|GMT|[+-](?:(?:0\d|1[0-7])(?::?[0-5]\d)?|18(?::?00)?))(?: +UTC)?)?"
)
_RFC = r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} [+-](?:(?:0\d|1[0-7])[0-5]\d|1800)"
_EPOCH = r"(-?\d{1,19})(?:\.(\d{1,9}))?"
_DATE = r"\d{4}-\d{2}-\d{2}"
_NANOS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
# microseconds of the years 2 to 9998, which are dates in every zone
_FIRST_WALL, _LAST_WALL = -62_104_060_800_000_000, 253_370_764_799_999_999
_FORMS = "write 2026-01-05T10:30:00+01:00, 2026-01-05 09:30:00 UTC, or unix milliseconds"


@dataclass(frozen=True)
class Span:
    """The instants that a column's times may have: from ``first``, up to before ``end``."""

    first: datetime
    end: datetime
    day: str

    def holds(self, moment: datetime) -> bool:
        return self.first <= moment < self.end


@dataclass(frozen=True)
class _Reading:
    """SQL of a time: ``instant`` in microseconds, or the ``wall`` clock's without an offset, or ``bad``."""

    instant: str
    wall: str
    bad: str


def read(
    column: pa.ChunkedArray, source: Source, zone: str | None, span: Span
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The column's times (microseconds, UTC), and which rows hold something that can be no time of theirs.

    A wall clock's time is of ``zone``. It is none where that is None, where clocks went back over it and the
    source does not say which of the two it is, and where they were put forward over it. Neither is a time
    outside of ``span``.
    """
    instant, wall, bad = _parsed(column, source)
    clocks = pc.is_valid(wall)
    if zone is None:
        bad = pc.or_(bad, clocks)
    elif pc.any(clocks).as_py():
        first, last = (
            pc.assume_timezone(wall, zone, ambiguous=end, nonexistent=end) for end in ("earliest", "latest")
        )
        chosen = last if source.ambiguous == "latest" else first
        if source.ambiguous is None:
            bad = pc.or_(bad, pc.fill_null(pc.not_equal(first, last), False))
        bad = pc.or_(bad, pc.fill_null(pc.not_equal(pc.local_timestamp(chosen), wall), False))
        instant = pc.coalesce(instant, chosen.cast(pa.int64()))
    low, end = (int(moment.timestamp()) * 1_000_000 for moment in (span.first, span.end))
    outside = pc.or_(pc.less(instant, low), pc.greater_equal(instant, end))
    bad = pc.or_(bad, pc.fill_null(outside, False))
    return pc.if_else(bad, pa.scalar(None, pa.int64()), instant).cast(TIMESTAMP), bad


def _parsed(
    column: pa.ChunkedArray, source: Source
) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray]:
    """Instants in microseconds, wall clocks' times, and what is neither."""
    one = _reading("c", column.type, source)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    with connect() as connection:
        connection.register("source", pa.table({"c": for_duckdb(column)}))
        query = f"select {one.instant} as i, {one.wall} as w, coalesce({one.bad}, false) as b from source"
        rows = connection.sql(query).to_arrow_table()
    return rows["i"], rows["w"], rows["b"]


def _reading(column: str, found: pa.DataType, source: Source) -> _Reading:
    no_instant, no_wall = "null::BIGINT", "null::TIMESTAMP"
    if pa.types.is_timestamp(found):
        instant = _scaled(column, found.unit)
        bad = f"{column} is not null and ({instant}) is null"
        if found.tz is None:
            held = f"case when ({instant}) between {_FIRST_WALL} and {_LAST_WALL} then ({instant}) end"
            return _Reading(
                no_instant, f"make_timestamp({held})", f"{column} is not null and ({held}) is null"
            )
        return _Reading(instant, no_wall, bad)
    if pa.types.is_integer(found):
        instant = _scaled(column, source.unit)
        return _Reading(instant, no_wall, f"{column} is not null and ({instant}) is null")
    if pa.types.is_decimal(found):
        instant = _of_epoch(f"{column}::VARCHAR", source.unit)
        return _Reading(instant, no_wall, f"{column} is not null and ({instant}) is null")
    if pa.types.is_floating(found):
        # a double of seconds holds microseconds when it is rounded to them
        scaled = f"try_cast(round({column} * {_NANOS[source.unit] / 1000!r}) as BIGINT)"
        instant = f"case when abs({column}) < {EXACT.get(str(found), 1 << 53)} then {scaled} end"
        bad = f"{column} is not null and not isnan({column}) and ({instant}) is null"
        return _Reading(instant, no_wall, bad)
    if is_text(found):
        return _of_text(f"trim({column})", source.unit)
    return _Reading(no_instant, no_wall, f"{column} is not null")


def _scaled(whole: str, unit: str, part: str = "") -> str:
    """Microseconds of a whole number of a unit; sub-microsecond parts are dropped."""
    nanos = _NANOS[unit]
    scaled = f"{whole}::HUGEINT * {nanos // 1000}" if nanos >= 1000 else f"{whole}::HUGEINT // 1000"
    return f"try_cast({scaled}{part} as BIGINT)"


def _of_epoch(text: str, unit: str) -> str:
    parts = f"regexp_extract({text}, '^{_EPOCH}$', ['whole', 'part'])"
    digits = {"s": 6, "ms": 3}.get(unit, 0)  # of the fraction that are whole microseconds
    part = f" + rpad(left(({parts}).part, {digits}), {digits}, '0')::HUGEINT" if digits else ""
    scaled = _scaled(f"try_cast(({parts}).whole as HUGEINT)", unit, part)
    return f"case when ({parts}).whole <> '' then {scaled} end"


def _of_text(column: str, unit: str) -> _Reading:
    parts = f"regexp_extract({column}, '^{_ISO}$', ['day', 'clock', 'part', 'zone'])"
    wall = (
        f"(({parts}).day || ' ' || ({parts}).clock || if(length(({parts}).clock) = 5, ':00', '') "
        f"|| if(({parts}).part = '', '', '.' || left(({parts}).part, 6)))"
    )
    zone = f"({parts}).zone"
    offset = (
        f"case when {zone}[1] in ('+', '-') "
        f"then if(length({zone}) = 5, {zone}[1:3] || ':' || {zone}[4:5], {zone}) else '+00' end"
    )
    instant = (
        f"case when ({parts}).day <> '' "
        f"then if({zone} = '', null, epoch_us(try_cast({wall} || {offset} as TIMESTAMPTZ))) "
        f"when regexp_full_match({column}, '{_RFC}') "
        f"then epoch_us(try_strptime({column}, '%a, %d %b %Y %H:%M:%S %z')::TIMESTAMPTZ) "
        f"else {_of_epoch(column, unit)} end"
    )
    clock = f"case when ({parts}).day <> '' and {zone} = '' then try_cast({wall} as TIMESTAMP) end"
    there = f"{column} is not null and lower({column}) not in ({listed(NO_VALUE)})"
    return _Reading(instant, clock, f"{there} and ({instant}) is null and ({clock}) is null")


def advice(value: pa.Scalar, source: Source, zone: str | None, span: Span) -> str:
    """What is wrong with a value that is no time of its column's, and what to do about it."""
    instant, wall, _ = _parsed(pa.chunked_array([pa.array([value])]), source)
    microseconds, on_a_wall, found = instant[0].as_py(), wall[0].is_valid, value.type
    said = f'say so in {COLUMNS_FILE} by {{"column": "{source.column}", %s}}'
    text = value.as_py().strip() if is_text(found) else ""
    if pa.types.is_date(found) or re.fullmatch(_DATE, text):
        return "a date without a time of day: bring the time"
    number = _number(text) if is_text(found) else value.as_py() if is_number(found) else None
    if number is not None:
        read_as = _moment(number, source.unit)
        units = [unit for unit in UNITS if (moment := _moment(number, unit)) and span.holds(moment)]
        if units and source.unit not in units:
            others = f"in {UNITS[units[0]]} {_named(_moment(number, units[0]))}"
            unit = f'"unit": "{units[0]}"'
            return f"in {UNITS[source.unit]} that is {_named(read_as)}, {others}: {said % unit}"
        told = f"in {UNITS[source.unit]} that is "
        return told + (f"{_named(read_as)}, {_away(read_as, span)}" if read_as else _away(None, span))
    if on_a_wall and zone is None:
        calendar = f'"zone": "{CALENDAR}"'
        return f"its offset is missing; where all such times are of one zone, {said % calendar}"
    if on_a_wall and ((moment := _moment(wall[0].value, "us")) is None or not span.holds(moment)):
        return f"it is {_away(moment, span)}"
    if on_a_wall:
        told = f"clocks in {zone} were changed over it, so it is two instants or none: bring the offset"
        earliest = f'"zone": "{zone}", "ambiguous": "earliest"'
        return told if source.ambiguous else f"{told}, or {said % earliest}"
    if microseconds is not None:
        return f"it is {_away(_moment(microseconds, 'us'), span)}"
    return f"it is no time that is read: {_FORMS}"


def _away(moment: datetime | None, span: Span) -> str:
    near = f"the delivery of {span.day} holds times from {span.first:%Y-%m-%d} to {span.end:%Y-%m-%d}"
    if moment is None:
        return f"beyond any date: {near}"
    years = (span.first - moment if moment < span.first else moment - span.end).days / 365.25
    return (f"{years:.0f} years away: " if years >= 1 else "too far away: ") + near


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except ValueError:
        return None


def _moment(number: Any, unit: str) -> datetime | None:
    number = float(number) if isinstance(number, np.float16) else number  # which Fraction does not take
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            microseconds=int(Fraction(number) * _NANOS[unit] / 1000)
        )
    except (OverflowError, ValueError):
        return None


def _named(moment: datetime | None) -> str:
    return "beyond any date" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
