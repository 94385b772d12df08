"""Taking a user out of the lake: partitions, each source's own rows, quarantine and corrections.

A partition is then byte by byte what landing the other users' rows makes. Its revision stays, so that no day
waits for a rerun; its content is another, so that the next transform makes its tables anew.
"""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract.files import (
    read_json,
    recover_folder,
    replaced_folder,
    sha256,
    write_atomic,
    write_json_atomic,
)
from training.contract.layout import TABLES
from training.contract.log import Id
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.ingest import merging
from training.ingest.aside import read_parquet, set_aside
from training.ingest.landing import LATE, NOTE, PART, connect, encoded, read_note
from training.ingest.schema import conform, table_spec

OWNERS = ("user_id", "original", "fixed")  # columns that say whose a row is; a correction's are structs


def forget(settings: Settings, user: Id) -> int:
    """Take a user out of the lake; how many rows they had. The caller holds the landing's lock.

    Each file is replaced as a whole or not at all, and running it again does what a kill has left.
    """
    lake, removed = settings.layout.root / "lake", 0
    for path in sorted(lake.glob("*/*/dt=*/*.parquet")):
        kind = path.relative_to(lake).parts[0]
        if kind == "parts":
            removed += _without(path, user, _write_part)
        elif kind == "quarantine":
            removed += _without(path, user, pq.write_table, empty=False)
        elif kind == "corrections":  # one without pairs stays: the next one's number counts it
            removed += _without(path, user, pq.write_table)
    for table in TABLES:
        for day in settings.layout.days(table):
            removed += _forget_in_partition(settings, table, day, user)
    return removed


def _write_part(rows: pa.Table, to: Path) -> None:
    pq.write_table(_as_written(rows), to, compression="zstd")


def _as_written(rows: pa.Table) -> pa.Table:
    """Rows as landing has them, and not as Parquet gives them back, which names a list's entries itself.

    By their own columns: an old day keeps those that the settings do not name any more.
    """
    types = [pa.list_(f.type.value_type) if pa.types.is_list(f.type) else f.type for f in rows.schema]
    return rows.cast(pa.schema(list(zip(rows.schema.names, types, strict=True))))


def _without(path: Path, user: Id, write: Callable[[pa.Table, Path], object], *, empty: bool = True) -> int:
    """Rewrite a file without the user's rows; ``empty``: also where none is left, else it goes."""
    rows = read_parquet(path)
    kept = of_others(rows, user)
    if kept.num_rows < rows.num_rows:
        if kept.num_rows or empty:
            write_atomic(path, lambda temporary: write(kept, temporary))
        else:
            path.unlink()
    return rows.num_rows - kept.num_rows


def of_others(rows: pa.Table, user: Id) -> pa.Table:
    """Rows that are not the user's, whatever type their ids are of; of no user are not theirs."""
    for name in OWNERS:
        if name not in rows.column_names:
            continue
        column = rows[name]
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "user_id")
        rows = rows.filter(pc.fill_null(pc.not_equal(pc.cast(column, pa.string()), str(user)), True))
    return rows


def _forget_in_partition(settings: Settings, table: str, day: date, user: Id) -> int:
    folder = settings.layout.partition(table, day)
    recover_folder(folder)
    note = read_note(folder)
    if note is None:  # not landed by this code
        return sum(_without(path, user, pq.write_table) for path in sorted(folder.glob("*.parquet")))
    rows = read_parquet(folder / PART)
    kept = of_others(rows, user)
    late = read_json(folder / LATE) if (folder / LATE).exists() else {}
    others = {until: [one for one in users if str(one) != str(user)] for until, users in late.items()}
    others = {until: users for until, users in others.items() if users}
    removed = rows.num_rows - kept.num_rows
    if removed or others != late:
        with replaced_folder(folder) as fresh:
            write_atomic(fresh / PART, lambda temporary: temporary.write_bytes(encoded(_as_written(kept))))
            digest = sha256(fresh / PART)
            write_json_atomic(fresh / NOTE, note | {"rows": kept.num_rows, "sha256": digest})
            if others:
                write_json_atomic(fresh / LATE, others)
    _tell_anew(settings, table, day)
    return removed


def _tell_anew(settings: Settings, table: str, day: date) -> None:
    """The partition's note, and what its landing recorded of it, as after a landing without the user."""
    folder = settings.layout.partition(table, day)
    note = read_note(folder)
    assert note is not None
    told: dict[str, Any] = {}
    if "set_aside" in note:
        spec = table_spec(settings, table)
        told["set_aside"] = set_aside(settings, spec, table, day).num_rows
    if "parts" in note:
        counts = _merged(settings, table, day)
        told["requests_in_both"] = counts["requests_in_both"]
        told["parts"] = {name: {**part, "rows": counts[name]} for name, part in note["parts"].items()}
    if note | told != note:
        note |= told
        write_json_atomic(folder / NOTE, note)
    record = read_record(settings.layout, day, "land")
    entry = ((record or {}).get("tables") or {}).get(table)
    if record is None or entry is None or entry.get("sha256") == note["sha256"]:
        return
    if entry.get("revision") != note["revision"]:
        return  # late rows have changed it since: the day waits for its run
    entry |= {name: note[name] for name in ("rows", "sha256")}
    if "set_aside" in entry:
        entry["set_aside"] = note["set_aside"]
    if "parts" in note:
        by_source = {name: part["rows"] for name, part in note["parts"].items()}
        entry |= {"rows_by_source": by_source, "requests_in_both": note["requests_in_both"]}
    write_record(settings.layout, day, "land", record)


def _merged(settings: Settings, table: str, day: date) -> dict[str, int]:
    spec = table_spec(settings, table)
    parts = {
        name: conform(spec, read_parquet(merging.place(settings.layout, table, day, name)), table)
        for name in merging.MERGED
    }
    with connect() as connection:
        return merging.merge(connection, spec, parts)[1]
