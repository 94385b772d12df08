"""A column of times in a sample: unit, offset and spelling, as ``columns.json`` has to say them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.ingest import times
from training.ingest.columns_file import CALENDAR, UNITS, Source
from training.ingest.samples import Sample
from training.ingest.values import is_text
from training.ingest.zones import Times

_SPAN = times.Span(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC), "")
_MOST_BAD = 0.01  # share of a sample's values
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})?$")
_LOOKED_AT = 2_000  # texts, for their offsets


@dataclass(frozen=True)
class SampledTime:
    """What is in the column, what has to be said of it, and its instants by delivery."""

    entries: dict[str, str]
    told: str
    instants: tuple[Times, ...]
    named: tuple[str, ...]
    offsets: tuple[int, ...]


def look_at(sample: Sample, name: str) -> SampledTime | None:
    """What times the column holds; None where it holds none."""
    found: list[Times] = []
    entries: dict[str, str] = {}
    told: list[str] = []
    named: list[str] = []
    offsets: set[int] = set()
    for part, column in sample.columns(name):
        column = column.drop_null()
        if part.in_csv and is_text(column.type):
            column = column.filter(pc.not_equal(pc.utf8_trim_whitespace(column), ""))
        if len(column) == 0:
            continue
        read = _read(column)
        if read is None:
            return None
        unit, on_a_wall, microseconds = read
        found.append(Times(part.day, microseconds, on_a_wall))
        if on_a_wall:
            entries["zone"] = CALENDAR
            told.append("without an offset")
        if unit is not None:
            told.append(f"unix {UNITS[unit]}")
            entries |= {"unit": unit} if unit != "ms" else {}
        elif not on_a_wall:
            told.append("with an offset")
        if pa.types.is_timestamp(column.type) and column.type.tz:
            named.append(column.type.tz)
        elif is_text(column.type) and unit is None:
            offsets |= _offsets(column)
    if not found:
        return None
    return SampledTime(
        entries, ", ".join(dict.fromkeys(told)), tuple(found), tuple(named), tuple(sorted(offsets))
    )


def _read(column: pa.ChunkedArray) -> tuple[str | None, bool, np.ndarray] | None:
    """Unit of numbers, whether they are a wall clock's, and microseconds."""
    if not (is_text(column.type) or pa.types.is_timestamp(column.type) or _is_number(column.type)):
        return None
    digits = is_text(column.type) and pc.all(pc.match_substring_regex(column, r"^\s*\d+(\.\d+)?\s*$")).as_py()
    tried: list[tuple[str | None, str | None]] = [(None, None), (None, "UTC")]
    if digits or _is_number(column.type):
        tried = [(unit, None) for unit in UNITS]
    for unit, zone in tried:
        source = Source("", unit=unit or "ms", ambiguous="earliest")
        instants, bad = times.read(column, source, zone, _SPAN)
        if pc.mean(bad.cast(pa.float64())).as_py() <= _MOST_BAD:
            microseconds = instants.drop_null().cast(pa.int64()).to_numpy()
            return unit, zone is not None, microseconds
    return None


def _is_number(found: pa.DataType) -> bool:
    return pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)


def _offsets(column: pa.ChunkedArray) -> set[int]:
    """Of the text of times, in seconds."""
    step = max(1, len(column) // _LOOKED_AT)
    found = set()
    for text in column.to_pylist()[::step]:
        match = _OFFSET.search(text.strip())
        seconds = 0 if match is None else int(match[2]) * 3600 + int(match[3] or 0) * 60
        found.add(-seconds if match is not None and match[1] == "-" else seconds)
    return found
