"""KuaiRand's official CSVs (Pure, 1K, 27K; plain or .gz; standard and random logs) into the lake.

Gao et al., "KuaiRand", CIKM 2022, zenodo record 10439422. What bites, and what is done about it:

- ``date`` and ``hourmin`` are UTC+8 and rounded up. Rows are cut into days by ``time_ms`` alone. The
  ``date`` column only says which days a release covers: it leaves a few rows before the first of them,
  a fragment of a day, which is counted and not landed unless it is asked for by name.
- Exact duplicate rows are removed. So are rows that tell of the same impression (user, time, page,
  video) twice with another ``date``, ``hourmin`` or dwell time; where they disagree on what the
  contract holds, the one with the larger play time, then the larger signals, is kept.
- ``long_view`` without ``is_click`` is kept as it is, and counted.
- Videos of one request share ``time_ms`` (tabs 5 and 6): the request is (user, ``time_ms``, ``tab``),
  and positions follow the order of rows in the files. Random exposures are requests of their own,
  told by the ``-r`` at the end of their ``request_id``.
- Nothing public holds predictions or sessions: ``p_*``, ``session_id`` and ``feedback_ts`` are null.
  Predictions filled in later (:func:`training.ingest.predictions.with_predictions`) outlive a landing of
  the same rows.
- The user table bears no time. It is landed on the first day that the logs cover, updated at that
  day's local midnight, so that every landed impression has a profile before it. It is a snapshot of
  unknown date: its counters (followers, days since registration) may tell of days after a row.
- Flags hold -124 for "no" (``is_live_streamer``): it becomes 0.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import re
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import values
from training.ingest.csv_files import (
    Header,
    open_text,
    read_text,
    refuse_broken_lines,
    scan,
    unreadable,
)
from training.ingest.landing import (
    connect,
    fetch_row,
    landing_lock,
    read_note,
    read_partition,
    summary,
    write_partition,
)
from training.ingest.predictions import fill_predictions
from training.ingest.schema import local_day_sql

SOURCE = "kuairand"
SIGNALS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
)
LOG_COLUMNS = (
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    *SIGNALS,
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_rand",
    "tab",
)
NO_FLAG = -124
_RELEASE = re.compile(r"_(pure|1k|27k)(?:_part_?\d+)?\.csv(?:\.gz)?$", re.IGNORECASE)


def land_kuairand(
    settings: Settings, folder: Path, days: Sequence[date] | None = None
) -> list[dict[str, Any]]:
    """Land the logs and the user table of one release in ``folder`` (or in its ``data/``).

    ``days``: the local days to land; by default all that the logs cover. Returns a record a day, oldest
    first; its impressions also count ``rows_read``, ``exact_duplicates``, ``repeated_impressions`` and
    ``long_view_without_click``, and the first record ``rows_outside_days`` (rows of days not landed).

    Raises :class:`DataError` naming file, row and column for a log or user table that is missing,
    truncated, lacks a column or holds a value that is not a whole number; for a folder that holds two
    releases, or a file both plain and compressed; and for a day that the logs have no row of.
    """
    logs = _files(folder, "log_*", "standard or random log")
    user_files = _files(folder, "user_features*", "user table")
    _check_signals(settings)
    with (
        landing_lock(settings.layout),
        tempfile.TemporaryDirectory(prefix=".kuairand-", dir=settings.layout.root / "lake") as scratch,
        connect(Path(scratch) / "log.duckdb") as connection,
    ):
        _read_logs(settings, connection, logs)
        rows = dict(connection.execute("select day, count(*) from log group by day").fetchall())
        covered = _covered_days(connection, rows)
        chosen = sorted(set(days)) if days is not None else covered
        absent = [day for day in chosen if day not in rows]
        if absent:
            raise DataError(
                f"{folder}: no row of {', '.join(map(str, absent))}; it holds {_span(sorted(rows))}"
            )
        users = _users(settings, user_files, covered[0])
        records = []
        for day in chosen:
            table, counts = _impressions(settings, connection, day)
            notes = [write_partition(settings, IMPRESSIONS, day, table, SOURCE)]
            if day == chosen[0]:
                notes.append(write_partition(settings, USERS, covered[0], users, SOURCE))
                counts["rows_outside_days"] = sum(n for other, n in rows.items() if other not in chosen)
            records.append(summary(day, notes, impressions=counts))
    return records


def _files(folder: Path, pattern: str, what: str) -> list[Path]:
    """Plain and compressed CSVs of one release, in the order of their names (parts by number)."""
    places = [folder, folder / "data"]
    found = [p for place in places for p in place.glob(pattern) if p.name.endswith((".csv", ".csv.gz"))]
    if pattern == "log_*":
        found = [p for p in found if p.name.startswith(("log_standard_", "log_random_"))]
    if not found:
        raise DataError(f"{folder}: no {what} ({pattern}.csv or .csv.gz)")
    stems = [path.name.removesuffix(".gz") for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DataError(f"{folder} holds {twice[0]} twice (plain and compressed, or also in data/)")
    releases = {m[1].lower() for path in found if (m := _RELEASE.search(path.name))}
    if len(releases) > 1:
        raise DataError(
            f"{folder} holds several releases ({', '.join(sorted(releases))}); land one at a time"
        )
    return sorted(
        found, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.name)]
    )


def _check_signals(settings: Settings) -> None:
    unknown = [signal.column for signal in settings.signals if signal.column not in SIGNALS]
    if unknown:
        raise DataError(
            f"the settings name the signal column {unknown[0]!r}, which KuaiRand does not have: "
            f"it has {', '.join(SIGNALS)}"
        )


def _read_logs(settings: Settings, connection: duckdb.DuckDBPyConnection, logs: Sequence[Path]) -> None:
    """Table ``log``: every row of the logs, its ``ordinal`` among files and rows, and its local ``day``."""
    columns = ", ".join(f"{name} BIGINT" for name in LOG_COLUMNS)
    connection.execute(f"create table log ({columns}, ordinal BIGINT, event_ts TIMESTAMPTZ, day DATE)")
    event_ts = "make_timestamptz(time_ms * 1000)"
    for path in logs:
        with open_text(path, LOG_COLUMNS) as (plain, header):
            places = _places(path, header, LOG_COLUMNS)
            read = {
                name: values.reading(name, f"c{place}", pa.string(), pa.int64(), in_csv=True).value
                for name, place in places.items()
            }
            selected = ", ".join(f"{value} as {name}" for name, value in read.items())
            try:
                connection.execute(f"create or replace table file as select {selected} {scan(plain, header)}")
            except duckdb.Error as error:
                raise unreadable(path, error) from error
            refuse_broken_lines(connection, path, plain, header)
            _refuse_empty(connection, path, plain, header, places)
        (before,) = fetch_row(connection, "select count(*) from log")
        connection.execute(
            f"insert into log select *, {before} + rowid, {event_ts}, {local_day_sql(settings, event_ts)} "
            "from file order by rowid"
        )
    connection.execute("drop table file")


def _places(path: Path, header: Header, wanted: Sequence[str]) -> dict[str, int]:
    missing = [name for name in wanted if name not in header.names]
    if missing:
        message = f"{path}: missing column {', '.join(missing)}; it has {', '.join(header.names)}"
        raise DataError(message, breaks="columns")
    return {name: header.names.index(name) for name in wanted}


def _refuse_empty(
    connection: duckdb.DuckDBPyConnection, path: Path, plain: Path, header: Header, places: dict[str, int]
) -> None:
    """Raise :class:`DataError` for the first value that is not there, or no whole number."""
    nulls = " or ".join(f"{name} is null" for name in LOG_COLUMNS)
    for row in connection.execute(
        f"select rowid, * from file where {nulls} order by rowid limit 1"
    ).fetchall():
        name = LOG_COLUMNS[row[1:].index(None)]
        found = connection.sql(f"select c{places[name]} {scan(plain, header)} limit 1 offset {row[0]}")
        value = found.to_arrow_table()[0][0]
        if value.as_py() is None:
            raise DataError(f"{path}, row {row[0] + 1}: column {name} is empty", breaks="types")
        raise DataError(values.told(path, row[0], name, value, pa.int64()), breaks="types")


def _covered_days(connection: duckdb.DuckDBPyConnection, rows: dict[date, int]) -> list[date]:
    """Local days with rows from the first to the last value of ``date``."""
    first, last = fetch_row(connection, "select min(date), max(date) from log")
    covered = [day for day in sorted(rows) if first <= int(day.strftime("%Y%m%d")) <= last]
    if not covered:
        raise DataError("the logs hold no row of the days that their date column names")
    return covered


def _impressions(
    settings: Settings, connection: duckdb.DuckDBPyConnection, day: date
) -> tuple[pa.Table, dict[str, int]]:
    """One day's impressions and what was counted on the way."""
    source = ", ".join(LOG_COLUMNS)
    signals = ", ".join(f'"{signal.column}"' for signal in settings.signals)
    best = ", ".join(f"{name} desc" for name in ("play_time_ms", *SIGNALS, "duration_ms"))
    request = "user_id, time_ms, tab, is_rand"
    connection.execute(
        "create or replace temp table rows_once as "
        f"select {source}, event_ts, min(ordinal) as ordinal, count(*) as copies "
        f"from log where day = ? group by {source}, event_ts",
        [day],
    )
    connection.execute(
        "create or replace temp table once as "
        f"select * replace (min(ordinal) over same as ordinal) from rows_once "
        f"window same as (partition by {request}, video_id) "
        f"qualify row_number() over (partition by {request}, video_id order by {best}) = 1"
    )
    read, distinct = fetch_row(connection, "select sum(copies), count(*) from rows_once")
    kept, odd = fetch_row(
        connection, "select count(*), count(*) filter (long_view = 1 and is_click = 0) from once"
    )
    predictions = [f"p_{head.name}" for head in settings.heads]
    nulls = ", ".join(f'null::float as "{name}"' for name in predictions)
    connection.execute(
        "create or replace temp table impressions as select "
        "user_id || '-' || time_ms || '-' || tab || if(is_rand = 1, '-r', '') as request_id, "
        "null::varchar as session_id, user_id, video_id as item_id, event_ts, "
        "null::timestamptz as feedback_ts, "
        f"(row_number() over (partition by {request} order by ordinal) - 1)::integer as position, "
        f"{nulls}, {signals}, play_time_ms, duration_ms from once"
    )
    query = "select * from impressions"
    partition = settings.layout.partition(IMPRESSIONS, day)
    note = read_note(partition)
    if note is not None and note["source"] == SOURCE:
        before = read_partition(partition)
        known = [name for name in predictions if name in before.column_names]
        connection.register("before", before.select(["request_id", "item_id", *known]))
        query = fill_predictions("impressions", "before", known)
    counts = {
        "rows_read": int(read),
        "exact_duplicates": int(read) - distinct,
        "repeated_impressions": distinct - kept,
        "duplicates_removed": int(read) - kept,
        "long_view_without_click": odd,
    }
    return connection.sql(query).to_arrow_table(), counts


def _users(settings: Settings, files: Sequence[Path], day: date) -> pa.Table:
    """The user table's columns that the settings name, as the users contract wants them."""
    profile = {feature.column: feature.kind for feature in settings.state.profile}
    types = {
        "user_id": pa.int64(),
        **{name: pa.string() if kind == "categorical" else pa.float64() for name, kind in profile.items()},
    }
    sql = {
        # 4.0 and 4 are one category, whichever way a release writes it
        "categorical": "regexp_replace(\"{0}\", '^(-?[0-9]+)\\.0+$', '\\1')",
        "flag": f'if("{{0}}" = {NO_FLAG}, 0, "{{0}}")',
    }
    columns = "".join(f', {sql.get(kind, "{0}").format(name)} as "{name}"' for name, kind in profile.items())
    with connect() as connection:
        connection.register("users", pa.concat_tables([_read_users(path, types) for path in files]))
        start = settings.day_start(day)
        rows = connection.sql(
            f"select user_id, timestamptz '{start.isoformat()}' as updated_ts{columns} from users"
        ).to_arrow_table()
    return rows


def _read_users(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    header, rows = read_text(path, types)
    places = _places(path, header, list(types))
    source = pa.table([rows.column(place) for place in places.values()], names=list(places))
    typed, bad = values.typed(source, types, in_csv=True)
    values.refuse_bad(path, source, types, bad)
    return typed


def _span(days: Sequence[date]) -> str:
    return f"{days[0]} to {days[-1]}" if days else "no rows"
