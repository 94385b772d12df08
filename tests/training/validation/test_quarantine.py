"""Quarantined rows: listed, exported, mended, landed in their own day once, and kept by later landings."""

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import DAY, MIDNIGHT, SHANGHAI, impressions, partition_bytes, read
from training.contract.errors import DataError, SettingsError
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.records import write_record
from training.contract.settings import Settings, ValidationSettings
from training.ingest import changed_days, land, landed
from training.validation import quarantine
from training.validation.mended import broken_rows
from training.validation.set_aside import split

NEXT = DAY + timedelta(days=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", calendar=SHANGHAI)


def source(settings: Settings, bad: bool = True) -> pa.Table:
    """Five rows, of which the second has a probability of 1.7 and the third plays for -5 ms."""
    rows = [{"item_id": n, "position": n, "p_click": 0.5, "p_like": None} for n in range(5)]
    if bad:
        rows[1]["p_click"], rows[2]["play_time_ms"] = 1.7, -5
    return impressions(rows, settings)


def quarantine_day(settings: Settings, day: date = DAY) -> None:
    """What validation does with bad rows."""
    content = pq.ParquetFile(settings.layout.partition(IMPRESSIONS, day) / "part-0.parquet").read()
    path = settings.layout.quarantine(IMPRESSIONS, day) / quarantine.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(broken_rows(settings, IMPRESSIONS, day, content), path)


@pytest.fixture
def broken(settings: Settings) -> Settings:
    land(settings, IMPRESSIONS, DAY, source(settings), "test")
    write_record(settings.layout, DAY, "land", landed(settings, DAY))
    quarantine_day(settings)
    return settings


def change(path: Path, row: int, **values: Any) -> None:
    rows = pq.ParquetFile(path).read()
    content = rows.to_pylist()
    content[row] |= values
    pq.write_table(pa.Table.from_pylist(content, rows.schema), path)


def mend(settings: Settings, path: Path, **options: Any) -> dict[str, Any]:
    return quarantine.land(settings, IMPRESSIONS, DAY, path, by="ann", why="a unit gone wrong", **options)


def test_what_is_held_is_counted_by_reason(broken: Settings) -> None:
    [held] = quarantine.held(broken)
    assert (held.day, held.table, held.rows) == (DAY, IMPRESSIONS, 2)
    assert {"p_click" in reason for reason in held.reasons} == {True, False}
    assert quarantine.held(broken, NEXT) == []
    assert quarantine.rows(broken, IMPRESSIONS, DAY, "P_CLICK")["item_id"].to_pylist() == [1]
    with pytest.raises(DataError, match="no decisions of 2026-01-05 are in quarantine"):
        quarantine.rows(broken, DECISIONS, DAY)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_mended_rows_take_the_place_of_the_bad_ones_and_mark_the_day(
    broken: Settings, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"bad{suffix}"
    assert quarantine.export(broken, IMPRESSIONS, DAY, path) == 2
    if suffix == ".csv":
        path.write_text(path.read_text().replace("1.7", "0.7").replace(",-5,", ",5,"))
    else:
        change(path, 0, p_click=0.7)
        change(path, 1, play_time_ms=5)
    assert changed_days(broken) == []
    record = mend(broken, path)
    assert (record["changed"], record["mended"], record["dropped"]) == (True, 2, 0)
    assert record["days"] == [str(DAY)] and changed_days(broken) == [DAY]
    found = read(broken)
    assert [round(r["p_click"], 3) for r in found] == [0.5, 0.7, 0.5, 0.5, 0.5]
    assert [r["play_time_ms"] for r in found] == [0, 0, 5, 0, 0]
    assert found[0]["p_like"] is None
    [kept] = quarantine.mended(broken.layout, DAY)
    assert (kept["by"], kept["why"], kept["mended"]) == ("ann", "a unit gone wrong", 2)
    assert kept == {name: record[name] for name in kept}


def test_the_same_file_twice_changes_nothing(broken: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    change(path, 0, p_click=0.7)
    mend(broken, path)
    content = partition_bytes(broken)
    assert mend(broken, path)["changed"] is False
    assert partition_bytes(broken) == content
    assert len(quarantine.mended(broken.layout)) == 1


def test_landing_the_source_again_keeps_the_change_and_a_mended_source_needs_none(
    broken: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    change(path, 0, p_click=0.5)
    change(path, 1, play_time_ms=0)
    mend(broken, path)
    content = partition_bytes(broken)
    note = land(broken, IMPRESSIONS, DAY, source(broken), "test")
    assert note["changed"] is False and partition_bytes(broken) == content
    note = land(broken, IMPRESSIONS, DAY, source(broken, bad=False), "test")
    assert note["changed"] is False and partition_bytes(broken) == content


def test_a_row_that_is_gone_from_the_file_is_dropped_when_asked(broken: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)
    with pytest.raises(DataError, match="1 are missing: --drop-missing takes them out"):
        mend(broken, path)
    record = mend(broken, path, drop_missing=True)
    assert (record["mended"], record["dropped"]) == (0, 1)
    assert [r["item_id"] for r in read(broken)] == [0, 2, 3, 4]


def test_of_two_rows_with_one_key_one_may_stay(settings: Settings, tmp_path: Path) -> None:
    rows = impressions([{"is_click": 0}, {"is_click": 1}], settings)
    land(settings, IMPRESSIONS, DAY, rows, "test")
    quarantine_day(settings)
    path = tmp_path / "bad.parquet"
    assert quarantine.export(settings, IMPRESSIONS, DAY, path) == 2
    held = pq.ParquetFile(path).read()
    pq.write_table(held.filter(pc.equal(held["is_click"], 1)), path)
    mend(settings, path, drop_missing=True)
    assert [r["is_click"] for r in read(settings)] == [1]


def test_a_row_whose_own_day_is_another_goes_there(broken: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    later: datetime = MIDNIGHT + timedelta(days=1, hours=2)
    change(path, 0, p_click=0.7, event_ts=later)
    with pytest.raises(DataError, match="impressions of 2026-01-06 are not landed"):
        mend(broken, path)
    tomorrow = impressions([{"item_id": 99, "event_ts": MIDNIGHT + timedelta(days=1)}], broken)
    land(broken, IMPRESSIONS, NEXT, tomorrow, "test")
    record = mend(broken, path)
    assert record["days"] == [str(DAY), str(NEXT)]
    assert [r["item_id"] for r in read(broken)] == [0, 2, 3, 4]
    assert [(r["item_id"], r["event_ts"]) for r in read(broken, day=NEXT)][-1] == (1, later)
    content = partition_bytes(broken, day=NEXT)
    assert mend(broken, path)["changed"] is False
    land(broken, IMPRESSIONS, NEXT, tomorrow, "test")
    assert partition_bytes(broken, day=NEXT) == content


def test_a_row_that_is_still_bad_is_refused_by_name_and_nothing_changes(
    broken: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    before = partition_bytes(broken)
    change(path, 0, p_click=1.5)
    with pytest.raises(
        DataError, match="request_id r, item_id 1: expected: the predicted click, p_click, is at most 1"
    ):
        mend(broken, path)
    change(path, 0, p_click=0.5, item_id=3)  # now a key that another row has
    with pytest.raises(DataError, match="no two rows have the same request_id, item_id"):
        mend(broken, path)
    assert partition_bytes(broken) == before and quarantine.mended(broken.layout) == []


def test_a_day_that_changed_since_is_not_mended(broken: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    change(path, 0, p_click=0.7)
    land(broken, IMPRESSIONS, DAY, source(broken, bad=False), "test")
    with pytest.raises(DataError, match=r"no longer in impressions of 2026-01-05 .* validate it again"):
        mend(broken, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quarantine_row": 1}, "quarantine_row 1 is there 2 times"),
        ({"quarantine_row": 7}, "quarantine_row 7 is none of the 2 quarantined rows"),
        ({"event_ts": None}, "has no event_ts: it belongs to no day"),
        ({}, "every row is as it was in quarantine"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    broken: Settings, tmp_path: Path, values: dict, message: str
) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    change(path, 0, **values)
    with pytest.raises(DataError, match=message):
        mend(broken, path)


def test_a_kill_between_the_correction_and_the_day_is_made_whole_by_running_again(
    broken: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.parquet"
    quarantine.export(broken, IMPRESSIONS, DAY, path)
    change(path, 0, p_click=0.7)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quarantine, "write_partition", killed)
    with pytest.raises(KeyboardInterrupt):
        mend(broken, path)
    monkeypatch.undo()
    assert mend(broken, path)["changed"] is True
    assert round(read(broken)[1]["p_click"], 3) == 0.7
    assert len(quarantine.mended(broken.layout)) == 1


def landed_rows(settings: Settings) -> pa.Table:
    """Five good rows, as the lake has them."""
    land(settings, IMPRESSIONS, DAY, source(settings, bad=False), "test")
    return pq.ParquetFile(settings.layout.partition(IMPRESSIONS, DAY) / "part-0.parquet").read()


def test_a_single_time_that_no_table_can_sum_is_set_aside(settings: Settings) -> None:
    rows = landed_rows(settings)
    place = rows.column_names.index("play_time_ms")
    rows = rows.set_column(place, "play_time_ms", pa.array([0, 0, 0, 2**62, 0], pa.int64()))
    lenient = settings.model_copy(update={"validation": ValidationSettings(max_bad_share=0.2)})
    kept, aside = split(lenient, IMPRESSIONS, DAY, rows)
    assert kept["item_id"].to_pylist() == [0, 1, 2, 4] and aside["item_id"].to_pylist() == [3]
    assert "play_time_ms is at most a year, 31622400000" in aside["reason"][0].as_py()
    assert split(settings, IMPRESSIONS, DAY, rows)[1].num_rows == 0  # one of five is more than may be


@pytest.mark.parametrize(("field", "near"), [("p_clik", "p_click"), ("repeated_row", "repeated_rows")])
def test_a_share_of_no_check_is_refused_with_the_near_name(settings: Settings, field: str, near: str) -> None:
    def shares(name: str) -> Settings:
        return settings.model_copy(update={"validation": ValidationSettings(max_bad_shares={name: 0.1})})

    rows = landed_rows(settings)
    with pytest.raises(
        SettingsError, match=rf"validation.max_bad_shares.{field}: no check .* is it {near}\?"
    ):
        split(shares(field), IMPRESSIONS, DAY, rows)
    assert split(shares(near), IMPRESSIONS, DAY, rows)[1].num_rows == 0
