"""Your own logs: Parquet or CSV files, landed as they are or after renaming columns.

Put a day's files where ``logs.folder`` of the settings points (``logs.source: files``)::

    my_logs/
      columns.json                      optional: names of your columns (training/ingest/columns_file.py)
      impressions/dt=2026-01-05/*       .parquet, .csv or .tsv (also .gz, .zst, .bz2), in any folders
      decisions/dt=2026-01-05/*         optional; Parquet only, for it holds lists
      users/dt=2026-01-05/*             optional: users whose profile is new or changed

A ``dt=`` folder is a *delivery*: what became known on that day. Rows of earlier days in it are late:
they land in their own day, and mark it changed; a few rows of a later day go to quarantine, more are
refused. A row of a later delivery replaces one of the same key from an earlier delivery; rows of one
delivery that share a key are both landed, for validation to stop the day. Deliveries must be kept: landing
a day again reads all that it was landed from. A file that is no log is refused; what begins with ``_`` or
``.`` is left out, and named.

What a file may hold, and how it is read: :mod:`training.ingest.files`. To read anything else (a database,
JSON), make rows of it and hand them to :func:`training.ingest.land`.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.files import write_atomic, writing
from training.contract.layout import IMPRESSIONS, TABLES, USERS
from training.contract.settings import Settings
from training.ingest import forgotten
from training.ingest.aside import DELIVERY
from training.ingest.columns_file import Mapped, read_columns
from training.ingest.files import Asked, FileRows, column_types, read_file
from training.ingest.folders import delivered, has_delivery, nothing, refuse_strays, table_files
from training.ingest.landing import (
    BOTH,
    connect,
    landing_lock,
    note_of,
    read_note,
    summary,
    write_partition,
)
from training.ingest.merging import FILES, MERGED
from training.ingest.schema import TIMESTAMP, TableSpec, table_spec

SOURCE = FILES


@dataclass(frozen=True)
class Delivery:
    """All rows of a delivery of one table, and what of its files was not read."""

    rows: pa.Table
    files: tuple[FileRows, ...]
    left_out: tuple[str, ...]  # files whose names begin with _ or .

    @property
    def told(self) -> dict[str, Any]:
        """For the record: how many files, and what in them was not read or not there."""
        return {
            "files": len(self.files),
            "left_out": list(self.left_out),
            "unread_columns": sorted({name for file in self.files for name in file.unread}),
            "absent_columns": sorted({name for file in self.files for name in file.absent}),
        }


@dataclass(frozen=True)
class _Planned:
    """A partition that is to be written: its rows lie in a file."""

    table: str
    day: date
    rows: Path
    deliveries: tuple[str, ...]
    columns: Mapping[str, str]


def land_files(settings: Settings, day: date, folder: Path) -> dict[str, Any]:
    """Land the delivery of ``day`` in ``folder``; late rows land in their own days.

    The record adds by table ``files``, ``left_out`` (names that begin with ``_`` or ``.``),
    ``unread_columns`` and ``absent_columns`` of the delivery.

    Raises :class:`DataError` when there is no ``impressions/dt=<day>/`` file or no row in them; naming a file
    or folder that is neither read nor to be left out; as :func:`training.ingest.files.read_file`; and for
    times that are of a later day, or all at midnight.
    """
    refuse_strays(folder)
    mapped = read_columns(settings, folder)
    if not has_delivery(folder, day):
        raise DataError(nothing(folder, day), breaks="delivered")
    tables = [table for table in TABLES if table_files(folder, table, day)]
    planned, told, later = [], {}, {}
    # a day with its late rows is as large as the day, so they wait in files
    with landing_lock(settings.layout), tempfile.TemporaryDirectory(prefix="mtf-landing-") as scratch:
        for table in tables:
            columns = mapped.get(table, Mapped())
            found, told[table], later[table] = _plan(settings, table, day, folder, columns, Path(scratch))
            planned += found
        for table, rows in later.items():
            _keep_later(settings, table, day, rows)
        notes = [_write(settings, one) for one in planned]
    return summary(day, notes, **told)


def _write(settings: Settings, one: _Planned) -> dict[str, Any]:
    rows = feather.read_table(one.rows)
    return write_partition(settings, one.table, one.day, rows, SOURCE, one.deliveries, one.columns)


def _plan(
    settings: Settings, table: str, day: date, folder: Path, mapped: Mapped, scratch: Path
) -> tuple[list[_Planned], dict[str, Any], pa.Table]:
    """What is to be written, what the delivery's files told, and the rows of later days.

    All that may be refused is read here, so that nothing is written of a delivery that is.
    """
    spec = table_spec(settings, table)
    asked = Asked(settings, table, spec, day, mapped)
    delivery = _read_delivery(asked, folder)
    if table == IMPRESSIONS and not delivery.rows.num_rows:
        names = ", ".join(str(file.path) for file in delivery.files)
        raise DataError(f"no row of {day}: there is nothing but a header in {names}", breaks="delivered")
    facts, later = delivery.told, delivery.rows.slice(0, 0)
    if table != USERS:  # a profile holds from its delivery on, whenever it was taken
        delivery, later = _without_later(asked, folder / table / f"dt={day}", delivery)
        facts |= {"later_rows": later.num_rows} if later.num_rows else {}
    days = {day} if table == USERS else {day, *_days(settings, spec, delivery.rows)}
    days |= set(_late_before(settings, table, day))
    planned = []
    for one in sorted(days):
        before = read_note(settings.layout.partition(table, one))
        if before is not None and before["source"] not in (*MERGED, BOTH) and one != day:
            raise DataError(
                f"{folder / table / f'dt={day}'} holds rows of {one}, landed from {before['source']}"
            )
        told = note_of(settings, table, one, SOURCE)
        known = [] if told is None else told["deliveries"]
        deliveries = sorted({*map(date.fromisoformat, known), day})
        parts = [
            delivery.rows if other == day else _read_delivery(replace(asked, day=other), folder).rows
            for other in deliveries
        ]
        files, _ = delivered(folder, table, deliveries[-1])
        columns = _source_columns([column_types(asked, path) for path in files])
        rows = scratch / f"{table}-{one}.arrow"
        with writing(rows):
            merged = _merge(settings, spec, table, one, parts)
            feather.write_feather(merged, rows, compression="uncompressed")
        planned.append(_Planned(table, one, rows, tuple(map(str, deliveries)), columns))
    return planned, facts, later


def _late_before(settings: Settings, table: str, day: date) -> list[date]:
    """Earlier days that hold rows of this delivery as it was landed before; they may have left it."""
    if table == USERS:
        return []
    found = []
    for one in settings.layout.days(table):
        if timedelta(0) < day - one <= timedelta(days=settings.logs.max_late_days + 1):
            told = note_of(settings, table, one, SOURCE)
            if told is not None and day.isoformat() in told.get("deliveries", ()):
                found.append(one)
    return found


def _without_later(asked: Asked, place: Path, delivery: Delivery) -> tuple[Delivery, pa.Table]:
    """The delivery without its rows of later days, which are few, and those rows."""
    settings, spec = asked.settings, asked.spec
    end = settings.day_start(asked.day + timedelta(days=1))
    is_later = pc.greater_equal(delivery.rows[spec.time], pa.scalar(end, TIMESTAMP))
    later, total = delivery.rows.filter(is_later), delivery.rows.num_rows
    if later.num_rows == 0:
        return delivery, later
    last = settings.calendar.day_of(pc.max(later[spec.time]).as_py())
    if later.num_rows > max(1, int(settings.validation.max_later_share * total)) or later.num_rows == total:
        raise DataError(
            f"{place} holds rows of {last}, a later day than the delivery's ({later.num_rows} of {total}): a "
            f"clock is wrong, or its days are not cut in calendar.timezone, {settings.calendar.timezone}",
            breaks="times",
        )
    return replace(delivery, rows=delivery.rows.filter(pc.invert(is_later))), later


def _keep_later(settings: Settings, table: str, day: date, rows: pa.Table) -> None:
    """Rows of later days are of no day that is known, and lie in the quarantine of the delivery's."""
    if table == USERS:
        return
    time = table_spec(settings, table).time
    path = settings.layout.quarantine(table, day) / DELIVERY
    rows = forgotten.without(settings.layout, rows, time, at=settings.day_start(day + timedelta(days=1)))
    if rows.num_rows:
        reason = f"expected: {time} lies in the delivery's day, {day}, or before"
        rows = rows.append_column("reason", pa.repeat(reason, rows.num_rows))
        write_atomic(path, lambda temporary: pq.write_table(rows, temporary))
    else:
        path.unlink(missing_ok=True)


def _merge(
    settings: Settings, spec: TableSpec, table: str, day: date, deliveries: Sequence[pa.Table]
) -> pa.Table:
    """Rows of ``day``, each key from the last delivery that has it."""
    if table != USERS:
        deliveries = [_of_day(settings, day, rows, spec.time) for rows in deliveries]
    if len(deliveries) == 1:
        return deliveries[0]
    key = ", ".join(f'"{name}"' for name in spec.key)
    numbered = [
        part.append_column("delivery", pa.repeat(n, part.num_rows)) for n, part in enumerate(deliveries)
    ]
    with connect() as connection:
        connection.register("rows", pa.concat_tables(numbered))
        return connection.sql(
            "select * exclude (delivery) from rows "
            f"qualify delivery = max(delivery) over (partition by {key})"
        ).to_arrow_table()


def _of_day(settings: Settings, day: date, rows: pa.Table, time: str) -> pa.Table:
    start, end = (pa.scalar(settings.day_start(one), TIMESTAMP) for one in (day, day + timedelta(days=1)))
    return rows.filter(pc.and_(pc.greater_equal(rows[time], start), pc.less(rows[time], end)))


def _days(settings: Settings, spec: TableSpec, rows: pa.Table) -> list[date]:
    """The local days that rows are of."""
    times = rows[spec.time]
    if pc.count(times).as_py() == 0:
        return []
    first, last = (settings.calendar.day_of(moment.as_py()) for moment in pc.min_max(times).values())
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    starts = np.array([settings.day_start(day).timestamp() for day in days]) * 1e6
    found = np.searchsorted(starts, pc.drop_null(times).cast(pa.int64()).to_numpy(), side="right")
    return [days[n - 1] for n in np.unique(found).tolist()]


def _read_delivery(asked: Asked, folder: Path) -> Delivery:
    """All files of one delivery under the contract's names and types."""
    spec, place = asked.spec, folder / asked.table / f"dt={asked.day}"
    paths, left_out = delivered(folder, asked.table, asked.day)
    if not paths:
        raise DataError(f"the delivery {place} is gone, but other days were landed from it")
    files = [read_file(asked, path, place) for path in paths]
    rows = pa.concat_tables([file.rows for file in files])
    if asked.table != USERS:
        _refuse_dates(asked, place, rows)
        if asked.mapped.source(spec.time).of == "item":
            rows = _request_times(spec, rows)
    return Delivery(rows, tuple(files), tuple(left_out))


def _refuse_dates(asked: Asked, place: Path, rows: pa.Table) -> None:
    """Several requests, and all of them at midnight: what was written is a date."""
    if pc.count_distinct(rows["request_id"]).as_py() < 2:
        return
    time = asked.spec.time
    own = asked.zone(asked.mapped.source(time)) or "UTC"
    for zone in dict.fromkeys(("UTC", own, asked.settings.calendar.timezone)):
        wall = pc.local_timestamp(rows[time].cast(pa.timestamp("us", zone)))
        if pc.all(pc.equal(wall, pc.floor_temporal(wall, unit="day"))).as_py():
            raise DataError(
                f"{place}: {time} is midnight ({zone}) in all of {rows.num_rows} rows: these are dates, "
                "without a time of day: bring the times",
                breaks="times",
            )


def _request_times(spec: TableSpec, rows: pa.Table) -> pa.Table:
    """Where every item has its own time, the request's is the first of them."""
    with connect() as connection:
        connection.register("rows", rows)
        first = f"min({spec.time}) over (partition by request_id, user_id)"
        return connection.sql(f"select * replace ({first} as {spec.time}) from rows").to_arrow_table()


def _source_columns(kinds: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Columns of a delivery's files with their types; files that differ are named."""
    found = sorted({name for kind in kinds for name in kind})
    return {name: " or ".join(sorted({kind.get(name, "absent") for kind in kinds})) for name in found}
