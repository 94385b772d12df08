"""The contracts as Arrow schemas, and the one place where foreign columns are made to fit them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings

TIMESTAMP = pa.timestamp("us", "UTC")
DAY_US = 86_400_000_000
_UNCASTABLE = pa.ArrowInvalid, pa.ArrowNotImplementedError  # pyarrow's own: a value, or a type, not castable

_ARROW = {
    "string": pa.string(),
    "int8": pa.int8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "timestamp[us, UTC]": TIMESTAMP,
    "list<float>": pa.list_(pa.float32()),
}


@dataclass(frozen=True)
class TableSpec:
    """A table's contract: its columns, the ones that must be there, its key, and the order rows lie in."""

    table: str
    schema: pa.Schema
    required: tuple[str, ...]
    key: tuple[str, ...]
    time: str
    order: tuple[str, ...]


def table_spec(settings: Settings, table: str) -> TableSpec:
    """The contract of ``impressions``, ``decisions`` or ``users`` under these settings.

    Every field is nullable in the file: a null in a required column is for validation to judge and
    to quarantine, row by row, not a reason to land nothing.
    """
    columns, key, time, order = {
        IMPRESSIONS: (
            impression_columns(settings),
            ("request_id", "item_id"),
            "event_ts",
            ("event_ts", "request_id", "position", "item_id"),
        ),
        DECISIONS: (decision_columns(settings.ids), ("request_id",), "event_ts", ("event_ts", "request_id")),
        USERS: (user_columns(settings), ("user_id",), "updated_ts", ("user_id", "updated_ts")),
    }[table]
    return TableSpec(
        table=table,
        schema=pa.schema([(column.name, _ARROW[column.type]) for column in columns]),
        required=tuple(column.name for column in columns if column.required),
        key=key,
        time=time,
        order=order,
    )


def conform(spec: TableSpec, rows: pa.Table, where: str) -> pa.Table:
    """``rows`` with the contract's columns, in its order and types; other columns are left out.

    A missing optional column becomes nulls. Times may be timestamps (without a zone: UTC), ISO-8601
    text with an offset, or integers of unix milliseconds. ``where`` names the file or table in errors:
    :class:`DataError` for a missing required column, or the first value that does not fit its type.
    """
    missing = [name for name in spec.required if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{where}: missing column {', '.join(missing)}; it has {', '.join(rows.column_names) or 'none'}"
            + _unknown(spec, rows.column_names),
            breaks="columns",
        )
    columns = []
    for column in spec.schema:
        if column.name in rows.column_names:
            columns.append(_fit(rows[column.name], column, where))
        else:
            columns.append(pa.nulls(rows.num_rows, column.type))
    return pa.table(columns, schema=spec.schema)


def _unknown(spec: TableSpec, names: Sequence[str]) -> str:
    """A renamed column is for a person to recognise, among those that the contract does not know."""
    unknown = [name for name in names if name not in spec.schema.names]
    return f"; unknown to the contract, a new name perhaps: {', '.join(unknown)}" if unknown else ""


def _fit(values: pa.ChunkedArray, column: pa.Field, where: str) -> pa.ChunkedArray:
    if column.name in ("user_id", "item_id") and column.type == pa.int64():
        _refuse_zeros(values, column.name, where)
    try:
        return _cast(values, column.type)
    except _UNCASTABLE as error:
        row = _first_bad(values, column.type)
        value = values[row].as_py()
        raise DataError(
            f"{where}: column {column.name}, row {row + 1}: {value!r} ({values.type}) is not {column.type}",
            breaks="types",
        ) from error


def _refuse_zeros(values: pa.ChunkedArray, name: str, where: str) -> None:
    """Two ids that are text may be one as numbers: 007 and 7."""
    if not pa.types.is_string(values.type):
        return
    row = pc.index(pc.match_substring_regex(values, r"^[+-]?0[0-9]"), True).as_py()
    if row >= 0:
        setting = "ids.users" if name == "user_id" else "ids.items"
        raise DataError(
            f"{where}: column {name}, row {row + 1}: {values[row].as_py()!r} has leading zeros: "
            f"set {setting}: string",
            breaks="types",
        )


def _cast(values: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    if target == TIMESTAMP and pa.types.is_string(values.type) and _all_digits(values):
        values = values.cast(pa.int64())
    if target == TIMESTAMP and pa.types.is_integer(values.type):
        values = values.cast(pa.int64()).cast(pa.timestamp("ms", "UTC"))
    # sub-microsecond parts are dropped (pandas writes nanoseconds); anything else lossy is refused
    options = pc.CastOptions(target_type=target, allow_time_truncate=True)
    return pc.cast(values, options=options)


def _all_digits(values: pa.ChunkedArray) -> bool:
    return pc.all(pc.match_substring_regex(values, r"^[0-9]+$")).as_py() is True


def _first_bad(values: pa.ChunkedArray, target: pa.DataType) -> int:
    """Index of the first value that does not cast, by halving."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _cast(values.slice(low, middle - low), target)
        except _UNCASTABLE:  # the bad one is in this half
            high = middle
        else:
            low = middle
    return low


def local_sql(settings: Settings, column: str) -> str:
    """SQL of the calendar's wall clock at the instants of a column (timestamptz)."""
    return f"({column} at time zone '{settings.calendar.timezone}')"


def local_day_sql(settings: Settings, column: str) -> str:
    """SQL of the local day of the instants of a column (timestamptz), by our time zones and not DuckDB's."""
    runs = settings.calendar.midnights
    ends = [day for day, _ in runs[1:]]
    pieces = [
        f"date '1970-01-01' + ((epoch_us({column}) + {seconds * 1_000_000}) // {DAY_US})::integer"
        for _, seconds in runs
    ]
    # the last day of a piece may have 25 hours
    pieces = [
        piece if end is None else f"least({piece}, date '{end - timedelta(days=1)}')"
        for piece, end in zip(pieces, [*ends, None], strict=True)
    ]
    starts = [int(settings.day_start(day).timestamp()) * 1_000_000 for day in ends]
    return f"({_of_pieces(f'epoch_us({column})', starts, pieces)})::date"


def _of_pieces(value: str, starts: Sequence[int], pieces: Sequence[str]) -> str:
    """SQL of one of the pieces: the one that ``value`` is in, found by halving."""
    if not starts:
        return pieces[0]
    middle = len(starts) // 2
    before = _of_pieces(value, starts[:middle], pieces[: middle + 1])
    after = _of_pieces(value, starts[middle + 1 :], pieces[middle + 1 :])
    return f"case when {value} < {starts[middle]} then {before} else {after} end"


def check_day(settings: Settings, day: date, times: pa.ChunkedArray, where: str) -> None:
    """Raise :class:`DataError` naming the first row whose time is null or not within the local day."""
    start, end = (
        int(settings.day_start(one).timestamp()) * 1_000_000 for one in (day, day + timedelta(days=1))
    )
    us = times.cast(pa.int64())
    inside = pc.fill_null(pc.and_(pc.greater_equal(us, start), pc.less(us, end)), False)
    row = pc.index(inside, False).as_py()
    if row >= 0:
        raise DataError(
            f"{where}: row {row + 1} has the time {times[row].as_py()}, which is not in the local day {day} "
            f"(calendar.timezone: {settings.calendar.timezone})",
            breaks="times",
        )
