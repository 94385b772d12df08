"""Your own logs: Parquet or CSV files, landed as they are or after renaming columns.

Put a day's files where ``logs.folder`` of the settings points (``logs.source: files``)::

    my_logs/
      columns.json                      optional: names of your columns, see below
      impressions/dt=2026-01-05/*       .parquet, .csv or .csv.gz; any number of files, any names
      decisions/dt=2026-01-05/*         optional; Parquet only, for it holds lists
      users/dt=2026-01-05/*             optional: users whose profile is new or changed

A ``dt=`` folder is a *delivery*: what became known on that day. Rows of earlier days in it are late:
they land in their own day, and mark it changed; rows of a later day are refused. A row of a later
delivery replaces one of the same key from an earlier delivery; rows of one delivery that share a key are
both landed, for validation to stop the day. Deliveries must be kept: landing a day again reads all that it
was landed from.

The columns are those of :mod:`training.contract.columns`. ``columns.json`` maps a contract's name to
yours where they differ; columns that nobody names are left out::

    {"impressions": {"request_id": "req", "item_id": "video", "p_click": "ctr"}}

Times are timestamps (without a zone: UTC), ISO-8601 text with an offset, or integers of unix
milliseconds. In CSV an empty field is null. Predictions you do not have (``p_<head>``) may be absent;
signals (``is_click`` …) may not. To read anything else (a database, JSON), copy this file, replace
:func:`_read_file`, and hand the rows to :func:`training.ingest.land`.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, TABLES, USERS
from training.contract.settings import Settings
from training.ingest.csv_files import read_table
from training.ingest.landing import (
    connect,
    landing_lock,
    read_note,
    read_parquet,
    summary,
    write_partition,
)
from training.ingest.schema import TableSpec, conform, local_day_sql, table_spec

SOURCE = "files"
COLUMNS_FILE = "columns.json"
_SUFFIXES = (".parquet", ".csv", ".csv.gz")


def land_files(settings: Settings, day: date, folder: Path) -> dict[str, Any]:
    """Land the delivery of ``day`` in ``folder``; late rows land in their own days.

    Raises :class:`DataError` when there is no ``impressions/dt=<day>/`` file, and naming file, column
    and row for a missing column, a value of the wrong type, or a file that is truncated or unreadable.
    """
    names = _column_names(folder)
    notes = []
    with landing_lock(settings.layout):
        for table in TABLES:
            if not _files(folder, table, day):
                if table == IMPRESSIONS:
                    raise DataError(
                        f"no file of {day}: expected {folder / table / f'dt={day}'}/ with "
                        f"{', '.join(_SUFFIXES)} files",
                        breaks="delivered",
                    )
                continue
            notes += _land_table(settings, table, day, folder, names.get(table, {}))
    return summary(day, notes)


def delivery_files(folder: Path, day: date) -> list[Path]:
    """All files of the delivery of ``day``, and ``columns.json`` where there is one."""
    names = [folder / COLUMNS_FILE] if (folder / COLUMNS_FILE).exists() else []
    return names + [path for table in TABLES for path in _files(folder, table, day)]


def _land_table(
    settings: Settings, table: str, day: date, folder: Path, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    spec = table_spec(settings, table)
    delivery = _read_delivery(spec, folder, table, day, names)
    # a profile holds from its delivery on, whenever it was taken
    days = {day} if table == USERS else {day, *_days(settings, spec, delivery)}
    if max(days) > day:
        raise DataError(
            f"{folder / table / f'dt={day}'} holds rows of {max(days)}, a later day than the delivery's: a "
            "clock or a time zone is wrong",
            breaks="times",
        )
    notes = []
    for one in sorted(days):
        before = read_note(settings.layout.partition(table, one))
        if before is not None and before["source"] != SOURCE and one != day:
            raise DataError(
                f"{folder / table / f'dt={day}'} holds rows of {one}, landed from {before['source']}"
            )
        known = before["deliveries"] if before is not None and before["source"] == SOURCE else []
        deliveries = sorted({*map(date.fromisoformat, known), day})
        parts = [
            delivery if other == day else _read_delivery(spec, folder, table, other, names)
            for other in deliveries
        ]
        rows = _merge(settings, spec, table, one, parts)
        columns = _source_columns(_files(folder, table, deliveries[-1]), names)
        notes.append(
            write_partition(settings, table, one, rows, SOURCE, [str(d) for d in deliveries], columns)
        )
    return notes


def _merge(
    settings: Settings, spec: TableSpec, table: str, day: date, deliveries: Sequence[pa.Table]
) -> pa.Table:
    """Rows of ``day``, each key from the last delivery that has it."""
    key = ", ".join(f'"{name}"' for name in spec.key)
    numbered = [
        part.append_column("delivery", pa.repeat(n, part.num_rows)) for n, part in enumerate(deliveries)
    ]
    of_day = "true" if table == USERS else f"{local_day_sql(settings, spec.time)} = date '{day}'"
    with connect() as connection:
        connection.register("rows", pa.concat_tables(numbered))
        return connection.sql(
            f"select * exclude (delivery) from rows where {of_day} "
            f"qualify delivery = max(delivery) over (partition by {key})"
        ).to_arrow_table()


def _days(settings: Settings, spec: TableSpec, rows: pa.Table) -> list[date]:
    with connect() as connection:
        connection.register("rows", rows)
        query = f"select distinct {local_day_sql(settings, spec.time)} from rows"
        return [row[0] for row in connection.execute(query).fetchall()]


def _read_delivery(
    spec: TableSpec, folder: Path, table: str, day: date, names: Mapping[str, str]
) -> pa.Table:
    """All files of one delivery under the contract's names and types."""
    files = _files(folder, table, day)
    if not files:
        raise DataError(
            f"the delivery {folder / table / f'dt={day}'} is gone, but other days were landed from it"
        )
    unknown = [name for name in names if name not in spec.schema.names]
    if unknown:
        raise DataError(
            f"{folder / COLUMNS_FILE}: {table} has no column {unknown[0]!r}: {', '.join(spec.schema.names)}"
        )
    parts = []
    for path in files:
        rows = conform(spec, _rename(_read_file(path, spec, names), names, path), str(path))
        null = rows[spec.time].null_count and rows[spec.time].is_null().index(True).as_py()
        if rows[spec.time].null_count:
            message = f"{path}: column {spec.time}, row {null + 1} is null: it belongs to no day"
            raise DataError(message, breaks="times")
        parts.append(rows)
    return pa.concat_tables(parts)


def _source_columns(files: Sequence[Path], names: Mapping[str, str]) -> dict[str, str]:
    """Columns of a delivery under the contract's names, with their types; files that differ are named.

    A CSV file has no types of its own: its columns are ``text``.
    """
    ours = {theirs: name for name, theirs in names.items()}
    kinds: list[dict[str, str]] = []
    for path in files:
        if path.suffix == ".parquet":
            schema = pq.read_schema(path)
            kinds.append({ours.get(f.name, f.name): str(f.type) for f in schema})
        else:
            with pc_csv.open_csv(path) as reader:
                kinds.append({ours.get(name, name): "text" for name in reader.schema.names})
    found = sorted({name for kind in kinds for name in kind})
    return {name: " or ".join(sorted({kind.get(name, "absent") for kind in kinds})) for name in found}


def _rename(rows: pa.Table, names: Mapping[str, str], path: Path) -> pa.Table:
    missing = [theirs for theirs in names.values() if theirs not in rows.column_names]
    if missing:
        message = f"{path}: missing column {missing[0]}, which {COLUMNS_FILE} names"
        raise DataError(message, breaks="columns")
    ours = {theirs: name for name, theirs in names.items()}
    kept = [name for name in rows.column_names if name in ours or name not in names]
    return rows.select(kept).rename_columns([ours.get(name, name) for name in kept])


def _read_file(path: Path, spec: TableSpec, names: Mapping[str, str]) -> pa.Table:
    """The rows of one file, under the file's own column names."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    lists = [
        field.name for field in spec.schema if pa.types.is_list(field.type) and field.name in spec.required
    ]
    if lists:
        message = f"{path}: column {lists[0]} is a list, which CSV cannot hold: bring Parquet"
        raise DataError(message, breaks="types")
    types = {
        names.get(field.name, field.name): pa.string() if field.name == spec.time else field.type
        for field in spec.schema
    }
    return read_table(path, types)


def _files(folder: Path, table: str, day: date) -> list[Path]:
    delivery = folder / table / f"dt={day.isoformat()}"
    return sorted(
        p for p in delivery.glob("*") if p.name.endswith(_SUFFIXES) and not p.name.startswith((".", "_"))
    )


def _column_names(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / COLUMNS_FILE
    if not path.exists():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        tables = {str(table): dict(columns) for table, columns in dict(names).items()}
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: expected an object of tables, each an object of column names: {error}"
        ) from error
    unknown = [table for table in tables if table not in TABLES]
    if unknown:
        raise DataError(f"{path}: unknown table {unknown[0]!r}; expected {', '.join(TABLES)}")
    return tables
