"""A new, a renamed and a retyped column of a source, from landing to the marts: named, never guessed."""

import shutil
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.dbt_project.conftest import DAYS, Lake, contents, random_lake, schema
from training import ingest
from training.contract.columns import decision_columns, impression_columns
from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.ingest.column_changes import schema_changes
from training.warehouse import transform


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The first day landed and transformed, the others to come."""
    lake = random_lake(Settings(data=tmp_path_factory.mktemp("drift")))
    land(lake, DAYS[0], impressions(lake, DAYS[0]))
    transform.run(lake.settings, DAYS[0])
    return lake


def impressions(lake: Lake, day: date) -> pa.Table:
    return pa.Table.from_pylist(lake.rows[IMPRESSIONS, day], schema=schema(impression_columns(lake.settings)))


def land(lake: Lake, day: date, rows: pa.Table) -> None:
    ingest.land(lake.settings, IMPRESSIONS, day, rows, "files")
    decisions = pa.Table.from_pylist(lake.rows[DECISIONS, day], schema=schema(decision_columns()))
    ingest.land(lake.settings, DECISIONS, day, decisions, "files")


def changed(lake: Lake, day: date) -> list[str]:
    return [change["text"] for change in schema_changes(lake.settings, IMPRESSIONS, day)]


def test_a_new_column_is_named_and_changes_no_mart(lake: Lake) -> None:
    day, settings = DAYS[1], lake.settings
    rows = impressions(lake, day)
    land(lake, day, rows)
    transform.run(settings, day)
    before = contents(settings)
    land(lake, day, rows.append_column("share_count", pc.multiply(rows["item_id"], 2)))
    assert changed(lake, day) == ["share_count (int64) is new"]
    transform.run(settings, day)
    assert contents(settings) == before


def test_a_renamed_column_is_refused_by_both_names(lake: Lake) -> None:
    rows = impressions(lake, DAYS[2])
    renamed = rows.rename_columns({"play_time_ms": "played_ms"})
    with pytest.raises(DataError, match=r"missing column play_time_ms.* a new name perhaps: played_ms"):
        land(lake, DAYS[2], renamed)
    assert not lake.settings.layout.partition(IMPRESSIONS, DAYS[2]).exists()


def test_another_type_is_named_and_refused_where_a_value_would_be_lost(lake: Lake) -> None:
    day = DAYS[2]
    rows = impressions(lake, day)
    place = rows.schema.get_field_index("play_time_ms")
    text = rows.set_column(place, "play_time_ms", rows["play_time_ms"].cast(pa.string()))
    land(lake, day, text)
    assert changed(lake, day) == [
        "play_time_ms was int64 and is string",
        "share_count (int64) is gone",
    ]
    words = rows.set_column(place, "play_time_ms", pa.array(["12 s"] * rows.num_rows))
    with pytest.raises(DataError, match=r"column play_time_ms, row 1: '12 s' \(string\) is not int64"):
        land(lake, day, words)


def test_what_comes_into_the_lake_past_landing_is_named_by_dbt(lake: Lake) -> None:
    """Old partitions still have the column: read together, the new day's would be nulls and text."""
    day, settings = DAYS[2], lake.settings
    rows = impressions(lake, day).rename_columns({"play_time_ms": "played_ms"})
    place = rows.schema.get_field_index("is_like")
    rows = rows.set_column(place, "is_like", rows["is_like"].cast(pa.string()))
    partition = settings.layout.partition(IMPRESSIONS, day)
    shutil.rmtree(partition, ignore_errors=True)
    partition.mkdir()
    pq.write_table(rows, partition / "part-0.parquet")
    before = contents(settings)
    with pytest.raises(DataError, match="impressions_as_declared") as error:
        transform.run(settings, day)
    assert "(column_name: is_like, change: retyped, type: VARCHAR, not TINYINT, dt: None)" in str(error.value)
    assert "(column_name: play_time_ms, change: empty, type: , dt: 2026-01-07)" in str(error.value)
    assert "(column_name: played_ms, change: new, type: BIGINT, dt: None)" in str(error.value)
    assert contents(settings) == before
    shutil.rmtree(partition)


def test_a_mart_that_breaks_its_contract_is_refused_by_the_columns_name(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "dbt_project"
    shutil.copytree(transform.PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"))
    model = project / "models/marts/fct_user_days.sql"
    model.write_text(model.read_text().replace("as capped_play_s", "as capped_play_seconds"))
    monkeypatch.setattr(transform, "PROJECT", project)
    with pytest.raises(DataError, match=r"fct_user_days: .*enforced contract that failed.* capped_play_s "):
        transform.run(lake.settings, DAYS[1])
