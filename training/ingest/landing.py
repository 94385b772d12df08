"""Landing: one partition a table and day, replaced as a whole or not at all.

Equal rows give equal bytes, whatever order they came in; the note beside them (``_landed.json``)
holds their hash and a revision that grows when a day's content changes after it was first landed. Whose
rows changed then, and up to when the online store had features at that moment, is in ``_late.json``.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract import version
from training.contract.errors import DataError
from training.contract.files import (
    locked,
    read_json,
    recover_folder,
    replaced_folder,
    sha256,
    write_atomic,
    write_json_atomic,
)
from training.contract.layout import DECISIONS, TABLES, USERS, Layout
from training.contract.log import LAKE_VERSION
from training.contract.records import read_record, recorded_days
from training.contract.settings import Settings
from training.ingest import corrections, forgotten, merging
from training.ingest.aside import read_parquet, set_aside, without_bad_rows
from training.ingest.schema import TableSpec, check_day, conform, table_spec

PART = "part-0.parquet"
NOTE = "_landed.json"
LATE = "_late.json"
BOTH = "files and service"  # a day's source, in its note, where each of the two brought rows of it


def land(settings: Settings, table: str, day: date, rows: pa.Table, source: str) -> dict[str, Any]:
    """Make ``rows`` the content of one day of ``impressions``, ``decisions`` or ``users``.

    Exact duplicate rows are removed and counted. Rows that share a key but differ are all kept: which
    of them is right is not for landing to say, and validation stops the day. Landing the same rows
    again, in any order, writes nothing.

    Returns the partition's note: table, day, rows, sha256 (of the Parquet file), source,
    contract_version, revision, duplicates_removed; and ``changed``: whether an earlier landing held
    other content. Raises :class:`DataError` as :func:`training.ingest.schema.conform` does, and for
    an impression or decision whose time is outside the local day.
    """
    with landing_lock(settings.layout):
        return write_partition(settings, table, day, rows, source)


def write_partition(
    settings: Settings,
    table: str,
    day: date,
    rows: pa.Table,
    source: str,
    deliveries: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    of_lake: bool = False,
) -> dict[str, Any]:
    """:func:`land` for a caller that holds the lock.

    Single rows that break a check are set aside (:mod:`training.validation.set_aside`), into the day's
    quarantine. ``of_lake`` says that ``rows`` are the partition's and not the source's, so that what was set
    aside before belongs to them.

    ``columns`` are the source's, with their types there, where ``rows`` no longer show them.

    ``deliveries`` names the parts of the source that the rows came from, so that landing the day
    again reads all of them: rows that came late with another day's delivery are not lost by it. Rows
    that a person mended (:mod:`training.ingest.corrections`) land as mended. A day that another of
    :data:`training.ingest.merging.MERGED` has brought, too, becomes the rows of both.
    """
    spec = table_spec(settings, table)
    where = f"{table} of {day} from {source}"
    columns = dict(columns) if columns is not None else {f.name: str(f.type) for f in rows.schema}
    rows = forgotten.without(settings.layout, conform(spec, rows, where), spec.time)
    partition = settings.layout.partition(table, day)
    recover_folder(partition)
    before = read_note(partition)
    told = {"deliveries": sorted(set(deliveries)), "columns": columns}
    rows, merged, twice = _with_others(settings, spec, day, before, source, rows, told)
    rows = corrections.apply(spec, rows, corrections.of_day(settings.layout, table, day))
    if of_lake:
        rows = pa.concat_tables([rows, set_aside(settings, spec, table, day)])
    if table != USERS:
        check_day(settings, day, rows[spec.time], where)
    ordered, duplicates = _canonical(spec, rows)
    duplicates += twice
    ordered = without_bad_rows(settings, table, day, ordered)
    content = encoded(ordered)
    digest = hashlib.sha256(content).hexdigest()
    changed = before is not None and before["sha256"] != digest
    note = {
        "table": table,
        "day": day.isoformat(),
        "rows": ordered.num_rows,
        "sha256": digest,
        "source": BOTH if merged else source,
        "contract_version": LAKE_VERSION,
        "revision": (before["revision"] if before else 0) + (before is None or changed),
        "duplicates_removed": duplicates,
        "set_aside": set_aside(settings, spec, table, day).num_rows,
        **told,
        **merged,
    }
    if not _holds(partition, digest):
        late = _late(settings, partition, ordered if changed and table != DECISIONS else None)
        with replaced_folder(partition) as fresh:
            write_atomic(fresh / PART, lambda temporary: temporary.write_bytes(content))
            write_json_atomic(fresh / NOTE, note)
            if late:
                write_json_atomic(fresh / LATE, late)
    elif note != before:  # the same rows, told by more deliveries or with other duplicates
        write_json_atomic(partition / NOTE, note)
    return {**note, "changed": changed}


def _with_others(
    settings: Settings,
    spec: TableSpec,
    day: date,
    before: Mapping[str, Any] | None,
    source: str,
    rows: pa.Table,
    told: Mapping[str, Any],
) -> tuple[pa.Table, dict[str, Any], int]:
    """The rows with those that another source brought of the day, what the note says of both, and how many
    exact duplicates were taken out."""
    layout, table = settings.layout, spec.table
    if source == BOTH:  # rewritten as it lies, for a correction
        assert before is not None
        return rows, {name: before[name] for name in ("requests_in_both", "parts")}, 0
    if source not in merging.MERGED:
        return rows, {}, 0
    known = merging.kept(layout, table, day)
    (other,) = (name for name in merging.MERGED if name != source)
    if other not in known:
        if before is None or before["source"] != other:
            return rows, {}, 0
        lying = conform(spec, read_partition(layout.partition(table, day)), f"{table} of {day}")
        lying = pa.concat_tables([lying, set_aside(settings, spec, table, day)])
        known[other] = {name: before.get(name, {}) for name in ("deliveries", "columns")}
        merging.keep(layout, table, day, other, lying, known[other])
    ordered, duplicates = _canonical(spec, rows)
    merging.keep(layout, table, day, source, ordered, told)
    theirs = conform(spec, read_parquet(merging.place(layout, table, day, other)), f"{table} of {day}")
    with connect() as connection:
        both, counts = merging.merge(connection, spec, {source: ordered, other: theirs})
    parts = {source: dict(told), other: known[other]}
    merged = {
        "requests_in_both": counts["requests_in_both"],
        "parts": {name: {**part, "rows": counts[name]} for name, part in sorted(parts.items())},
    }
    return both, merged, duplicates


def note_of(settings: Settings, table: str, day: date, source: str) -> dict[str, Any] | None:
    """What was noted of one source's rows of a day: deliveries and columns; None where it brought none."""
    note = read_note(settings.layout.partition(table, day))
    if note is None or note["source"] == source:
        return note
    found: dict[str, Any] | None = note.get("parts", {}).get(source)
    return found


def rows_of(
    settings: Settings, table: str, day: date, source: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """One source's own rows of a day that it brought."""
    part = merging.place(settings.layout, table, day, source)
    if part.exists():
        return read_parquet(part, columns)
    return read_partition(settings.layout.partition(table, day), columns)


def rows_by_source(note: Mapping[str, Any]) -> dict[str, int]:
    """How many rows of a partition each of its sources brought."""
    return {name: part["rows"] for name, part in note.get("parts", {note["source"]: note}).items()}


def landed(settings: Settings, day: date) -> dict[str, Any]:
    """The record of a day that is already in the lake, from its partitions' notes."""
    notes = []
    for table in TABLES:
        partition = settings.layout.partition(table, day)
        recover_folder(partition)
        if (note := read_note(partition)) is not None:
            notes.append({**note, "changed": False})
    return summary(day, notes)


def changed_days(settings: Settings) -> list[date]:
    """Days whose landed content is newer than what their last daily run landed, oldest first.

    Late rows change a day after its run; the day is in this list until it is run again.
    """
    found = []
    for day in recorded_days(settings.layout):
        record = read_record(settings.layout, day, "land") or {}
        for table, seen in record.get("tables", {}).items():
            note = read_note(settings.layout.partition(table, day))
            if note is not None and note["revision"] > seen.get("revision", note["revision"]):
                found.append(day)
                break
    return found


def late_users(settings: Settings, tables: Sequence[str], before: date) -> pa.Table:
    """Users of whose rows of days before ``before`` some changed after they were first landed.

    A row a user: ``user_id``, and ``until``, up to when the online store had features at the last such
    change. What was served with features up to ``until`` or less could not know the changed rows.
    """
    latest: dict[int | str, str] = {}
    for table in tables:
        for day in settings.layout.days(table):
            path = settings.layout.partition(table, day) / LATE
            if day < before and path.exists():
                for until, users in read_json(path).items():
                    latest |= {user: until for user in users if until > latest.get(user, "")}
    kind = table_spec(settings, USERS).schema.field("user_id").type
    instants = [datetime.fromisoformat(until) for until in latest.values()]
    return pa.table(
        {"user_id": pa.array(latest, kind), "until": pa.array(instants, pa.timestamp("us", "UTC"))}
    )


def _late(settings: Settings, partition: Path, rows: pa.Table | None) -> dict[str, list[int]]:
    """The partition's ``{until: users}`` once its rows are replaced by ``rows`` (None: they are not).

    Predictions are no part of a user's features. Before the first materialisation nothing can be late.
    """
    path = partition / LATE
    late: dict[str, list[int]] = read_json(path) if path.exists() else {}
    if rows is None or not settings.layout.materialised.exists():
        return late
    until = read_json(settings.layout.materialised)["until"]
    columns = ", ".join(f'"{name}"' for name in rows.column_names if not name.startswith("p_"))
    try:
        old = read_partition(partition)
    except DataError:  # broken since it was landed: nothing is known of what it was
        old = rows.slice(0, 0)
    with connect() as connection:
        connection.register("new_rows", rows)
        connection.register("old_rows", old)
        changed = connection.execute(
            f"select distinct user_id from (select user_id, hash({columns}) as h, 1 as n from new_rows "
            f"union all select user_id, hash({columns}), -1 from old_rows) "
            "where user_id is not null group by user_id, h having sum(n) <> 0"
        ).fetchall()
    users = {user for (user,) in changed} | set(late.get(until, []))
    return {**late, until: sorted(users)} if users else late


def summary(day: date, notes: Sequence[dict[str, Any]], **counts: dict[str, int]) -> dict[str, Any]:
    """The record of a landing: per table the rows of ``day``, every day touched and what changed.

    ``counts`` adds, by table, what else an adapter counted.
    """
    tables: dict[str, dict[str, Any]] = {}
    for note in notes:
        entry = tables.setdefault(
            note["table"], {"rows": 0, "days": [], "changed_days": [], "duplicates_removed": 0}
        )
        entry["days"].append(note["day"])
        if note.get("set_aside"):
            entry["set_aside"] = entry.get("set_aside", 0) + note["set_aside"]
        if note["changed"]:
            entry["changed_days"].append(note["day"])
        if note["day"] == day.isoformat():
            entry["rows"] = note["rows"]
            entry["duplicates_removed"] += note["duplicates_removed"]
            entry |= {name: note[name] for name in ("sha256", "revision", "source", "contract_version")}
            if "parts" in note:
                entry |= {
                    "rows_by_source": rows_by_source(note),
                    "requests_in_both": note["requests_in_both"],
                }
    for table, extra in counts.items():
        if table in tables:
            tables[table] |= extra
    for entry in tables.values():
        entry["days"], entry["changed_days"] = sorted(entry["days"]), sorted(entry["changed_days"])
    return {"day": day.isoformat(), "tables": tables}


def together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of several landings of one day, one after the other."""
    first, *others = records
    tables = {name: dict(entry) for name, entry in first["tables"].items()}
    for record in others:
        for name, entry in record["tables"].items():
            before = tables.get(name, {})
            lists = {key: sorted({*before.get(key, ()), *entry[key]}) for key in ("days", "changed_days")}
            tables[name] = {**before, **entry, **lists}
    return {**first, "tables": tables}


def read_note(partition: Path) -> dict[str, Any] | None:
    """The note beside a landed partition; None when the day was never landed (or not by this code)."""
    path = partition / NOTE
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; land the day again after removing it") from error


def read_partition(partition: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A landed partition's rows; :class:`DataError` naming the file when it cannot be read."""
    return read_parquet(partition / PART, columns)


def connect(database: Path | str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A DuckDB connection whose timestamps are UTC."""
    connection = duckdb.connect(str(database))
    connection.execute("set timezone = 'UTC'")
    connection.execute("set enable_progress_bar = false")
    return connection


def fetch_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The one row of a query. (``fetchone`` would leave the connection busy with an open result.)"""
    return connection.execute(query).fetchall()[0]


@contextmanager
def landing_lock(layout: Layout) -> Iterator[None]:
    """One landing at a time: late rows make a day's landing read and replace other days too."""
    with locked(landing_lock_file(layout)):
        version.keep(layout)
        yield


def landing_lock_file(layout: Layout) -> Path:
    return layout.root / "lake" / ".landing.lock"


def _canonical(spec: TableSpec, rows: pa.Table) -> tuple[pa.Table, int]:
    """Rows in the table's order without exact duplicates, and how many of these there were."""
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in spec.order])
    ordered = rows.combine_chunks().take(order)
    if _has_ties(ordered, spec.order):  # then every column has a say in the order
        columns = ", ".join(f'"{name}"' for name in (*spec.order, *spec.schema.names))
        with connect() as connection:
            connection.register("rows", rows)
            ordered = (
                connection.sql(f"from (select distinct * from rows) order by {columns}")
                .to_arrow_table()
                .cast(spec.schema)
            )
    return ordered, rows.num_rows - ordered.num_rows


def _has_ties(ordered: pa.Table, columns: Sequence[str]) -> bool:
    if ordered.num_rows < 2:
        return False
    tied = None
    for name in columns:
        column = ordered[name].combine_chunks()
        same = pc.fill_null(pc.equal(column[1:], column[:-1]), True)
        tied = same if tied is None else pc.and_(tied, same)
    return pc.any(tied).as_py()


def encoded(rows: pa.Table) -> pa.Buffer:
    """A partition's file: equal rows in their order give equal bytes."""
    # a dictionary of values that hardly repeat costs more time than the rest of the writing
    repeating = [
        field.name
        for field in rows.schema
        if field.type in (pa.string(), pa.int8(), pa.int32()) and field.name != "request_id"
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.combine_chunks(), sink, compression="zstd", use_dictionary=repeating, row_group_size=256 * 1024
    )
    return sink.getvalue()


def _holds(partition: Path, digest: str) -> bool:
    """Whether the partition is whole, nothing more, and its rows are those of ``digest``."""
    if not partition.is_dir() or {path.name for path in partition.iterdir()} - {LATE} != {PART, NOTE}:
        return False
    return sha256(partition / PART) == digest
