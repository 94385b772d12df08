"""A damaged day is stopped before training, named in Data Docs and on its page; the champion serves."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dags import stages
from tests.end_to_end.conftest import Loop
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.records import read_record
from training.contract.settings import Settings

Damage = Callable[[pa.Table], pa.Table]


def without_column(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(["p_like"])


def score_above_one(rows: pa.Table) -> pa.Table:
    values = rows["p_like"].to_pylist()
    values[3] = 1.7
    return rows.set_column(rows.column_names.index("p_like"), "p_like", pa.array(values, pa.float32()))


def duplicated_requests(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows, rows.slice(0, 5)])


def half_the_rows(rows: pa.Table) -> pa.Table:
    return rows.slice(0, rows.num_rows // 2)


def actions_out_of_bounds(rows: pa.Table) -> pa.Table:
    actions = rows["action"].to_pylist()
    actions[0] = [1.5, *actions[0][1:]]
    place = rows.column_names.index("action")
    return rows.set_column(place, "action", pa.array(actions, rows.schema.field("action").type))


@pytest.mark.parametrize(
    ("table", "damage", "named"),
    [
        (IMPRESSIONS, without_column, "p_like"),
        (IMPRESSIONS, score_above_one, "p_like"),
        (DECISIONS, duplicated_requests, "request_id"),
        (IMPRESSIONS, half_the_rows, "rows"),
        (DECISIONS, actions_out_of_bounds, "action"),
        (IMPRESSIONS, None, "part-0.parquet"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or ("truncated file" if value is None else str(value)),
)
def test_a_damaged_day_is_stopped_and_named(
    loop: Loop, damaged: Settings, table: str, damage: Damage | None, named: str
):
    path = damaged.layout.partition(table, loop.day) / "part-0.parquet"
    if damage is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        pq.write_table(damage(pq.ParquetFile(path).read()), path)
    champion = damaged.layout.champion.read_bytes() if damaged.layout.champion.exists() else None

    with pytest.raises(DataError, match=named):
        stages.run_stage(damaged, loop.day, "validate_landed")

    record = read_record(damaged.layout, loop.day, "validate_landed")
    failed = [
        f for suite in record["suites"].values() for f in suite["failed"] if f["severity"] == "critical"
    ]
    assert any(named in f["message"] or named == f["column"] for f in failed)
    pages = [
        Path(damaged.data / suite["page"]).read_text()
        for suite in record["suites"].values()
        if suite["failed"]
    ]
    assert any(named in page for page in pages)
    day_page = (damaged.layout.reports / f"dt={loop.day}" / "index.html").read_text()
    assert "Stopped at validate_landed" in day_page and named in day_page
    assert read_record(damaged.layout, loop.day, "train") is None  # nothing after it is left standing
    now = damaged.layout.champion.read_bytes() if damaged.layout.champion.exists() else None
    assert now == champion
