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

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.files import write_atomic
from training.contract.layout import IMPRESSIONS, TABLES, USERS
from training.contract.settings import Settings
from training.ingest import forgotten
from training.ingest.aside import DELIVERY
from training.ingest.columns_file import COLUMNS_FILE, Mapped, read_columns
from training.ingest.files import SUFFIXES, Asked, FileRows, column_types, is_data, read_file, slips
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
_DELIVERY = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_HIDDEN = ("_", ".")


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


def land_files(settings: Settings, day: date, folder: Path) -> dict[str, Any]:
    """Land the delivery of ``day`` in ``folder``; late rows land in their own days.

    The record adds by table ``files``, ``left_out`` (names that begin with ``_`` or ``.``),
    ``unread_columns`` and ``absent_columns`` of the delivery.

    Raises :class:`DataError` when there is no ``impressions/dt=<day>/`` file or no row in them; naming a file
    or folder that is neither read nor to be left out; as :func:`training.ingest.files.read_file`; and for
    times that are of a later day, or all at midnight.
    """
    _refuse_strays(folder)
    mapped = read_columns(settings, folder)
    notes, told = [], {}
    with landing_lock(settings.layout):
        for table in TABLES:
            if not table_files(folder, table, day):
                if table == IMPRESSIONS:
                    raise DataError(_nothing(folder, day), breaks="delivered")
                continue
            landed, told[table] = _land_table(settings, table, day, folder, mapped.get(table, Mapped()))
            notes += landed
    return summary(day, notes, **told)


def has_delivery(folder: Path, day: date) -> bool:
    """Whether a folder has impressions of the day."""
    return bool(table_files(folder, IMPRESSIONS, day))


def delivery_files(folder: Path, day: date) -> list[Path]:
    """All files of the delivery of ``day``, and ``columns.json`` where there is one."""
    names = [folder / COLUMNS_FILE] if (folder / COLUMNS_FILE).exists() else []
    return names + [path for table in TABLES for path in table_files(folder, table, day)]


def delivered_days(folder: Path) -> list[date]:
    """Days whose impressions have a folder, oldest first."""
    names = [path.name for path in _entries(folder / IMPRESSIONS)]
    return sorted(date.fromisoformat(name[3:]) for name in names if _is_delivery(name))


def _land_table(
    settings: Settings, table: str, day: date, folder: Path, mapped: Mapped
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Notes of the partitions that were written, and what the delivery's files told."""
    spec = table_spec(settings, table)
    asked = Asked(settings, table, spec, day, mapped)
    delivery = _read_delivery(asked, folder)
    if table == IMPRESSIONS and not delivery.rows.num_rows:
        names = ", ".join(str(file.path) for file in delivery.files)
        raise DataError(f"no row of {day}: there is nothing but a header in {names}", breaks="delivered")
    facts = delivery.told
    if table != USERS:  # a profile holds from its delivery on, whenever it was taken
        delivery, later = _without_later(asked, folder / table / f"dt={day}", delivery)
        facts |= {"later_rows": later} if later else {}
    days = {day} if table == USERS else {day, *_days(settings, spec, delivery.rows)}
    notes = []
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
        rows = _merge(settings, spec, table, one, parts)
        files, _ = _delivered(folder, table, deliveries[-1])
        columns = _source_columns([column_types(asked, path) for path in files])
        notes.append(
            write_partition(settings, table, one, rows, SOURCE, [str(d) for d in deliveries], columns)
        )
    return notes, facts


def _without_later(asked: Asked, place: Path, delivery: Delivery) -> tuple[Delivery, int]:
    """The delivery without its rows of later days, which are few, and how many they are.

    They are of no day that is known, and lie in the quarantine of the delivery's.
    """
    settings, spec = asked.settings, asked.spec
    end = settings.day_start(asked.day + timedelta(days=1))
    is_later = pc.greater_equal(delivery.rows[spec.time], pa.scalar(end, TIMESTAMP))
    later, total = delivery.rows.filter(is_later), delivery.rows.num_rows
    path = settings.layout.quarantine(asked.table, asked.day) / DELIVERY
    if later.num_rows == 0:
        path.unlink(missing_ok=True)
        return delivery, 0
    last = settings.calendar.day_of(pc.max(later[spec.time]).as_py())
    if later.num_rows > max(1, int(settings.validation.max_later_share * total)) or later.num_rows == total:
        raise DataError(
            f"{place} holds rows of {last}, a later day than the delivery's ({later.num_rows} of {total}): a "
            f"clock is wrong, or its days are not cut in calendar.timezone, {settings.calendar.timezone}",
            breaks="times",
        )
    rows = forgotten.without(settings.layout, later, spec.time, at=end)
    if rows.num_rows:
        reason = f"expected: {spec.time} lies in the delivery's day, {asked.day}, or before"
        rows = rows.append_column("reason", pa.repeat(reason, rows.num_rows))
        write_atomic(path, lambda temporary: pq.write_table(rows, temporary))
    else:
        path.unlink(missing_ok=True)
    kept = delivery.rows.filter(pc.invert(is_later))
    return replace(delivery, rows=kept), later.num_rows


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
    paths, left_out = _delivered(folder, asked.table, asked.day)
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


def table_files(folder: Path, table: str, day: date) -> list[Path]:
    """Every file below a delivery's folder that is not to be left out."""
    place = folder / table / f"dt={day.isoformat()}"
    return sorted(path for path in place.rglob("*") if path.is_file() and not _hidden(path, place))


def _delivered(folder: Path, table: str, day: date) -> tuple[list[Path], list[str]]:
    """The files to be read, and the names of those that would be if they were not hidden."""
    place = folder / table / f"dt={day.isoformat()}"
    paths = table_files(folder, table, day)
    for path in paths:
        if not is_data(path):
            raise DataError(
                f"{path}: not a file that is read ({', '.join(SUFFIXES)}): write it as one of these, or let "
                "its name begin with _ to leave it out",
                breaks="readable",
            )
    hidden = [path for path in place.rglob("*") if path.is_file() and is_data(path) and _hidden(path, place)]
    return paths, sorted(str(path.relative_to(place)) for path in hidden)


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(_HIDDEN) for part in path.relative_to(place).parts)


def _refuse_strays(folder: Path) -> None:
    """Folders and files beside the deliveries that look like logs and are none."""
    beside = [path.name for path in _entries(folder) if path.name not in TABLES and path.is_dir()]
    for table, theirs in slips([t for t in TABLES if not (folder / t).is_dir()], beside):
        raise DataError(
            f"{folder / theirs}: is it {table}? Then call it {folder / table}", breaks="delivered"
        )
    for table in TABLES:
        for path in _entries(folder / table):
            if not (path.is_dir() and _is_delivery(path.name)):
                raise DataError(
                    f"{path}: not a delivery: expected {folder / table / 'dt=2026-01-05'}, a folder a day",
                    breaks="delivered",
                )


def _entries(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(_HIDDEN))


def _is_delivery(name: str) -> bool:
    try:
        return bool(_DELIVERY.fullmatch(name)) and bool(date.fromisoformat(name[3:]))
    except ValueError:
        return False


def _nothing(folder: Path, day: date) -> str:
    there = [path.name for path in _entries(folder / IMPRESSIONS)]
    place = folder / IMPRESSIONS / f"dt={day.isoformat()}"
    found = f"; there are {there[0]} to {there[-1]}" if there else ""
    if not folder.is_dir():
        found = f"; there is no folder {folder}"
    return f"no file of {day}: expected {place}/ with {', '.join(SUFFIXES)} files{found}"
