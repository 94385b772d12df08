"""A day that comes from two sources, the service's log and files: merged by request.

While the service takes over the traffic, some of a day's requests are in its log and the others in the files
of the ranker before it; files often hold them all. Each source's own rows are kept beside the lake from the
day's second source on, so that landing either again, in any order, ends at the same rows.

A decision is the service's where it made one. What was shown and felt of a request that both tell of is the
service's where feedback reached it, and else the files': they were delivered for that.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own names

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.files import read_json, write_atomic, write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, Layout
from training.ingest.schema import TableSpec

SERVICE, FILES = "service", "files"
MERGED = (FILES, SERVICE)  # sources of one day that are merged; any other replaces what is landed

_RULES = {
    # of requests that both tell of: the service's where feedback reached it
    IMPRESSIONS: """
        with told as (
            select request_id, bool_or(feedback_ts is not null) as told from service group by request_id
        ), both_tell as (select request_id, told from told semi join files using (request_id))
        select service.* from service
            anti join (from both_tell where not told) as theirs using (request_id)
        union all
        select files.* from files anti join (from both_tell where told) as ours using (request_id)
    """,
    DECISIONS: """
        select * from service union all select files.* from files anti join service using (request_id)
    """,
}


def place(layout: Layout, table: str, day: date, source: str) -> Path:
    """Where a source's own rows of a day lie, once there are two."""
    return layout.part(table, day) / f"{source}.parquet"


def keep(layout: Layout, table: str, day: date, source: str, rows: pa.Table, told: Mapping[str, Any]) -> None:
    """A source's own rows, and what landing noted of them."""
    path = place(layout, table, day, source)
    write_atomic(path, lambda temporary: pq.write_table(rows, temporary, compression="zstd"))
    write_json_atomic(path.with_suffix(".json"), dict(told))


def kept(layout: Layout, table: str, day: date) -> dict[str, dict[str, Any]]:
    """What was noted of each source whose own rows are kept."""
    return {
        path.stem: read_json(path)
        for path in sorted(layout.part(table, day).glob("*.json"))
        if path.stem in MERGED
    }


def merge(
    connection: duckdb.DuckDBPyConnection, spec: TableSpec, parts: Mapping[str, pa.Table]
) -> tuple[pa.Table, dict[str, int]]:
    """The rows of both, and how many are of each source; ``requests_in_both`` beside them."""
    for name in MERGED:
        connection.register(name, parts[name])
    rule = _RULES.get(spec.table)
    if rule is None:  # profiles: the newer one, of two at once the files'
        key, time = ", ".join(spec.key), spec.time
        rule = (
            "select * exclude (n) from (select *, 0 as n from files union all select *, 1 from service) "
            f"qualify row_number() over (partition by {key} order by {time} desc, n) = 1"
        )
    rows = connection.sql(rule).to_arrow_table().cast(spec.schema)
    key = spec.key[0]
    (both,) = connection.execute(
        f"select count(distinct {key}) from service semi join files using ({key})"
    ).fetchall()[0]
    connection.register("merged_rows", rows)
    (of_service,) = connection.execute(
        "select count(*) from (from merged_rows intersect all from service)"
    ).fetchall()[0]
    return rows, {SERVICE: of_service, FILES: rows.num_rows - of_service, "requests_in_both": both}
