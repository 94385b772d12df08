"""Ids in files: text, zeros in front, beyond 63 bits; each landed as it is, or refused with the setting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import lake_bytes, read
from tests.training.ingest.news import DAY, changed, csv_text, news_settings, place, rows
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import land, land_files

UUID = "0b6f6a52-9f9e-4a8e-9d0a-{:012x}"


def settings_with(tmp_path: Path, **ids: str) -> Settings:
    settings = news_settings(tmp_path / "data")
    return settings.model_copy(update={"ids": settings.ids.model_copy(update=ids)})


def as_csv(folder: Path, some: list[dict[str, Any]]) -> None:
    place(folder).write_text(csv_text(some))


def as_parquet(kind: pa.DataType, column: str) -> Callable[[Path, list[dict[str, Any]]], None]:
    def write(folder: Path, some: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist([{**row, column: None} for row in some])
        ids = pa.array([row[column] for row in some], kind)
        pq.write_table(
            table.set_column(table.column_names.index(column), column, ids), place(folder, "a.parquet")
        )

    return write


WRITTEN = {
    "UUIDs in CSV": ("user_id", "string", UUID.format, as_csv),
    "UUIDs in Parquet": ("user_id", "string", UUID.format, as_parquet(pa.large_string(), "user_id")),
    "zeros in CSV": ("user_id", "string", "{:08d}".format, as_csv),
    "zeros in Parquet": ("item_id", "string", "{:08d}".format, as_parquet(pa.string(), "item_id")),
    "whole numbers as text": ("item_id", "string", str, as_parquet(pa.int64(), "item_id")),
    "unsigned in CSV": ("item_id", "uint64", lambda v: str(2**63 + v), as_csv),
    "unsigned in Parquet": (
        "item_id",
        "uint64",
        lambda v: str(2**63 + v),
        as_parquet(pa.uint64(), "item_id"),
    ),
    "unsigned as text": (
        "user_id",
        "uint64",
        lambda v: str(2**64 - 1 - v),
        as_parquet(pa.string(), "user_id"),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ids_that_are_no_int64_land_as_they_are(tmp_path: Path, name: str) -> None:
    column, kind, spell, write = WRITTEN[name]
    settings = settings_with(tmp_path, **{"users" if column == "user_id" else "items": kind})
    some = rows(settings)
    written = changed(some, **{column: spell})
    if name in ("whole numbers as text", "unsigned in Parquet"):
        written = changed(written, **{column: int})
    write(tmp_path / "logs", written)
    land_files(settings, DAY, tmp_path / "logs")
    found = {(row["request_id"], row["position"]): row[column] for row in read(settings, day=DAY)}
    assert found == {(row["request_id"], row["position"]): spell(row[column]) for row in some}


def test_the_same_ids_in_csv_and_in_parquet_are_the_same_lake(tmp_path: Path) -> None:
    lakes = []
    for at, write in enumerate((as_csv, as_parquet(pa.string(), "user_id"))):
        settings = settings_with(tmp_path / str(at), users="string")
        write(tmp_path / str(at) / "logs", changed(rows(settings), user_id="{:05d}".format))
        land_files(settings, DAY, tmp_path / str(at) / "logs")
        lakes.append(lake_bytes(settings))
    assert lakes[0] == lakes[1]


@pytest.mark.parametrize(
    ("kinds", "column", "spell", "message"),
    [
        ({}, "user_id", UUID.format, r"where ids are not whole numbers, set ids\.users: string"),
        ({}, "item_id", "{:08d}".format, r"leading zeros.*set ids\.items: string"),
        ({}, "item_id", lambda v: 2**63 + v, r"too large for int64: set ids\.items: uint64"),
        ({}, "user_id", lambda v: 2**70 + v, r"too large for int64: set ids\.users: string"),
        ({"items": "uint64"}, "item_id", lambda v: -v - 1, r"column item_id is '-\d+', expected uint64"),
        ({"items": "uint64"}, "item_id", "{:08d}".format, r"leading zeros.*set ids\.items: string"),
        (
            {"items": "uint64"},
            "item_id",
            lambda v: 2**64 + v,
            r"too large for uint64: set ids\.items: string",
        ),
    ],
)
def test_ids_that_do_not_fit_are_refused_with_the_setting_that_takes_them(
    tmp_path: Path, kinds: dict[str, str], column: str, spell: Callable[[int], Any], message: str
) -> None:
    settings = settings_with(tmp_path, **kinds)
    as_csv(tmp_path / "logs", changed(rows(settings), **{column: spell}))
    with pytest.raises(DataError, match=message):
        land_files(settings, DAY, tmp_path / "logs")
    assert not settings.layout.partition(IMPRESSIONS, DAY).exists()


def test_unsigned_columns_beyond_63_bits_name_the_setting(tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    large = changed(rows(settings), item_id=lambda v: 2**63 + v)
    as_parquet(pa.uint64(), "item_id")(tmp_path / "logs", large)
    with pytest.raises(DataError, match=r"ids are whole numbers below 2\^63: set ids\.items: uint64"):
        land_files(settings, DAY, tmp_path / "logs")


def test_an_adapters_text_with_zeros_is_not_made_a_number(tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    table = pa.Table.from_pylist(changed(rows(settings), user_id="{:05d}".format))
    with pytest.raises(DataError, match=r"'0\d+' has leading zeros: set ids\.users: string"):
        land(settings, IMPRESSIONS, DAY, table, "mine")


def test_profiles_of_text_ids_land(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, users="string")
    as_csv(tmp_path / "logs", changed(rows(settings), user_id=UUID.format))
    profile = place(tmp_path / "logs", "u.csv", USERS)
    profile.write_text(f"user_id,updated_ts,country,age_days\n{UUID.format(1)},{DAY}T00:00:00Z,DE,3\n")
    land_files(settings, DAY, tmp_path / "logs")
    assert [row["user_id"] for row in read(settings, USERS, DAY)] == [UUID.format(1)]
