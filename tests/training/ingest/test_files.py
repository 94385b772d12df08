"""What tools make of a delivery: each spelling is read as the same rows, or refused with its cause."""

import errno
import gzip
import json
import os
import resource
import signal
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import lake_bytes
from tests.training.ingest.news import (
    DAY,
    changed,
    csv_text,
    files_settings,
    iso,
    news_settings,
    place,
    rows,
)
from training.contract.errors import DataError, StorageError
from training.contract.files import write_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import land_files, with_predictions
from training.validation import quarantine

Write = Callable[[Path, list[dict[str, Any]]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return news_settings(tmp_path / "data")


def landed(settings: Settings, folder: Path) -> dict[str, bytes]:
    land_files(settings, DAY, folder)
    return lake_bytes(settings)


def clean(tmp_path: Path) -> dict[str, bytes]:
    """The lake after the delivery as a single Parquet file of the contract's types."""
    settings = news_settings(tmp_path / "clean_data")
    pq.write_table(pa.Table.from_pylist(rows(settings)), place(tmp_path / "clean", "a.parquet"))
    return landed(settings, tmp_path / "clean")


def map_columns(folder: Path, **impressions: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "columns.json").write_text(json.dumps({"impressions": impressions}))


def as_csv(**how: Any) -> Write:
    return lambda folder, some: _write(place(folder), csv_text(some, **how))


def values(**changes: Callable[[Any], Any]) -> Write:
    return lambda folder, some: _write(place(folder), csv_text(changed(some, **changes)))


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.write_bytes(text.encode(encoding))


def parquet(**types: pa.DataType) -> Write:
    def write(folder: Path, some: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(some)
        for name, kind in types.items():
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
        pq.write_table(table, place(folder, "a.parquet"))

    return write


def mapped(write: Write, **impressions: Any) -> Write:
    def both(folder: Path, some: list[dict[str, Any]]) -> None:
        write(folder, some)
        map_columns(folder, **impressions)

    return both


def parts(folder: Path, some: list[dict[str, Any]]) -> None:
    """Hours as folders, upper case, compressed, a shard of a header only, a note and a marker beside."""
    _write(place(folder), csv_text(some[:4]))
    pq.write_table(pa.Table.from_pylist(some[4:8]), place(folder, "hour=01/part-0.snappy.PARQUET"))
    place(folder, "hour=02/x.CSV.GZ").write_bytes(gzip.compress(csv_text(some[8:12]).encode()))
    with pa.CompressedOutputStream(place(folder, "hour=03/deep/x.csv.zst"), "zstd") as sink:
        sink.write(csv_text(some[12:]).encode())
    _write(place(folder, "z.csv"), csv_text(some[:1]).splitlines()[0] + "\n")
    _write(place(folder, "hour=01/_SUCCESS"), "")
    _write(place(folder, "_note.txt"), "x")


def _naive(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


READ: dict[str, Write] = {
    "plain CSV": as_csv(),
    "semicolons": as_csv(separator=";"),
    "tabs": as_csv(separator="\t"),
    "pipes": as_csv(separator="|"),
    "Excel's line of the separator": lambda f, some: _write(place(f), "sep=;\n" + csv_text(some, ";")),
    "columns in another order": lambda f, some: _write(place(f), csv_text(some, names=sorted(some[0]))),
    "rows in another order": lambda f, some: _write(place(f), csv_text(some[::-1])),
    "line ends of Windows": lambda f, some: _write(place(f), csv_text(some).replace("\n", "\r\n")),
    "line ends of old Macs": lambda f, some: _write(place(f), csv_text(some).replace("\n", "\r")),
    "a byte order mark": lambda f, some: _write(place(f), csv_text(some), "utf-8-sig"),
    "empty lines": lambda f, some: _write(place(f), "\n" + csv_text(some).replace("\n", "\n\n")),
    "everything quoted": lambda f, some: _write(
        place(f),
        "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in csv_text(some).splitlines()),
    ),
    "blanks after commas": lambda f, some: _write(place(f), csv_text(some).replace(",", ", ")),
    "no line end at the end": lambda f, some: _write(place(f), csv_text(some).rstrip("\n")),
    "a comma at the end of every line": lambda f, some: _write(place(f), csv_text(some).replace("\n", ",\n")),
    "pandas' True and False": values(is_click=bool, is_share=lambda v: str(bool(v)).upper()),
    "yes and no": values(is_click=lambda v: "yes" if v else "no", is_share=lambda v: "t" if v else "f"),
    "signals as floats": values(is_click=float, is_share=float),
    "ids as floats": values(user_id=float, item_id=float, position=float, play_time_ms=float),
    "scores with exponents": values(p_click=lambda v: f"{v:e}", p_read_time=lambda v: f"+{v}"),
    "NULL and \\N": lambda f, some: _write(
        place(f),
        csv_text([row | {"session_id": "NULL", "feedback_ts": "\\N"} for row in some]),
    ),
    "times of BigQuery": values(event_ts=lambda t: f"{_naive(t)} UTC"),
    "times of Snowflake": values(event_ts=lambda t: f"{_naive(t)[:-3]} +0000"),
    "times of Postgres": values(event_ts=lambda t: f"{_naive(t)}+00"),
    "times of Go": values(event_ts=lambda t: f"{_naive(t)} +0000 UTC"),
    "times of another zone": values(
        event_ts=lambda t: (t + timedelta(hours=5, minutes=30)).strftime("%Y-%m-%dT%H:%M:%S.%f+05:30")
    ),
    "unix milliseconds": values(event_ts=lambda t: round(t.timestamp() * 1000)),
    "unix milliseconds as floats": values(event_ts=lambda t: float(round(t.timestamp() * 1000))),
    "unix seconds, said": mapped(values(event_ts=lambda t: f"{t.timestamp():.3f}"), event_ts={"unit": "s"}),
    "unix microseconds, said": mapped(
        values(event_ts=lambda t: round(t.timestamp() * 1000) * 1000), event_ts={"unit": "us"}
    ),
    "unix nanoseconds, said": mapped(
        values(event_ts=lambda t: round(t.timestamp() * 1000) * 1_000_000), event_ts={"unit": "ns"}
    ),
    "no offset, said": mapped(values(event_ts=_naive), event_ts={"zone": "UTC"}),
    "other names": mapped(
        lambda f, some: _write(
            place(f), csv_text(some).replace("item_id", "video").replace("p_click", "ctr")
        ),
        item_id="video",
        p_click="ctr",
    ),
    "a time an item, said": mapped(
        lambda f, some: _write(
            place(f),
            csv_text([r | {"event_ts": r["event_ts"] + timedelta(seconds=r["position"])} for r in some]),
        ),
        event_ts={"of": "item"},
    ),
    "parts of every kind": parts,
    "Parquet of other types": parquet(
        user_id=pa.float64(),
        item_id=pa.uint64(),
        is_click=pa.bool_(),
        position=pa.int8(),
        request_id=pa.dictionary(pa.int32(), pa.string()),
        play_time_ms=pa.decimal128(38, 0),
        event_ts=pa.timestamp("ns", "Europe/Berlin"),
        p_share=pa.float64(),
    ),
    "two blanks before UTC, and a zone": mapped(
        values(event_ts=lambda t: f"{_naive(t)}  UTC"), event_ts={"zone": "Asia/Tokyo"}
    ),
    "Parquet of wide decimals": parquet(
        user_id=pa.decimal256(60, 2), p_click=pa.decimal256(60, 4), p_read_time=pa.decimal256(76, 6)
    ),
    "Parquet of half floats": parquet(p_click=pa.float16(), position=pa.float16(), p_share=pa.float16()),
    "folders that hold what the file does": lambda f, some: [
        _write(place(f, f"position={n}/a.csv"), csv_text([r for r in some if r["position"] == n]))
        for n in range(4)
    ],
    "Parquet of text": parquet(user_id=pa.string(), request_id=pa.binary(), is_click=pa.large_string()),
}


@pytest.mark.parametrize("name", READ)
def test_every_spelling_lands_the_same(tmp_path: Path, settings: Settings, folder: Path, name: str) -> None:
    READ[name](folder, rows(settings))
    assert landed(settings, folder) == clean(tmp_path)


def line(number: int, old: str, new: str) -> Callable[[str], str]:
    """The text with one of its lines changed; the header is the first."""

    def change(text: str) -> str:
        lines = text.splitlines(keepends=True)
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
        return "".join(lines)

    return change


def text(change: Callable[[str], str], encoding: str = "utf-8") -> Write:
    return lambda folder, some: _write(place(folder), change(csv_text(some)), encoding)


def in_units(per_second: int) -> Callable[[datetime], int]:
    return lambda moment: int(moment.timestamp() * per_second)


def double_ids(folder: Path, some: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(changed(some, item_id=lambda v: float(2**53 + v)))
    pq.write_table(table, place(folder, "a.parquet"))


def beside(name: str, content: bytes = b"{}") -> Write:
    def write(folder: Path, some: list[dict[str, Any]]) -> None:
        _write(place(folder), csv_text(some))
        path = folder / name if "/" in name else place(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def cut_zstd(folder: Path, some: list[dict[str, Any]]) -> None:
    content = pa.compress(csv_text(some * 5000).encode(), "zstd", asbytes=True)
    place(folder, "a.csv.zst").write_bytes(content[: len(content) // 2])


REFUSED: dict[str, tuple[Write, str]] = {
    "unix seconds": (
        values(event_ts=in_units(1)),
        r'a\.csv, row 1: column event_ts .* in seconds 2026-11-2.*"unit": "s"',
    ),
    "half in seconds": (
        lambda f, some: _write(
            place(f),
            csv_text(changed(some[:10], event_ts=in_units(1000)) + changed(some[10:], event_ts=in_units(1))),
        ),
        r"row 11: .*in seconds.*\(10 of 20 rows\)",
    ),
    "unix microseconds": (values(event_ts=in_units(10**6)), r'in microseconds 2026-11-2.*"unit": "us"'),
    "unix nanoseconds": (values(event_ts=in_units(10**9)), r'in nanoseconds 2026-11-2.*"unit": "ns"'),
    "a row of 1970": (
        lambda f, some: _write(place(f), csv_text([*some[:6], some[6] | {"event_ts": 0}, *some[7:]])),
        r"row 7: column event_ts is '0'.*56 years away",
    ),
    "the year 1": (values(event_ts=lambda t: "0001-01-01T00:00:00Z"), "2025 years away"),
    "the year 9999": (values(event_ts=lambda t: "9999-12-31T00:00:00Z"), "years away"),
    "a date": (values(event_ts=lambda t: f"{t:%Y-%m-%d}"), "a date without a time of day"),
    "an offset of days": (values(event_ts=lambda t: f"{t:%Y-%m-%dT%H:%M:%S}+99:00"), "no time that is read"),
    "an offset beyond 18 hours": (
        values(event_ts=lambda t: f"{t:%Y-%m-%dT%H:%M:%S}-1830"),
        "no time that is read",
    ),
    "an offset of 75 minutes": (
        values(event_ts=lambda t: f"{t:%Y-%m-%dT%H:%M:%S}+00:75"),
        "no time that is read",
    ),
    "the last microsecond, without an offset": (
        mapped(
            lambda f, some: pq.write_table(
                pa.Table.from_pylist(some).set_column(
                    3, "event_ts", pa.array([2**63 - 1] * len(some)).cast(pa.timestamp("us"))
                ),
                place(f, "a.parquet"),
            ),
            event_ts={"zone": "Europe/Berlin"},
        ),
        r"row 1: column event_ts is 9223372036854775807",
    ),
    "a half float that may be two": (
        lambda f, some: parquet(position=pa.float16())(f, changed(some, position=lambda v: 2048.0 + 2 * v)),
        "column position is 2048.0 .* a halffloat does not hold every whole number from 2048",
    ),
    "a decimal of 60 digits": (
        lambda f, some: pq.write_table(
            pa.Table.from_pylist(some).set_column(
                5, "p_click", pa.array([Decimal(10) ** 59] * len(some), pa.decimal256(60, 0))
            ),
            place(f, "a.parquet"),
        ),
        r"column p_click is decimal256\(60, 0\) and holds more than 38 digits",
    ),
    "a folder and a column that differ": (
        lambda f, some: _write(place(f, "user_id=5/a.csv"), csv_text(some)),
        "column user_id is there 2 times, for a folder around the file",
    ),
    "folders that differ": (
        lambda f, some: _write(place(f, "session_id=5/session_id=6/a.csv"), csv_text(some)),
        "column session_id is there 2 times, for folders around the file differ",
    ),
    "midnight on every row": (
        values(event_ts=lambda t: "2026-11-24 00:00:00 UTC"),
        r"event_ts is midnight \(UTC\) in all of 20 rows",
    ),
    "no offset": (values(event_ts=_naive), r'its offset is missing.*"zone": "calendar"'),
    "no offset in Parquet": (
        lambda f, some: pq.write_table(
            pa.Table.from_pylist(changed(some, event_ts=lambda t: t.replace(tzinfo=None))),
            place(f, "a.parquet"),
        ),
        r"a\.parquet, row 1: column event_ts .*its offset is missing",
    ),
    "an hour that comes twice": (
        mapped(values(event_ts=lambda t: "2026-10-25 02:30:00"), event_ts={"zone": "Europe/Berlin"}),
        "clocks in Europe/Berlin were changed over it",
    ),
    "an hour that never was": (
        mapped(
            values(event_ts=lambda t: "2026-03-29 02:30:00"),
            event_ts={"zone": "Europe/Berlin", "ambiguous": "latest"},
        ),
        "clocks in Europe/Berlin were changed over it",
    ),
    "times of Excel": (
        values(event_ts=lambda t: f"{t:%d.%m.%Y %H:%M}"),
        "no time that is read: write 2026-01-05T",
    ),
    "no rows": (text(lambda t: t.splitlines()[0] + "\n"), "nothing but a header in .*a.csv"),
    "no bytes": (text(lambda t: ""), "a.csv: an empty file, without a header"),
    "a column twice": (
        text(lambda t: t.replace("duration_ms\n", "duration_ms,user_id\n").replace("60000\n", "60000,5\n")),
        "column user_id is there 2 times",
    ),
    "brackets": (
        text(line(4, ",0,0,", ",[null],0,")),
        r"row 3: column is_click is '\[null\]', expected int8: write 0 or 1",
    ),
    "a score in words": (
        text(line(3, "0.0625", "low")),
        "row 2: column p_share is 'low', expected float: write a num",
    ),
    "a decimal comma": (
        lambda f, some: _write(
            place(f), csv_text(changed(some, p_click=lambda v: f"{v}".replace(".", ",")), ";")
        ),
        "column p_click is '0,25'.* with a point",
    ),
    "digits that Excel lost": (values(item_id=lambda v: f"{v:.2E}"), "has lost digits"),
    "half a position": (values(position=lambda v: v + 0.5), "column position is '0.5', expected int32"),
    "an id with zeros": (values(user_id=lambda v: f"{v:08d}"), "leading zeros is text"),
    "an id in words": (values(user_id=lambda v: f"u{v}"), "row 1: column user_id is 'u1', expected int64"),
    "an id of 65 bits": (values(item_id=lambda v: 2**63 + v), "expected int64"),
    "an id as a double beyond 2^53": (double_ids, r"9007199254741992.*double.*two may be one: bring int64"),
    "one mapped to two": (
        mapped(as_csv(), p_click="p_click", p_share="p_click"),
        "p_click and p_share are both read from 'p_click'",
    ),
    "a slip": (text(lambda t: t.replace("p_click", "pclick")), "a column pclick and no p_click"),
    "a slip in case": (text(lambda t: t.replace("p_click", "P_CLICK")), "a column P_CLICK and no p_click"),
    "a slip of a needed one": (
        text(lambda t: t.replace("item_id", "itemid")),
        "missing column item_id; .*is itemid your item_id",
    ),
    "a mapping to nothing": (
        mapped(as_csv(), p_click="ctr"),
        "missing column ctr, which columns.json names as p_click",
    ),
    "another file": (beside("b.json"), r"b\.json: not a file that is read .*begin with _"),
    "a broken file beside": (beside("b.csv.zst", b"zstd"), "b.csv.zst"),
    "a folder in other words": (beside("user/dt=2026-11-24/a.csv"), "user: is it users"),
    "a day in other words": (beside("users/dt=20261124/a.csv"), "dt=20261124: not a delivery"),
    "a file beside the days": (beside("impressions/a.csv"), "a.csv: not a delivery"),
    "UTF-16": (text(str, "utf-16"), "a.csv: it is UTF-16: write it as CSV in UTF-8"),
    "UTF-16 without its mark": (text(str, "utf-16-le"), "line 1: zero bytes, as of UTF-16"),
    "Latin-1": (text(line(4, "r24-0", "r24-é"), "latin-1"), "line 4: not UTF-8 at byte 5"),
    "Parquet by another name": (
        lambda f, some: pq.write_table(pa.Table.from_pylist(some), place(f, "a.csv")),
        "it is Parquet, not CSV",
    ),
    "cut off in a row": (
        text(lambda t: t[: t.index("r24-3,") + 9]),
        r"line 14: Expected 12 columns, got 3: 'r24-3,1,1'.*cut off there",
    ),
    "a short row": (text(line(5, ",60000", "")), "line 5: Expected 12 columns, got 11: .*Mend the line"),
    "a long row": (
        text(line(5, ",60000", ",60,000")),
        "line 5: Expected 12 columns, got 13: .*Quote values that hold a comma",
    ),
    "a title before the header": (
        text(lambda t: "Impressions of Monday\n" + t),
        "line 2: Expected 1 columns, got 12: .*Is line 1, 'Impressions of Monday', no header",
    ),
    "a header again": (
        lambda f, some: _write(place(f), csv_text(some[:8]) + csv_text(some[8:])),
        "row 9: column user_id is 'user_id'.* a header again",
    ),
    "another type late in a large file": (
        lambda f, some: _write(
            place(f), csv_text(some) + csv_text(some * 3000).partition("\n")[2] + "x,1,b" + ",1" * 9 + "\n"
        ),
        "row 60021: column item_id is 'b'",
    ),
    "a quote that is not ended": (text(line(5, "r24-0", '"r24-0')), "line 5: a quote begins a value"),
    "mixed line ends": (
        lambda f, some: place(f).write_bytes(csv_text(some).replace("\n", "\r\n", 5).encode()),
        "its lines end in different ways",
    ),
    "a zstd file cut off": (cut_zstd, r"a\.csv\.zst: unreadable CSV: .*cut off"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_cause(settings: Settings, folder: Path, name: str) -> None:
    write, message = REFUSED[name]
    write(folder, rows(settings))
    with pytest.raises(DataError, match=message) as raised:
        land_files(settings, DAY, folder)
    assert str(raised.value).count("\n") == 0
    assert lake_bytes(settings) == {}


def test_quoted_line_ends_in_a_large_file_are_read(settings: Settings, folder: Path) -> None:
    some = [row | {"session_id": f'a\n,"{row["request_id"]}'} for row in rows(settings, 9000)]
    _write(place(folder), csv_text(some))
    record = land_files(settings, DAY, folder)
    assert record["tables"][IMPRESSIONS]["rows"] == 36_000
    kept = pq.ParquetFile(settings.layout.partition(IMPRESSIONS, DAY) / "part-0.parquet").read()
    assert {*kept["session_id"].to_pylist()} == {row["session_id"] for row in some}


def test_what_is_not_read_is_named(settings: Settings, folder: Path) -> None:
    some = [row | {"bucket": 3} for row in rows(settings)]
    _write(place(folder), csv_text([{k: v for k, v in row.items() if k != "p_share"} for row in some]))
    _write(place(folder, "_b.csv"), csv_text(some))
    told = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert (told["files"], told["left_out"]) == (1, ["_b.csv"])
    assert told["unread_columns"] == ["bucket"]
    assert told["absent_columns"] == ["feedback_ts", "p_share", "session_id"]


def test_a_column_that_looks_like_a_slip_is_left_when_the_mapping_says_so(
    settings: Settings, folder: Path
) -> None:
    _write(place(folder), csv_text(rows(settings)).replace("p_share", "p_shares"))
    with pytest.raises(DataError, match="a column p_shares and no p_share"):
        land_files(settings, DAY, folder)
    map_columns(folder, p_share=None)
    assert land_files(settings, DAY, folder)["tables"][IMPRESSIONS]["rows"] == 20


def test_folders_around_a_file_are_columns(settings: Settings, folder: Path) -> None:
    _write(place(folder), csv_text(rows(settings)))
    profile = [{"user_id": 1, "updated_ts": settings.day_start(DAY), "age_days": 3.5}]
    _write(place(folder, "country=AT/u.csv", USERS), csv_text(profile))
    land_files(settings, DAY, folder)
    [row] = pq.ParquetFile(settings.layout.partition(USERS, DAY) / "part-0.parquet").read().to_pylist()
    assert (row["country"], row["age_days"]) == ("AT", 3.5)


@pytest.mark.parametrize(
    ("folder_name", "session"),
    [("session_id=__HIVE_DEFAULT_PARTITION__", None), ("session_id=a%20b%3D", "a b="), ("session_id=", None)],
)
def test_folders_are_read_as_hive_writes_them(
    settings: Settings, folder: Path, folder_name: str, session: str | None
) -> None:
    _write(place(folder, f"{folder_name}/a.csv"), csv_text(rows(settings)))
    land_files(settings, DAY, folder)
    assert {row["session_id"] for row in landed_rows(settings)} == {session}


def landed_rows(settings: Settings) -> list[dict[str, Any]]:
    part = settings.layout.partition(IMPRESSIONS, DAY) / "part-0.parquet"
    return list(pq.ParquetFile(part).read().to_pylist())


@pytest.mark.parametrize("text", ["", "NULL", "\\N"])
def test_text_that_is_no_value_is_null_in_parquet_as_in_csv(
    tmp_path: Path, settings: Settings, folder: Path, text: str
) -> None:
    some = [row | {"session_id": text if row["position"] else "s"} for row in rows(settings)]
    some[3]["request_id"] = text
    pq.write_table(pa.Table.from_pylist(some), place(folder, "a.parquet"))
    in_parquet = landed(settings, folder)
    assert [r["session_id"] for r in landed_rows(settings)].count(None) == 15
    again = news_settings(tmp_path / "again")
    _write(place(tmp_path / "text"), csv_text(some))
    assert landed(again, tmp_path / "text") == in_parquet


def test_lists_of_half_floats_are_read(settings: Settings, folder: Path) -> None:
    _write(place(folder), csv_text(rows(settings)))
    half = pa.array([np.array([0.5, -0.25, 1.0], np.float16)], pa.list_(pa.float16()))
    decision = pa.table({
        "request_id": ["r24-0"], "session_id": ["s"], "user_id": [1],
        "event_ts": [rows(settings)[0]["event_ts"]], "policy_version": ["static"], "arm": ["static"],
        "state": half, "action": half, "action_mean": half, "state_spec": ["s0"],
    })  # fmt: skip
    pq.write_table(decision, place(folder, "d.parquet", DECISIONS))
    land_files(settings, DAY, folder)
    part = settings.layout.partition(DECISIONS, DAY) / "part-0.parquet"
    assert pq.ParquetFile(part).read()["action"].to_pylist() == [[0.5, -0.25, 1.0]]


@pytest.mark.parametrize("name", ["impressions", "users"])
def test_a_disk_that_takes_no_more_is_named(settings: Settings, folder: Path, name: str) -> None:
    """By a limit of a file's size: the system's answer to a full disk differs by its number alone."""
    _write(place(folder), csv_text(rows(settings, 3000 if name == IMPRESSIONS else 5)))
    some = [{"user_id": n, "updated_ts": settings.day_start(DAY), "age_days": n / 7} for n in range(9000)]
    _write(place(folder, table=USERS), csv_text(some))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError, match=f"{name}.*: cannot be written: larger") as raised:
            land_files(settings, DAY, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value).count("\n") == 0
    assert lake_bytes(settings) == {}


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "its file system is read-only")]
)
def test_what_a_disk_says_is_one_line_with_the_path(tmp_path: Path, number: int, told: str) -> None:
    def write(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with pytest.raises(StorageError, match=rf"x\.json: cannot be written: {told}"):
        write_atomic(tmp_path / "x.json", write)
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_pattern_s_signs_is_that_file_only(settings: Settings, folder: Path) -> None:
    some = rows(settings)
    _write(place(folder, "part[1].csv"), csv_text(some[:8]))
    _write(place(folder, "part*.csv"), csv_text(some[8:]))
    told = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert (told["rows"], told["duplicates_removed"], told["files"]) == (20, 0, 2)


COLUMNS_FILES = {
    '{"impressions": {"item_id": "a", "item_id": "b"}}': "'item_id' is named twice",
    '{"impressions": {"item_id": 3}}': r"impressions\.item_id: expected a column's name",
    '{"impressions": {"item_id": null}}': r"impressions\.item_id is null, but impressions needs it",
    '{"impressions": {"item_id": {"unit": "s"}}}': "unit is of times, and item_id is none",
    '{"impressions": {"event_ts": {"unit": "minutes"}}}': "'minutes' is none of s, ms, us, ns",
    '{"impressions": {"event_ts": {"zone": "Berlin"}}}': "'Berlin' is no zone",
    '{"impressions": {"event_ts": {"colum": "x"}}}': "unknown entry 'colum'",
    '{"impressions": []}': "expected an object of columns",
    "[]": "expected an object of tables",
}


@pytest.mark.parametrize("content", COLUMNS_FILES)
def test_a_mapping_that_is_wrong_is_refused(settings: Settings, folder: Path, content: str) -> None:
    _write(place(folder), csv_text(rows(settings)))
    (folder / "columns.json").write_text(content)
    with pytest.raises(DataError, match=COLUMNS_FILES[content]):
        land_files(settings, DAY, folder)


def test_a_category_that_the_settings_do_not_name_is_warned_of(tmp_path: Path, folder: Path) -> None:
    from training.validation.stages import validate_landed

    settings = files_settings(tmp_path / "data", folder)
    _write(place(folder), csv_text(rows(settings)))
    start = iso(settings.day_start(DAY))
    profiles = [{"user_id": n, "updated_ts": start, "country": "PL" if n == 3 else "DE"} for n in range(9)]
    _write(place(folder, table=USERS), csv_text(profiles))
    land_files(settings, DAY, folder)
    record = validate_landed(settings, DAY)
    assert record["success"]
    [warned] = [f for f in record["suites"]["users_day"]["failed"] if f["column"] == "country"]
    assert (warned["severity"], warned["observed"]) == ("warning", 1.0)
    assert "not named: PL, 1 rows" in warned["message"]


CASES = Path(__file__).parents[3] / "../shared/cases"
HELD = {  # case: what is said, or None where it lands
    "ts_unix_seconds": "in seconds 2026-11-24",
    "ts_unix_us": "in microseconds 2026-11-24",
    "header_only": "nothing but a header",
    "column_twice": "user_id is there 2 times",
    "value_in_brackets": r"'\[null\]'",
    "columns_json_two_to_one": "p_click and p_share are both read from 'p_click'",
    "misspelt_prediction": "a column pclick and no p_click",
    "hive_hour_beside": None,
    "unknown_suffix_beside": r"b\.json: not a file that is read",
    "bool_True_False": None,
    "signal_float_csv": None,
    "float_ids": None,
    "ts_naive_text": "its offset is missing",
    "ts_bigquery": None,
    "semicolon": None,
    "partial_csv_midrow": "line 11: Expected 12 columns, got 4.*cut off",
    "digit_string_leading_zero": "leading zeros",
    "pq_uint64_big": r"9223372036854777968",
    "utf16": "it is UTF-16",
    "users_new_category": None,
    "per_item_times": None,  # validation names the way to read it
}


@pytest.mark.real
@pytest.mark.parametrize("case", HELD)
def test_the_cases_that_users_brought(tmp_path: Path, case: str) -> None:
    settings = news_settings(tmp_path / "data")
    if (message := HELD[case]) is not None:
        with pytest.raises(DataError, match=message):
            land_files(settings, DAY, CASES / case)
        return
    files = [p for p in (CASES / case / "impressions").rglob("*") if p.is_file()]
    expected = sum(
        pq.read_metadata(p).num_rows if p.suffix == ".parquet" else len(p.read_text().splitlines()) - 1
        for p in files
    )
    assert land_files(settings, DAY, CASES / case)["tables"][IMPRESSIONS]["rows"] == expected > 0


def test_a_row_of_tomorrow_costs_the_row(settings: Settings, folder: Path) -> None:
    """It lies in quarantine; more of them are another zone, which is named."""
    some = rows(settings, 30)
    some[7] |= {"event_ts": some[7]["event_ts"] + timedelta(days=1)}
    _write(place(folder), csv_text(some))
    told = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert (told["rows"], told["later_rows"], told["days"]) == (119, 1, [str(DAY)])
    [held] = quarantine.held(settings)
    assert (held.day, held.rows, held.reasons) == (
        DAY,
        1,
        {"expected: event_ts lies in the delivery's day, 2026-11-24, or before": 1},
    )
    # mended, it lies in its day
    mended = folder.parent / "mended.csv"
    quarantine.export(settings, IMPRESSIONS, DAY, mended)
    mended.write_text(mended.read_text().replace("2026-11-25", "2026-11-24"))
    quarantine.land(settings, IMPRESSIONS, DAY, mended, by="me", why="a clock")
    assert land_files(settings, DAY, folder)["tables"][IMPRESSIONS]["rows"] == 120
    # an hour of them
    shifted = changed(rows(settings, 30), event_ts=lambda t: t + timedelta(hours=1))
    _write(place(folder), csv_text(shifted))
    with pytest.raises(DataError, match=r"\(4 of 120\): .* calendar.timezone, UTC"):
        land_files(settings, DAY, folder)
    _write(place(folder), csv_text(rows(settings)))
    land_files(settings, DAY, folder)
    assert quarantine.held(settings) == []


@pytest.mark.parametrize(("zone", "day"), [("Europe/Berlin", "2026-10-25"), ("Asia/Kolkata", "2026-11-24")])
def test_deliveries_of_a_local_day_land_in_it(tmp_path: Path, zone: str, day: str) -> None:
    """Of 25 hours, and in a zone of half hours."""
    own, one = news_settings(tmp_path / "data", zone), date.fromisoformat(day)
    _write(place(tmp_path / "logs", day=one), csv_text(rows(own, 200, one)))
    told = land_files(own, one, tmp_path / "logs")["tables"][IMPRESSIONS]
    assert (told["rows"], told["days"]) == (800, [day])


def test_one_bad_row_of_many_goes_to_quarantine_and_the_day_goes_on(tmp_path: Path) -> None:
    from training.validation.stages import validate_landed

    def settings_of(**validation: Any) -> Settings:
        return news_settings(tmp_path / "data", validation=validation)

    settings, folder = settings_of(max_bad_share=0.01), tmp_path / "logs"
    some = rows(settings, 50)
    some[3] |= {"p_click": 1.5}
    some[9] |= {"is_click": 2, "p_click": 7.0}
    _write(place(folder), csv_text(some))
    told = land_files(settings, DAY, folder)["tables"][IMPRESSIONS]
    assert (told["rows"], told["set_aside"]) == (198, 2)
    lake = lake_bytes(settings)
    assert land_files(settings, DAY, folder)["tables"][IMPRESSIONS]["changed_days"] == []
    assert lake_bytes(settings) == lake
    record = validate_landed(settings, DAY)
    assert record["success"]
    [warned] = [f for f in record["suites"]["impressions_day"]["failed"] if f["field"] == "rows_set_aside"]
    assert (warned["severity"], warned["observed"]) == ("warning", 2.0)
    reasons = quarantine.rows(settings, IMPRESSIONS, DAY)["reason"].to_pylist()
    assert sorted(len(reason.split("; ")) for reason in reasons) == [1, 2]
    # predictions that are filled in later leave them where they are
    with_predictions(settings, DAY, pa.table({"request_id": ["r24-1"], "item_id": [1007], "p_share": [0.5]}))
    assert quarantine.held(settings)[0].rows == 2
    # mended, they lie in their day
    mended = tmp_path / "mended.parquet"
    quarantine.export(settings, IMPRESSIONS, DAY, mended)
    table = pq.ParquetFile(mended).read()
    for name, value in (
        ("p_click", pa.array([0.5, 0.5], pa.float32())),
        ("is_click", pa.array([1, 1], pa.int8())),
    ):
        table = table.set_column(table.column_names.index(name), name, value)
    pq.write_table(table, mended)
    quarantine.land(settings, IMPRESSIONS, DAY, mended, by="me", why="logged in percent")
    assert land_files(settings, DAY, folder)["tables"][IMPRESSIONS]["rows"] == 200
    assert quarantine.held(settings) == []
    # a check may have a share of its own; above it the day stops, with every row there
    strict = settings_of(max_bad_share=0.01, max_bad_shares={"p_share": 0.0})
    some[5] |= {"p_share": 3.0}
    _write(place(folder), csv_text(some))
    assert land_files(strict, DAY, folder)["tables"][IMPRESSIONS]["rows"] == 200
    assert not validate_landed(strict, DAY)["success"]
    assert quarantine.held(settings)[0].rows == 1
