"""KuaiRand's traps, on rows written here; the real slice under ``real``."""

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.training.ingest.conftest import SHANGHAI, kuairand_row, lake_bytes, read
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import ProfileFeature, Settings, SignalSettings, StateSettings
from training.ingest import land_kuairand, with_predictions
from training.ingest.kuairand import LOG_COLUMNS

SLICE = Path(__file__).parents[3] / "../shared/data/kuairand_pure"
APRIL_25, APRIL_26 = date(2022, 4, 25), date(2022, 4, 26)
EVENING = 1_650_880_800_000  # 25 April 2022, 18:00 at UTC+8
HOUR = 3_600_000
DEGREES = (
    "full_active",
    "high_active",
    "middle_active",
    "low_active",
    "single_low_active",
    "2_14_day_new",
    "30day_retention",
    "day_new",
    "UNKNOWN",
)
USER_COLUMNS = (
    "user_id",
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num",
    "follow_user_num_range",
    "fans_user_num",
    "friend_user_num",
    "register_days",
    "onehot_feat4",
)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def user(user_id: int, **values: Any) -> dict[str, Any]:
    return (
        dict.fromkeys(USER_COLUMNS, 0)
        | {"user_id": user_id, "user_active_degree": "full_active", "follow_user_num_range": "(0,10]"}
        | values
    )


def write_release(folder: Path, rows: Iterable[dict[str, int]], release: str = "pure") -> Path:
    """A standard log and a user table."""
    log = write_csv(folder / f"log_standard_4_22_to_5_08_{release}.csv", LOG_COLUMNS, rows)
    write_csv(folder / f"user_features_{release}.csv", USER_COLUMNS, [user(1)])
    return log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kuairand"


def test_days_are_cut_by_time_and_not_by_the_rounded_date(settings: Settings, folder: Path) -> None:
    before_midnight = EVENING + 5 * HOUR + 55 * 60_000  # 23:55 on the 25th, rounded up to the 26th
    rows = [
        kuairand_row(video_id=1),
        kuairand_row(video_id=2, time_ms=before_midnight, date=20220426, hourmin=0),
        kuairand_row(video_id=3, time_ms=EVENING + 7 * HOUR, date=20220426, hourmin=100),
    ]
    write_release(folder, rows)
    records = land_kuairand(settings, folder)
    assert [record["day"] for record in records] == ["2022-04-25", "2022-04-26"]
    assert [row["item_id"] for row in read(settings, day=APRIL_25)] == [1, 2]
    assert [row["item_id"] for row in read(settings, day=APRIL_26)] == [3]


def test_the_fragment_before_the_first_date_is_counted_and_landed_only_by_name(
    settings: Settings, folder: Path
) -> None:
    fragment = EVENING - 18 * HOUR - 60_000  # 23:59 on the 24th, dated the 25th
    write_release(folder, [kuairand_row(), kuairand_row(video_id=2, time_ms=fragment, hourmin=0)])
    (record,) = land_kuairand(settings, folder)
    assert (record["day"], record["tables"][IMPRESSIONS]["rows_outside_days"]) == ("2022-04-25", 1)
    assert settings.layout.days(IMPRESSIONS) == [APRIL_25]
    land_kuairand(settings, folder, [date(2022, 4, 24)])
    assert [row["item_id"] for row in read(settings, day=date(2022, 4, 24))] == [2]
    assert settings.layout.days(USERS) == [APRIL_25]


def test_duplicates_are_removed_and_counted(settings: Settings, folder: Path) -> None:
    rows = [
        kuairand_row(),
        kuairand_row(video_id=2, tab=6, hourmin=1800),
        kuairand_row(),  # exact
        kuairand_row(video_id=2, tab=6, hourmin=1900),  # the same impression, rounded to another hour
        kuairand_row(video_id=3, play_time_ms=9_000),
        kuairand_row(video_id=3, play_time_ms=48_000, is_click=1, long_view=1),  # a longer play of it
    ]
    write_release(folder, rows)
    (record,) = land_kuairand(settings, folder)
    counted = record["tables"][IMPRESSIONS]
    assert (counted["rows_read"], counted["rows"]) == (6, 3)
    assert (counted["exact_duplicates"], counted["repeated_impressions"]) == (1, 2)
    assert counted["duplicates_removed"] == 3
    kept = {row["item_id"]: row["play_time_ms"] for row in read(settings, day=APRIL_25)}
    assert kept == {100: 5_000, 2: 5_000, 3: 48_000}


def test_a_long_view_without_a_click_is_kept_and_counted(settings: Settings, folder: Path) -> None:
    write_release(folder, [kuairand_row(long_view=1, is_click=0), kuairand_row(video_id=2, is_click=1)])
    (record,) = land_kuairand(settings, folder)
    assert record["tables"][IMPRESSIONS]["long_view_without_click"] == 1
    assert [(row["long_view"], row["is_click"]) for row in read(settings, day=APRIL_25)] == [(1, 0), (0, 1)]


def test_videos_that_share_a_time_are_one_request_in_file_order(settings: Settings, folder: Path) -> None:
    rows = [
        kuairand_row(video_id=30, tab=6),
        kuairand_row(video_id=20, tab=6),
        kuairand_row(video_id=30, tab=6),  # a duplicate does not take a position
        kuairand_row(video_id=10, tab=6),
        kuairand_row(video_id=5, tab=5),  # another page
        kuairand_row(video_id=5, tab=6, user_id=2),  # another user
        kuairand_row(video_id=7, tab=6, is_rand=1),  # a random exposure is a request of its own
    ]
    write_release(folder, rows)
    land_kuairand(settings, folder)
    found = [(r["request_id"], r["position"], r["item_id"]) for r in read(settings, day=APRIL_25)]
    assert found == [
        (f"1-{EVENING}-5", 0, 5),
        (f"1-{EVENING}-6", 0, 30),
        (f"1-{EVENING}-6", 1, 20),
        (f"1-{EVENING}-6", 2, 10),
        (f"1-{EVENING}-6-r", 0, 7),
        (f"2-{EVENING}-6", 0, 5),
    ]


def test_what_nothing_public_holds_is_null_and_an_unknown_duration_stays_zero(
    settings: Settings, folder: Path
) -> None:
    write_release(folder, [kuairand_row(duration_ms=0)])
    land_kuairand(settings, folder)
    (row,) = read(settings, day=APRIL_25)
    nulls = {name for name, value in row.items() if value is None}
    assert nulls == {"session_id", "feedback_ts", *(f"p_{head.name}" for head in settings.heads)}
    assert row["duration_ms"] == 0
    assert row["event_ts"] == datetime(2022, 4, 25, 10, tzinfo=UTC)


def test_the_user_table(tmp_path: Path, folder: Path) -> None:
    profile = [
        ProfileFeature(column="user_active_degree", kind="categorical", categories=("full_active",)),
        ProfileFeature(column="is_live_streamer", kind="flag"),
        ProfileFeature(column="follow_user_num", kind="log"),
        ProfileFeature(column="follow_user_num_range", kind="categorical", categories=("(0,10]",)),
        ProfileFeature(column="onehot_feat4", kind="categorical", categories=("4",)),
    ]
    settings = Settings(
        data=tmp_path / "data", calendar=SHANGHAI, state=StateSettings(profile=tuple(profile))
    )
    write_release(folder, [kuairand_row()])
    (folder / "user_features_pure.csv").unlink()
    rows = [user(n, user_active_degree=degree) for n, degree in enumerate(DEGREES)]
    rows[0] |= {"is_live_streamer": -124, "onehot_feat4": "4.0", "follow_user_num_range": "(250,500]"}
    rows[1] |= {"is_live_streamer": 1, "onehot_feat4": "", "follow_user_num": 514}
    write_csv(folder / "user_features_pure.csv.gz", USER_COLUMNS, rows)
    (record,) = land_kuairand(settings, folder)
    assert record["tables"][USERS]["rows"] == 9
    landed = read(settings, USERS, APRIL_25)
    assert [row["user_active_degree"] for row in landed] == list(DEGREES)
    assert [row["is_live_streamer"] for row in landed[:3]] == [0, 1, 0]
    assert [row["onehot_feat4"] for row in landed[:3]] == ["4", None, "0"]
    assert (landed[0]["follow_user_num_range"], landed[1]["follow_user_num"]) == ("(250,500]", 514.0)
    midnight = datetime(2022, 4, 24, 16, tzinfo=UTC)
    assert {row["updated_ts"] for row in landed} == {midnight}
    assert min(row["event_ts"] for row in read(settings, day=APRIL_25)) >= midnight


def test_parts_plain_and_compressed_standard_and_random_are_read_together(
    settings: Settings, folder: Path
) -> None:
    data = folder / "data"  # as the official archives unpack
    parts = [
        ("log_standard_4_08_to_4_21_27k_part1.csv", kuairand_row(video_id=1, tab=6)),
        ("log_standard_4_08_to_4_21_27k_part10.csv.gz", kuairand_row(video_id=3, tab=6)),
        ("log_standard_4_08_to_4_21_27k_part2.csv.gz", kuairand_row(video_id=2, tab=6)),
        ("log_random_4_22_to_5_08_27k.csv", kuairand_row(video_id=4, is_rand=1)),
    ]
    for name, row in parts:
        write_csv(data / name, LOG_COLUMNS, [row])
    write_csv(data / "user_features_27k.csv", USER_COLUMNS, [user(1)])
    land_kuairand(settings, folder)
    rows = [(row["item_id"], row["position"]) for row in read(settings, day=APRIL_25)]
    assert rows == [(4, 0), (1, 0), (2, 1), (3, 2)]  # part10 comes after part2


def test_landing_twice_changes_nothing_and_keeps_predictions(settings: Settings, folder: Path) -> None:
    write_release(folder, [kuairand_row(), kuairand_row(video_id=2, time_ms=EVENING + 1)])
    land_kuairand(settings, folder)
    keys = {"request_id": [f"1-{EVENING}-1"], "item_id": [100]}
    with_predictions(settings, APRIL_25, pa.table({**keys, "p_like": [0.125]}))
    lake = lake_bytes(settings)
    (record,) = land_kuairand(settings, folder)
    assert lake_bytes(settings) == lake
    assert record["tables"][IMPRESSIONS]["changed_days"] == []
    assert [row["p_like"] for row in read(settings, day=APRIL_25)] == [0.125, None]


def test_a_day_named_is_landed_alone_and_an_absent_one_refused(settings: Settings, folder: Path) -> None:
    rows = [kuairand_row(), kuairand_row(time_ms=EVENING + 24 * HOUR, date=20220426)]
    write_release(folder, rows)
    land_kuairand(settings, folder, [APRIL_26])
    assert settings.layout.days(IMPRESSIONS) == [APRIL_26]
    assert settings.layout.days(USERS) == [APRIL_25]  # before every day, whichever was landed
    with pytest.raises(DataError, match=r"no row of 2022-05-01; it holds 2022-04-25 to 2022-04-26"):
        land_kuairand(settings, folder, [date(2022, 5, 1)])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"play_time_ms": "x"}, r"log_standard.*csv, row 2: column play_time_ms is 'x', expected int64"),
        ({"time_ms": "1650880800000.5"}, r"csv, row 2: column time_ms is '1650880800000.5', expected int64"),
        ({"tab": ""}, r"log_standard.*csv, row 2: column tab is empty"),
    ],
)
def test_a_bad_value_is_named(settings: Settings, folder: Path, row: dict, message: str) -> None:
    write_release(folder, [kuairand_row(), kuairand_row(**row)])
    with pytest.raises(DataError, match=message):
        land_kuairand(settings, folder)
    assert settings.layout.days(IMPRESSIONS) == []


def test_broken_and_missing_files_are_named(settings: Settings, folder: Path) -> None:
    with pytest.raises(DataError, match="no standard or random log"):
        land_kuairand(settings, folder)
    columns = [name for name in LOG_COLUMNS if name != "is_like"]
    log = folder / "log_standard_4_22_to_5_08_pure.csv"
    write_csv(log, columns, [{name: kuairand_row()[name] for name in columns}])
    with pytest.raises(DataError, match="no user table"):
        land_kuairand(settings, folder)
    write_csv(folder / "user_features_pure.csv", USER_COLUMNS, [user(1)])
    with pytest.raises(DataError, match=r"missing column is_like; it has user_id, video_id"):
        land_kuairand(settings, folder)
    log.unlink()
    many = (kuairand_row(video_id=n) for n in range(2_000))
    packed = write_csv(log.with_suffix(".csv.gz"), LOG_COLUMNS, many)
    _cut(packed)
    with pytest.raises(DataError, match=r"pure\.csv\.gz.*Truncated compressed stream"):
        land_kuairand(settings, folder)
    write_csv(log, LOG_COLUMNS, [kuairand_row()])
    with pytest.raises(DataError, match=r"log_standard_4_22_to_5_08_pure.csv twice"):
        land_kuairand(settings, folder)
    packed.rename(folder / "log_random_4_22_to_5_08_1k.csv.gz")
    with pytest.raises(DataError, match=r"several releases \(1k, pure\)"):
        land_kuairand(settings, folder)


def test_a_signal_that_kuairand_does_not_have_is_named(tmp_path: Path, folder: Path) -> None:
    settings = Settings(data=tmp_path, signals=(SignalSettings(name="share", column="is_share"),))
    write_release(folder, [kuairand_row()])
    with pytest.raises(DataError, match="'is_share', which KuaiRand does not have"):
        land_kuairand(settings, folder)


@pytest.mark.slow
@pytest.mark.real
def test_the_real_slice(settings: Settings) -> None:
    records = land_kuairand(settings, SLICE)
    days = [APRIL_25 + timedelta(days=n) for n in range(6)]
    assert settings.layout.days(IMPRESSIONS) == days
    counted = [record["tables"][IMPRESSIONS] for record in records]
    assert sum(c["rows_read"] for c in counted) + counted[0]["rows_outside_days"] == 94_784
    assert sum(c["exact_duplicates"] for c in counted) == 2_750
    for day in days:
        rows = read(settings, day=day)
        keys = {(row["request_id"], row["item_id"]) for row in rows}
        assert len(keys) == len(rows) > 13_000
        assert all(row["event_ts"].astimezone(UTC) + timedelta(hours=8) for row in rows)
        assert {(row["event_ts"] + timedelta(hours=8)).date() for row in rows} == {day}
    assert records[0]["tables"][USERS]["rows"] == 27_285
    lake = lake_bytes(settings)
    land_kuairand(settings, SLICE)
    assert lake_bytes(settings) == lake
