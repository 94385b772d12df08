"""Files of one's own: deliveries, renamed columns, late rows, and files that are refused by name."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import DAY, MIDNIGHT, impressions, lake_bytes, read
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import land, land_files
from training.ingest.column_changes import schema_changes

NEXT = DAY + timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def deliver(
    folder: Path, rows: pa.Table, day: date = DAY, table: str = IMPRESSIONS, name: str = "a.parquet"
) -> Path:
    path = folder / table / f"dt={day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(rows, path)
    else:
        with pa.CompressedOutputStream(path, "gzip") if name.endswith(".gz") else path.open("wb") as file:
            pc_csv.write_csv(rows, file)
    return path


def row(item: int, minutes: float = 0, **values: Any) -> dict[str, Any]:
    return {"item_id": item, "event_ts": MIDNIGHT + timedelta(minutes=minutes)} | values


def test_parquet_and_csv_of_one_delivery_land_together(settings: Settings, folder: Path) -> None:
    deliver(folder, impressions([row(1, p_click=0.5)], settings))
    texts = impressions([row(2, 1, request_id="007")], settings)
    deliver(folder, texts, name="b.csv.gz")
    millis = int((MIDNIGHT + timedelta(minutes=2)).timestamp() * 1000)
    deliver(folder, impressions([row(3) | {"event_ts": millis}], settings), name="c.csv")
    record = land_files(settings, DAY, folder)
    assert record["tables"][IMPRESSIONS]["rows"] == 3
    rows = read(settings)
    assert [r["item_id"] for r in rows] == [1, 2, 3]
    assert [r["request_id"] for r in rows] == ["r", "007", "r"]  # text stays text
    assert rows[2]["event_ts"] == MIDNIGHT + timedelta(minutes=2)
    assert rows[0]["p_click"] == 0.5 and rows[1]["p_click"] is None


def test_columns_are_renamed_by_the_file_beside_the_logs(settings: Settings, folder: Path) -> None:
    rows = impressions([row(5)], settings)
    theirs = rows.rename_columns(["video" if n == "item_id" else n for n in rows.column_names])
    deliver(folder, theirs.append_column("item_id", pa.array(["not ours"])), name="a.csv")
    (folder / "columns.json").write_text(json.dumps({"impressions": {"item_id": "video"}}))
    land_files(settings, DAY, folder)
    assert [r["item_id"] for r in read(settings)] == [5]
    (folder / "columns.json").write_text(json.dumps({"impressions": {"item_id": "clip"}}))
    with pytest.raises(DataError, match=r"a.csv: missing column clip, which columns.json names"):
        land_files(settings, DAY, folder)
    (folder / "columns.json").write_text(json.dumps({"impressions": {"itme_id": "video"}}))
    with pytest.raises(DataError, match="impressions has no column 'itme_id'"):
        land_files(settings, DAY, folder)
    (folder / "columns.json").write_text(json.dumps({"impression": {}}))
    with pytest.raises(DataError, match="unknown table 'impression'"):
        land_files(settings, DAY, folder)
    (folder / "columns.json").write_text("{")
    with pytest.raises(DataError, match=r"columns.json: expected an object"):
        land_files(settings, DAY, folder)


def test_late_rows_land_in_their_own_day_and_replace_their_key(settings: Settings, folder: Path) -> None:
    deliver(folder, impressions([row(1), row(2, 1)], settings))
    land_files(settings, DAY, folder)
    late = [row(2, 1, is_click=1), row(3, 2), row(1, 24 * 60 + 1, request_id="n")]
    deliver(folder, impressions(late, settings), NEXT)
    record = land_files(settings, NEXT, folder)
    landed = record["tables"][IMPRESSIONS]
    assert (landed["rows"], landed["days"], landed["changed_days"]) == (1, [str(DAY), str(NEXT)], [str(DAY)])
    assert [(r["item_id"], r["is_click"]) for r in read(settings)] == [(1, 0), (2, 1), (3, 0)]
    lake = lake_bytes(settings)
    for day in (DAY, NEXT):
        assert land_files(settings, day, folder)["tables"][IMPRESSIONS]["changed_days"] == []
    assert lake_bytes(settings) == lake
    for path in (folder / IMPRESSIONS / f"dt={NEXT}").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"the delivery .*dt=2026-01-06 is gone"):
        land_files(settings, DAY, folder)


def test_late_rows_do_not_replace_a_day_of_another_source(settings: Settings, folder: Path) -> None:
    land(settings, IMPRESSIONS, DAY, impressions([{}], settings), "kuairand")
    deliver(folder, impressions([row(1), row(1, 24 * 60)], settings), NEXT)
    with pytest.raises(DataError, match=r"holds rows of 2026-01-05, landed from kuairand"):
        land_files(settings, NEXT, folder)


def test_decisions_and_users_are_optional_and_decisions_are_no_csv(settings: Settings, folder: Path) -> None:
    deliver(folder, impressions([row(1)], settings))
    users = pa.table({"user_id": [1], "updated_ts": [MIDNIGHT - timedelta(days=3)], "fans_user_num": [4]})
    deliver(folder, users, table=USERS, name="u.csv")
    decisions = pa.table({"request_id": ["r"], "user_id": [7]})
    path = deliver(folder, decisions, table=DECISIONS, name="d.csv")
    with pytest.raises(DataError, match=r"d.csv: column action is a list, which CSV cannot hold"):
        land_files(settings, DAY, folder)
    path.unlink()
    record = land_files(settings, DAY, folder)
    assert set(record["tables"]) == {IMPRESSIONS, USERS}
    assert read(settings, USERS)[0]["fans_user_num"] == 4.0


def test_broken_files_are_named(settings: Settings, folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file of 2026-01-05: expected .*impressions/dt=2026-01-05/"):
        land_files(settings, DAY, folder)
    path = deliver(folder, impressions([row(1), row(2)], settings))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a.parquet: unreadable Parquet"):
        land_files(settings, DAY, folder)
    deliver(folder, impressions([row(1)], settings).drop_columns(["is_hate"]))
    with pytest.raises(DataError, match=r"a.parquet: missing column is_hate"):
        land_files(settings, DAY, folder)
    path.unlink()
    text = impressions([row(1), row(2)], settings)
    items = pa.array(["1", "x"])
    deliver(folder, text.set_column(text.column_names.index("item_id"), "item_id", items), name="b.csv")
    with pytest.raises(DataError, match=r"b.csv, row 2: column item_id is 'x', expected int64"):
        land_files(settings, DAY, folder)
    times = pa.array([MIDNIGHT, None], pa.timestamp("us", "UTC"))
    deliver(folder, text.set_column(text.column_names.index("event_ts"), "event_ts", times), name="b.csv")
    with pytest.raises(DataError, match=r"b.csv: column event_ts, row 2 is null"):
        land_files(settings, DAY, folder)
    packed = deliver(folder, impressions([row(n) for n in range(500)], settings), name="b.csv.gz")
    (folder / IMPRESSIONS / f"dt={DAY}" / "b.csv").unlink()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b.csv.gz: unreadable CSV: Truncated compressed stream"):
        land_files(settings, DAY, folder)


def test_what_becomes_of_the_source_s_columns_is_named(settings: Settings, folder: Path) -> None:
    """A head renamed, a new column and another type: landed, but not silently."""

    head = f"p_{settings.heads[0].name}"
    first = impressions([row(1, **{head: 0.5})], settings)
    deliver(folder, first)
    land_files(settings, DAY, folder)
    assert schema_changes(settings, IMPRESSIONS, DAY) == []
    second = impressions([row(2, minutes=24 * 60)], settings)
    second = second.append_column("ctr", pa.array([0.5], pa.float32()))
    place = second.schema.get_field_index("play_time_ms")
    second = second.set_column(place, "play_time_ms", second["play_time_ms"].cast(pa.float64()))
    deliver(folder, second, NEXT)
    land_files(settings, NEXT, folder)
    changes = {c["column"]: (c["change"], c["text"]) for c in schema_changes(settings, IMPRESSIONS, NEXT)}
    assert changes == {
        "ctr": ("new", "ctr (float) is new"),
        head: ("gone", f"{head} (double) is gone"),
        "play_time_ms": ("retyped", "play_time_ms was int64 and is double"),
    }
