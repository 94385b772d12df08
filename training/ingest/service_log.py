"""The service's own log: decisions and feedback, JSON lines, joined into impressions and decisions.

A day's files are named by the local day of their lines, so a day is landed from its own decision
files and from the feedback files of the day and of the ``LATE_DAYS`` after it. Feedback that comes
after midnight changes the day of its request: landing the day it arrived on updates that earlier day.

Of several pieces of feedback for one (request, item) the last by time counts; at one instant, the
larger play time, then the larger of the other columns. That choice does not depend on the order of
lines, files or landings, so any order ends at the same lake.

Impressions are what was shown: what any feedback of the request says was shown, and its items with an event;
where no feedback says it, as many from the top as the decision says, and likewise those with an event.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from training.contract.columns import line_columns
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import (
    DECISION,
    LATE_DAYS,
    LINE_VERSIONS,
    LINES,
    files_of,
)
from training.contract.settings import Settings
from training.ingest import shipped
from training.ingest.landing import (
    BOTH,
    connect,
    fetch_row,
    landing_lock,
    note_of,
    read_note,
    rows_of,
    summary,
    write_partition,
)
from training.ingest.log_lines import (
    DUCKDB_TYPES,
    name_bad_line,
    optional_field,
    refuse_unknown_fields,
    whole_lines,
)
from training.ingest.merging import MERGED, SERVICE
from training.ingest.schema import local_day_sql

SOURCE = SERVICE
_REQUEST = ("request_id", "user_id")
_KEY = (*_REQUEST, "item_id")


def has_service_log(settings: Settings, day: date) -> bool:
    """Whether the service has decision files of that local day. Raises as :func:`shipped.bring`."""
    if settings.serving.ship.to is not None:
        shipped.bring(settings, day)
    return bool(_files(settings, "decisions", day))


def day_files(settings: Settings, day: date) -> list[Path]:
    """The log's files of that local day: decisions, then feedback; of a log that is shipped, what its
    manifests say."""
    if settings.serving.ship.to is not None:
        return shipped.manifests(settings, day)
    return [path for kind in ("decisions", "feedback") for path in _files(settings, kind, day)]


def land_service_log(settings: Settings, day: date) -> dict[str, Any]:
    """Land the day's impressions and decisions, and late rows in the days they belong to.

    The record adds, for impressions, ``torn_lines`` (unfinished last lines, left out),
    ``late_feedback`` (requests of earlier days that this day's files told more of) and
    ``orphan_feedback`` (events of this day's files whose request and item are in no landed
    impression); for decisions ``repeated_requests`` (decisions that another one for the same request
    and user followed: a retry; the last counts).

    Raises :class:`DataError` for a day without a logged decision, and for a line that is not a
    decision or feedback, naming file, line and field; and as :func:`training.ingest.shipped.bring`.
    """
    if settings.serving.ship.to is not None:
        shipped.bring(settings, day)
    with landing_lock(settings.layout):
        notes, counts, other_days = _land_day(settings, day, {day})
        for other in other_days:
            _refuse_other_source(settings, day, other)
            notes += _land_day(settings, other, {day, other})[0]
        late, late_requests, orphans = _land_late_feedback(settings, day)
        notes += late
        users = read_note(settings.layout.partition(USERS, day))
        if users is not None:
            notes.append({**users, "changed": False})
    return summary(
        day,
        notes,
        impressions={
            "torn_lines": counts["torn_lines"],
            "late_feedback": late_requests,
            "orphan_feedback": orphans,
        },
        decisions={"repeated_requests": counts["repeated_requests"]},
    )


def _land_day(
    settings: Settings, day: date, deliveries: set[date]
) -> tuple[list[dict[str, Any]], dict[str, int], list[date]]:
    """Land one day from the files of ``deliveries`` and of those it was landed from before.

    Returns the partitions' notes, counts, and the other days that these files hold decisions of.
    """
    before = note_of(settings, DECISIONS, day, SOURCE)
    if before is not None:
        deliveries = deliveries | {date.fromisoformat(name) for name in before["deliveries"]}
    followed = {one + timedelta(days=late) for one in {*deliveries, day} for late in range(LATE_DAYS + 1)}
    with _open_log(settings) as log:
        torn = log.load("decisions", deliveries) + log.load("feedback", followed)
        days = [row[0] for row in log.connection.execute("select distinct day from decisions").fetchall()]
        if day not in days:
            message = f"the service logged no decision on {day}: see {settings.layout.serving_log}"
            raise DataError(message, breaks="delivered")
        repeated = log.keep_last_decisions(day)
        decisions = log.decisions()
        impressions = log.impressions()
    names = [one.isoformat() for one in deliveries]
    notes = [
        write_partition(settings, IMPRESSIONS, day, impressions, SOURCE, names),
        write_partition(settings, DECISIONS, day, decisions, SOURCE, names),
    ]
    counts = {"torn_lines": torn, "repeated_requests": repeated}
    return notes, counts, sorted(other for other in days if other != day)


def _land_late_feedback(settings: Settings, day: date) -> tuple[list[dict[str, Any]], int, int]:
    """Bring the feedback in the files of ``day`` to the landed days before it.

    Returns the notes of those days, the number of their requests that it belongs to, and the number
    of events that belong to no landed impression of the day or before.
    """
    notes, late_requests = [], 0
    with _open_log(settings) as log:
        log.load("feedback", {day})
        for back in range(LATE_DAYS + 1):
            earlier = day - timedelta(days=back)
            partition = settings.layout.partition(IMPRESSIONS, earlier)
            note = read_note(partition)
            if note is None or note_of(settings, IMPRESSIONS, earlier, SOURCE) is None:
                continue
            requests = log.know(rows_of(settings, DECISIONS, earlier, SOURCE, _REQUEST))
            if back and requests:
                late_requests += requests
                fed = (*_KEY, "feedback_ts", *log.told)
                if log.is_news(rows_of(settings, IMPRESSIONS, earlier, SOURCE, fed)):
                    note, *_ = _land_day(settings, earlier, {earlier})[0]
                    notes.append(note)
                else:
                    notes.append({**note, "changed": False})
            log.without(rows_of(settings, IMPRESSIONS, earlier, SOURCE, _KEY))
        (orphans,) = fetch_row(log.connection, "select count(*) from feedback")
    return notes, late_requests, orphans


def _refuse_other_source(settings: Settings, day: date, other: date) -> None:
    note = read_note(settings.layout.partition(DECISIONS, other))
    note = note or read_note(settings.layout.partition(IMPRESSIONS, other))
    if note is not None and note["source"] not in (*MERGED, BOTH):
        raise DataError(
            f"the service's log of {day} holds decisions of {other}, which was landed from "
            f"{note['source']}: landing them would replace that day"
        )


class _Log:
    """Lines of some days as DuckDB tables: ``decisions``, one row a line, ``feedback``, one an event, and
    ``said``, one a feedback that says what was shown."""

    def __init__(self, settings: Settings, connection: duckdb.DuckDBPyConnection, scratch: Path) -> None:
        self.settings = settings
        self.connection = connection
        self._scratch = scratch
        self._heads = [head.name for head in settings.heads]
        self.told = ["play_time_ms", "duration_ms", *(signal.column for signal in settings.signals)]

    def load(self, kind: str, days: Iterable[date]) -> int:
        """Read the files of those days into the table ``kind``; returns the number of torn last lines."""
        paths = [path for day in sorted(days) for path in _files(self.settings, kind, day)]
        pairs = [whole_lines(path, self._scratch / kind) for path in paths]
        for path, (whole, _) in zip(paths, pairs, strict=True):
            refuse_unknown_fields(kind, path, whole)
        columns = self._columns(kind)
        sound, tables = self._decision_sql() if kind == "decisions" else self._feedback_sql()
        try:
            self.connection.execute(
                f"create or replace temp table lines ({', '.join(f'{n} {t}' for n, t in columns.items())})"
            )
            if paths:
                types = "{" + ", ".join(f"{name}: '{type_}'" for name, type_ in columns.items()) + "}"
                self.connection.execute(
                    "insert into lines from read_json(?, format = 'newline_delimited', "
                    f"columns = {types}, maximum_object_size = 67108864)",
                    [[str(whole) for whole, _ in pairs]],
                )
            (unsound,) = fetch_row(
                self.connection, f"select count(*) from lines where not coalesce({sound}, false)"
            )
            if unsound:
                raise duckdb.DataError(f"{unsound} lines break the format of {kind}")
            for name, select in tables.items():
                self.connection.execute(f"create or replace temp table {name} as {select}")
        except duckdb.Error as error:
            for path, (whole, _) in zip(paths, pairs, strict=True):
                name_bad_line(kind, path, whole, self.settings.ids)
            raise DataError(f"{self.settings.layout.serving_log / kind}: {error}") from error
        self.connection.execute("drop table lines")
        return sum(torn for _, torn in pairs)

    def keep_last_decisions(self, day: date) -> int:
        """Keep the decisions of one day, the last of each (request, user); returns how many others fell."""
        self.connection.execute("delete from decisions where day <> ?", [day])
        total, requests = fetch_row(
            self.connection, "select count(*), count(distinct (request_id, user_id)) from decisions"
        )
        if total > requests:
            self.connection.execute(
                "create or replace temp table decisions as from decisions "
                "qualify row_number() over (partition by request_id, user_id "
                "order by event_ts desc, policy_version, arm, session_id, action, items, state, scores) = 1"
            )
        return total - requests

    def decisions(self) -> pa.Table:
        columns = ", ".join(column.name for column in DECISION)
        return self.connection.sql(f"select {columns} from decisions").to_arrow_table()

    def impressions(self) -> pa.Table:
        """Shown items joined with the last feedback of each; without feedback: zeros, and no time."""
        key, feedback = ", ".join(_KEY), self._last_of("feedback")
        told = ", ".join(f'coalesce(f."{name}", 0) as "{name}"' for name in self.told)
        return self.connection.sql(
            "select s.* exclude (said_ts), greatest(f.feedback_ts, s.said_ts) as feedback_ts, "
            f"{told} from {self._shown()} s left join {feedback} f using ({key})"
        ).to_arrow_table()

    def _shown(self) -> str:
        """SQL of the items that were shown, one row each: an impression but for its events. ``said_ts`` is
        when the last feedback came that says it was shown."""
        predictions = ", ".join(f'unnest(scores."{head}") as "p_{head}"' for head in self._heads)
        ranked = (
            "(select request_id, session_id, user_id, event_ts, unnest(items) as item_id, "
            f"unnest(range(len(items)))::integer as position, {predictions}, shown as most from decisions)"
        )
        (said,) = fetch_row(
            self.connection,
            "select (select count(*) from said) + (select count(*) from decisions where shown < len(items))",
        )
        if not said:  # all of it, then, and no need of a join
            return f"(select * exclude (most), null::timestamptz as said_ts from {ranked})"
        request, key = ", ".join(_REQUEST), ", ".join(_KEY)
        return f"""(
            with named as (
                select {request}, feedback_ts, unnest(shown) as item_id from said
                union all
                select {request}, feedback_ts, unnest(items[1:shown_top]) as item_id
                from (select {request}, feedback_ts, shown_top from said where shown_top is not null)
                join (select {request}, items from decisions) using ({request})
            )
            select ranked.* exclude (most), said_ts from {ranked} ranked
            left join (select {key}, max(feedback_ts) as said_ts from named group by {key}) using ({key})
            left join (select distinct {request}, true as told from said) using ({request})
            left join (select distinct {key}, true as fed from feedback) using ({key})
            where said_ts is not null or fed or (told is null and coalesce(position < most, true))
        )"""

    def _last_of(self, events: str) -> str:
        """SQL of the last event of each item."""
        key = ", ".join(_KEY)
        (repeated,) = fetch_row(self.connection, f"select count(*) - count(distinct ({key})) from {events}")
        if not repeated:  # as a rule, and ranking every event would double the cost of a join
            return events
        fields = ", ".join(f'"{name}" := "{name}"' for name in ("feedback_ts", *self.told))
        return f"(select {key}, unnest(max(struct_pack({fields}))) from {events} group by {key})"

    def know(self, requests: pa.Table) -> int:
        """Feedback of these requests into the tables ``known`` and ``known_said``; of how many it is."""
        self.connection.register("requests", requests)
        using = f"semi join requests using ({', '.join(_REQUEST)})"
        self.connection.execute(f"create or replace temp table known as from feedback {using}")
        self.connection.execute(f"create or replace temp table known_said as from said {using}")
        (count,) = fetch_row(
            self.connection,
            "select count(distinct request_id) from "
            "(select request_id from known union all select request_id from known_said)",
        )
        return count

    def is_news(self, landed: pa.Table) -> bool:
        """Whether what is known may change what is landed of its requests.

        A day that is landed some time after midnight has read what the next day's files held by then: mostly
        all that there is of it, and then there is no need to land all of the day again.
        """
        self.connection.register("landed", landed)
        request, key = ", ".join(_REQUEST), ", ".join(_KEY)
        ours, theirs = (", ".join(f'{side}."{name}"' for name in self.told) for side in ("known", "landed"))
        (count,) = fetch_row(
            self.connection,
            f"""
            with named as (
                select {request}, feedback_ts as said_ts, unnest(shown) as item_id from known_said
            )
            select (
                select count(*) from {self._last_of("known")} known left join landed using ({key})
                where landed.feedback_ts is null or known.feedback_ts > landed.feedback_ts
                    or row({ours}) is distinct from row({theirs})
            ) + (
                select count(*) from named left join landed using ({key})
                where landed.feedback_ts is null or said_ts > landed.feedback_ts
            ) + (  -- shown by default until then
                select count(*) from landed semi join named using ({request}) where feedback_ts is null
            ) + (select count(*) from known_said where shown_top is not null or len(shown) = 0)
            """,
        )
        return count > 0

    def without(self, landed: pa.Table) -> None:
        """Drop the feedback of what is landed."""
        self.connection.register("landed", landed)
        self.connection.execute(
            "create or replace temp table feedback as "
            f"from feedback anti join landed using ({', '.join(_KEY)})"
        )

    def _columns(self, kind: str) -> dict[str, str]:
        """DuckDB's type of each of a line's fields; the settings name the keys of its objects."""
        scores = ", ".join(f'"{head}" FLOAT[]' for head in self._heads)
        item = DUCKDB_TYPES[self.settings.ids.kept("item_id")]
        event = ", ".join((f'"item_id" {item}', *(f'"{name}" BIGINT' for name in self.told)))
        types = {
            **DUCKDB_TYPES,
            "map<string, list<float>>": f"STRUCT({scores})",
            "list<map<string, int64>>": f"STRUCT({event})[]",
        }
        return {column.name: types[column.type] for column in line_columns(kind, self.settings.ids)}

    def _decision_sql(self) -> tuple[str, dict[str, str]]:
        lengths = "".join(f' and coalesce(len(scores."{head}") = len(items), true)' for head in self._heads)
        items = "not list_contains([x is null for x in items], true)"
        day = local_day_sql(self.settings, "event_ts")
        select = f"select *, {day} as day from lines"
        return f"{_sound('decisions')} and {items}{lengths}", {"decisions": select}

    def _feedback_sql(self) -> tuple[str, dict[str, str]]:
        told = ", ".join(f'coalesce(event."{name}", 0) as "{name}"' for name in self.told)
        items = "not list_contains([x.item_id is null for x in events], true)"
        request = ", ".join(_REQUEST)
        return f"{_sound('feedback')} and {items}", {
            "feedback": f"select {request}, event.item_id as item_id, feedback_ts, {told} from "
            f"(select {request}, event_ts as feedback_ts, unnest(events) as event from lines)",
            "said": f"select {request}, event_ts as feedback_ts, shown, shown_top from lines "
            "where shown is not null or shown_top is not null",
        }


def _sound(kind: str) -> str:
    """SQL: a line is of the version that is read and lacks nothing."""
    needed = [f"{column.name} is not null" for column in LINES[kind] if not optional_field(column)]
    return " and ".join((f"v in {tuple(LINE_VERSIONS)}", *needed))


@contextmanager
def _open_log(settings: Settings) -> Iterator[_Log]:
    with tempfile.TemporaryDirectory(prefix="mtf-landing-") as scratch, connect() as connection:
        yield _Log(settings, connection, Path(scratch))


def _files(settings: Settings, kind: str, day: date) -> list[Path]:
    return files_of(settings.layout.serving_log / kind, day)
