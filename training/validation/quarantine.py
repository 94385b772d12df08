"""Quarantine: rows that broke a check, to be looked at, mended outside, and landed in their own day.

Below ``lake/quarantine/<table>/dt=<day>/`` lie rows with a ``reason``: in ``validation.parquet`` the bad ones
of a stopped day, as they lie in the lake; in ``set_aside.parquet`` those that landing left out of the day
(:mod:`training.validation.set_aside`); in ``delivery.parquet`` those of a delivery that belong to no day.
:func:`export` numbers them; :func:`land` takes the mended file back, checks each
row as validation would, and keeps the change as a correction (:mod:`training.ingest.corrections`), which
also holds when the day's source is landed again.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.files import sha256, write_atomic
from training.contract.layout import TABLES, USERS, Layout, day_of_folder
from training.contract.records import now
from training.contract.settings import Settings
from training.ingest import corrections, values
from training.ingest.aside import DELIVERY, SET_ASIDE, read_parquet, set_aside
from training.ingest.corrections import Pair, Row
from training.ingest.csv_files import read_text
from training.ingest.landing import (
    connect,
    landing_lock,
    read_note,
    read_partition,
    write_partition,
)
from training.ingest.schema import TIMESTAMP, TableSpec, conform, local_day_sql, table_spec

ROW = "quarantine_row"  # which row of the quarantine a mended row stands for, from 0
REASON = "reason"
FILE = "validation.parquet"
FILES = (DELIVERY, SET_ASIDE, FILE)  # in the order of their rows' numbers
NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class Held:
    """What is in quarantine of one table and day: rows by what they break."""

    day: date
    table: str
    rows: int
    reasons: Mapping[str, int]


def held(settings: Settings, day: date | None = None) -> list[Held]:
    """Every quarantined table of a day, or of all days, oldest first."""
    found = []
    for table in TABLES:
        for folder in settings.layout.quarantine(table, date.min).parent.glob("dt=*"):
            one = day_of_folder(folder)
            if day in (None, one) and (paths := _files(settings.layout, table, one)):
                reasons = [
                    reason for path in paths for reason in read_parquet(path, [REASON])[REASON].to_pylist()
                ]
                found.append(Held(one, table, len(reasons), dict(Counter(reasons).most_common())))
    return sorted(found, key=lambda entry: (entry.day, entry.table))


def mended(layout: Layout, day: date | None = None) -> list[dict[str, Any]]:
    """The record of every correction of a day, or of all days, oldest first."""
    found = []
    for table in TABLES:
        for folder in layout.corrections(table, date.min).parent.glob("dt=*"):
            one = day_of_folder(folder)
            if day in (None, one):
                found += [corrections.audit(path) for path in corrections.files(layout, table, one)]
    return sorted(found, key=lambda entry: entry["ts"])


def rows(settings: Settings, table: str, day: date, reason: str | None = None) -> pa.Table:
    """The quarantined rows, numbered in ``quarantine_row``; ``reason`` keeps those whose reason holds it.

    Raises :class:`DataError` when nothing of the table and day is in quarantine.
    """
    paths = _files(settings.layout, table, day)
    if not paths:
        raise DataError(f"no {table} of {day} are in quarantine: `mtf quarantine list` says what is")
    content = pa.concat_tables([read_parquet(path) for path in paths], promote_options="default")
    content = content.add_column(0, ROW, pa.array(range(content.num_rows), pa.int64()))
    if reason is not None:
        content = content.filter(pc.match_substring(content[REASON], reason, ignore_case=True))
    return content


def _files(layout: Layout, table: str, day: date) -> list[Path]:
    return [path for name in FILES if (path := layout.quarantine(table, day) / name).exists()]


def export(settings: Settings, table: str, day: date, path: Path) -> int:
    """Write the numbered rows to ``path``, a .parquet or .csv file; returns how many.

    In CSV a value that is not a number becomes an empty field, which is read as null again.
    """
    content = rows(settings, table, day)
    if path.suffix == ".parquet":
        write_atomic(path, lambda temporary: pq.write_table(content, temporary))
    elif path.suffix == ".csv":
        lists = [field.name for field in content.schema if pa.types.is_list(field.type)]
        if lists:
            raise DataError(f"{path}: column {lists[0]} is a list, which CSV cannot hold: export to .parquet")
        write_atomic(path, lambda temporary: pc_csv.write_csv(content, temporary))
    else:
        raise DataError(f"{path}: expected a name ending in .parquet or .csv")
    return content.num_rows


def land(
    settings: Settings, table: str, day: date, path: Path, *, by: str, why: str, drop_missing: bool = False
) -> dict[str, Any]:
    """Put the mended rows of ``path`` in place of the quarantined ones, in the days of their own times.

    Rows of the file that equal the quarantined ones are left as they are; with ``drop_missing`` the
    quarantined rows that the file no longer holds are taken out of the day. The record is ``day``,
    ``table``, ``by``, ``why``, ``ts``, ``file`` (its SHA-256), ``mended`` and ``dropped`` (rows), ``days``
    (that were written) and ``changed``; the same file twice changes nothing. The days written are then
    in :func:`training.ingest.changed_days` until they are run again.

    Raises :class:`DataError`, and changes nothing, for a row that still breaks a check, one whose own day
    was never landed, one that stands for no quarantined row, and when the day's content is no longer
    the one that was quarantined.
    """
    spec = table_spec(settings, table)
    pairs = _pairs(settings, spec, table, day, path, drop_missing)
    by_day = _by_day(settings, spec, table, day, pairs)
    record = {
        **{"day": day.isoformat(), "table": table, "by": by, "why": why},
        "ts": now(),
        "file": sha256(path),
        "mended": sum(fixed is not None for _, fixed in pairs),
        "dropped": sum(fixed is None for _, fixed in pairs),
        "days": sorted(one.isoformat() for one in by_day),
    }
    with landing_lock(settings.layout):
        lying = {one: _lying(settings, spec, table, one) for one in {day, *by_day}}
        if all(_is_landed(lying[one], by_day[one]) for one in by_day):
            return {**record, "changed": False}
        _refuse_gone(spec, table, day, lying[day], by_day.get(day, []))
        tables = {one: corrections.pairs_table(spec, some) for one, some in by_day.items()}
        for one, some in by_day.items():
            after = corrections.apply(spec, lying[one], [tables[one]])
            _refuse_broken(settings, table, one, after, [fixed for _, fixed in some if fixed is not None])
        # the other days first: killed in between, the rows still lie in this day, and landing goes on
        for one in sorted(by_day, key=lambda d: d == day):
            note = read_note(settings.layout.partition(table, one))
            assert note is not None  # _by_day has refused a day without one
            corrections.write(settings.layout, table, one, tables[one], record)
            write_partition(
                *(settings, table, one, lying[one]), note["source"], note["deliveries"], note.get("columns")
            )
    return {**record, "changed": True}


def _pairs(
    settings: Settings, spec: TableSpec, table: str, day: date, path: Path, drop_missing: bool
) -> list[Pair]:
    quarantined = conform(spec, rows(settings, table, day), f"{table} of {day} in quarantine").to_pylist()
    of_no_day = settings.layout.quarantine(table, day) / DELIVERY
    landed_from = pq.read_metadata(of_no_day).num_rows if of_no_day.exists() else 0  # the first lie in no day
    given = _read(spec, path)
    if ROW not in given.column_names:
        raise DataError(f"{path}: missing column {ROW}: mend a file that `mtf quarantine export` wrote")
    numbers = given[ROW].to_pylist()
    fixed = conform(spec, given, str(path)).to_pylist()
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {ROW} {repeated[0]} is there {numbers.count(repeated[0])} times")
    unknown = [number for number in numbers if number is None or not 0 <= number < len(quarantined)]
    if unknown:
        raise DataError(f"{path}: {ROW} {unknown[0]} is none of the {len(quarantined)} quarantined rows")
    pairs: list[Pair] = [
        (None if number < landed_from else quarantined[number], row)
        for number, row in zip(numbers, fixed, strict=True)
        if _text(row) != _text(quarantined[number])
    ]
    missing = sorted(set(range(len(quarantined))) - set(numbers))
    if missing and drop_missing:
        pairs += [(quarantined[number], None) for number in missing if number >= landed_from]
    if not pairs:
        raise DataError(
            f"{path}: every row is as it was in quarantine"
            + (f"; {len(missing)} are missing: --drop-missing takes them out of the day" if missing else "")
        )
    return pairs


def _read(spec: TableSpec, path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix != ".csv":
        raise DataError(f"{path}: expected a name ending in .parquet or .csv")
    header, rows = read_text(path, [*spec.schema.names, ROW])
    source = rows.rename_columns(list(header.names))
    wanted = {ROW: pa.int64(), **{f.name: f.type for f in spec.schema}}
    types = {
        name: pa.string() if target == TIMESTAMP else target
        for name, target in wanted.items()
        if name in header.names
    }
    typed, bad = values.typed(source, types, in_csv=True)
    values.refuse_bad(path, source, types, bad)
    return typed


def _by_day(
    settings: Settings, spec: TableSpec, table: str, day: date, pairs: Sequence[Pair]
) -> dict[date, list[Pair]]:
    """The pairs of each day: a row whose time is of another day leaves this one and is added there."""
    found: dict[date, list[Pair]] = defaultdict(list)
    own = _own_days(settings, spec, table, day, [fixed for _, fixed in pairs])
    for (original, fixed), one in zip(pairs, own, strict=True):
        if one == day:
            found[day].append((original, fixed))
        else:
            if original is not None:
                found[day].append((original, None))
            found[one].append((None, fixed))
    for one in found:
        if read_note(settings.layout.partition(table, one)) is None:
            raise DataError(f"{table} of {one} are not landed, so no mended row can be put there")
    return dict(found)


def _own_days(
    settings: Settings, spec: TableSpec, table: str, day: date, fixed: Sequence[Row | None]
) -> list[date]:
    if table == USERS:  # a profile holds from its delivery on, whenever it was taken
        return [day] * len(fixed)
    times = pa.array(
        [None if row is None else row[spec.time] for row in fixed], spec.schema.field(spec.time).type
    )
    for row, moment in zip(fixed, times.to_pylist(), strict=True):
        if row is not None and moment is None:
            raise DataError(f"a mended row of {table} of {day} has no {spec.time}: it belongs to no day")
    with connect() as connection:
        connection.register("times", pa.table({"moment": times, "n": range(len(fixed))}))
        query = f"select coalesce({local_day_sql(settings, 'moment')}, ?::date) from times order by n"
        return [row[0] for row in connection.execute(query, [day]).fetchall()]


def _lying(settings: Settings, spec: TableSpec, table: str, day: date) -> pa.Table:
    partition = settings.layout.partition(table, day)
    rows = conform(spec, read_partition(partition), f"{table} of {day}")
    return pa.concat_tables([rows, set_aside(settings, spec, table, day)])


def _is_landed(lying: pa.Table, pairs: Sequence[Pair]) -> bool:
    originals = [original for original, _ in pairs if original is not None]
    fixed = [row for _, row in pairs if row is not None]
    return not any(_present(lying, originals)) and all(_present(lying, fixed))


def _refuse_gone(spec: TableSpec, table: str, day: date, lying: pa.Table, pairs: Sequence[Pair]) -> None:
    originals = [original for original, _ in pairs if original is not None]
    gone = [row for row, there in zip(originals, _present(lying, originals), strict=True) if not there]
    if gone:
        keys = "; ".join(_named(spec, row) for row in gone[:NAMED])
        raise DataError(
            f"{len(gone)} quarantined rows are no longer in {table} of {day} ({keys}): the day has changed "
            f"since; validate it again (`mtf day --date {day}`) and export anew"
        )


def _refuse_broken(settings: Settings, table: str, day: date, after: pa.Table, fixed: Sequence[Row]) -> None:
    from training.validation.mended import broken_rows

    spec = table_spec(settings, table)
    reasons = {
        _text({name: row[name] for name in spec.schema.names}): row[REASON]
        for row in broken_rows(settings, table, day, after).to_pylist()
    }
    wrong = [(row, reasons[_text(row)]) for row in fixed if _text(row) in reasons]
    if wrong:
        told = "; ".join(f"{_named(spec, row)}: {reason}" for row, reason in wrong[:NAMED])
        raise DataError(f"{len(wrong)} mended rows of {table} of {day} still break a check: {told}")


def _present(lying: pa.Table, some: Sequence[Row]) -> list[bool]:
    """Which of the rows lie there, compared as a whole."""
    if not some:
        return []
    sought = pa.table({"n": range(len(some)), "r": pa.array(some, pa.struct(list(lying.schema)))})
    with connect() as connection:
        connection.register("landed_rows", lying)
        connection.register("sought", sought)
        found = connection.execute(
            "select distinct n from sought join (select whole as r from landed_rows as whole) as lying "
            "on sought.r is not distinct from lying.r"
        ).fetchall()
    there = {row[0] for row in found}
    return [n in there for n in range(len(some))]


def _named(spec: TableSpec, row: Row) -> str:
    return ", ".join(f"{name} {row[name]}" for name in spec.key)


def _text(row: Row) -> str:
    """A row as text, in which NaN equals NaN."""
    return repr({k: "nan" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
