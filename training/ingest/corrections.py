"""Corrections: rows that a person mended, kept beside the lake and applied at every landing of their day.

A correction answers one exact row: landing the same source again keeps it, and once the source itself is
mended it has nothing to answer. One Parquet file a correction, in the order they were made; who made it,
when and why is in the file's metadata, so that no correction lacks its record.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.files import write_atomic
from training.contract.layout import Layout
from training.ingest.schema import TableSpec

Row = Mapping[str, Any]
Pair = tuple[Row | None, Row | None]  # what lies there (None: nothing), what should (None: nothing)

_AUDIT = b"mtf.audit"

# The struct of a whole row is compared, in which DuckDB takes NaN for equal to NaN and null to null.
_APPLY = """
with lying as (select whole as r from landed_rows as whole)
select unnest(r) from (
    select case when c.has_fixed then c.fixed else r end as r
    from lying
    left join (from corrections where has_original) as c on lying.r is not distinct from c.original
    where coalesce(c.has_fixed, true)
    union all
    select fixed as r
    from corrections
    where not has_original and not exists (from lying where lying.r is not distinct from fixed)
)
"""


def files(layout: Layout, table: str, day: date) -> list[Path]:
    """A day's corrections, in the order in which they are applied."""
    return sorted(layout.corrections(table, day).glob("[0-9]*.parquet"))


def audit(path: Path) -> dict[str, Any]:
    """Who made a correction, when, why, and of how many rows."""
    return json.loads(pq.read_schema(path).metadata[_AUDIT])


def pairs_table(spec: TableSpec, pairs: Sequence[Pair]) -> pa.Table:
    """Pairs as Arrow, each side a struct of the contract's columns."""
    struct = pa.struct(list(spec.schema))
    columns = {}
    for name, side in (("original", 0), ("fixed", 1)):
        columns[name] = pa.array([pair[side] for pair in pairs], struct)
        columns[f"has_{name}"] = pa.array([pair[side] is not None for pair in pairs])
    return pa.table(columns)


def write(layout: Layout, table: str, day: date, pairs: pa.Table, record: Mapping[str, Any]) -> bool:
    """Add a correction to a day's; the same pairs twice are one. Returns whether it is new."""
    sink = pa.BufferOutputStream()
    pq.write_table(pairs, sink)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
    known = files(layout, table, day)
    if any(path.stem.endswith(digest) for path in known):
        return False
    path = layout.corrections(table, day) / f"{len(known) + 1:04d}-{digest}.parquet"
    content = pairs.replace_schema_metadata({_AUDIT: json.dumps(dict(record), sort_keys=True)})
    write_atomic(path, lambda temporary: pq.write_table(content, temporary))
    return True


def apply(spec: TableSpec, rows: pa.Table, corrections: Sequence[pa.Table]) -> pa.Table:
    """``rows`` (under the contract) after each of the corrections, one after the other."""
    for pairs in corrections:
        with duckdb.connect() as connection:
            connection.execute("set timezone = 'UTC'")
            connection.register("landed_rows", rows)
            connection.register("corrections", pairs)
            rows = connection.sql(_APPLY).to_arrow_table().cast(spec.schema)
    return rows


def of_day(layout: Layout, table: str, day: date) -> list[pa.Table]:
    return [pq.ParquetFile(path).read() for path in files(layout, table, day)]
