"""Settings inferred from someone's logs hold for these logs; what cannot be known is asked for."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.ingest.conftest import read
from training.contract.errors import DataError, SettingsError
from training.ingest import kinds, land_files
from training.ingest.inferring import Answers, Inferred, Unknown, infer
from training.ingest.naming import named_heads

FIRST = date(2026, 11, 24)
BERLIN = ZoneInfo("Europe/Berlin")
SAID = Answers(timezone="Europe/Berlin")


def logs(
    folder: Path,
    days: int = 2,
    zone: ZoneInfo = BERLIN,
    time: Callable[[pd.Series], Any] | None = None,
    **columns: Callable[[pd.DataFrame], Any],
) -> Path:
    """A news app's: CSV with times as ``time`` writes them, or Parquet; ``columns`` are made of the frame."""
    rng = np.random.default_rng(3)
    for number in range(days):
        day = FIRST + timedelta(days=number)
        request = np.repeat(np.arange(150), 4)
        rows = pd.DataFrame({"req_id": [f"{day}-{n}" for n in request]})
        rows["reader_id"] = rng.integers(1, 40, 150)[request]
        rows["article_id"] = 1000 + (np.arange(len(rows)) * 7 + number) % 50
        start = datetime(day.year, day.month, day.day, 0, 5, tzinfo=zone).astimezone(UTC)
        rows["served_at"] = pd.to_datetime(start) + pd.to_timedelta(request * 560, unit="s")
        rows["served_at"] = rows["served_at"].dt.tz_convert(zone)
        rows["slot"] = np.tile(np.arange(4), 150)
        rows["ctr"] = rng.uniform(0.01, 0.9, len(rows)).round(4)
        rows["pred_read_time"] = rng.uniform(1, 300, len(rows)).round(1)
        rows["clicked"] = rng.random(len(rows)) < rows["ctr"]
        rows["shared"] = (rng.random(len(rows)) < 0.05).astype(int)
        rows["read_ms"] = np.where(rows["clicked"], 5000, 0)
        rows["article_ms"] = rows["article_id"] * 10
        for name, made in columns.items():
            rows[name] = made(rows)
        place = folder / "impressions" / f"dt={day}"
        place.mkdir(parents=True)
        if time is None:
            rows.to_parquet(place / "a.parquet", index=False)
        else:
            rows["served_at"] = time(rows["served_at"])
            rows.to_csv(place / "a.csv", index=False)
        users = pd.DataFrame({"reader_id": rows["reader_id"].drop_duplicates().to_numpy()})
        users["changed_at"] = start.isoformat()
        users["country"] = np.where(users.index % 3 == 0, "DE", "AT")
        users["subscriptions"] = users.index % 7
        users["is_paying"] = users.index % 2
        users["name"] = [f"reader {n}" for n in users.index]
        (folder / "users" / f"dt={day}").mkdir(parents=True)
        users.to_csv(folder / "users" / f"dt={day}" / "u.csv", index=False)
    return folder


def iso(times: pd.Series) -> list[str]:
    return [one.isoformat() for one in times]


def landed(found: Inferred, data: Path) -> int:
    """Rows of all days under the inferred settings and mapping."""
    assert found.folder is not None
    (found.folder / "columns.json").write_text(json.dumps(found.columns))
    settings = found.settings.model_copy(update={"data": data})
    days = sorted(path.name[3:] for path in (found.folder / "impressions").iterdir())
    for day in days:
        land_files(settings, date.fromisoformat(day), found.folder)
    return sum(len(read(settings, day=date.fromisoformat(day))) for day in days)


def test_what_is_inferred_holds_for_the_logs(tmp_path: Path) -> None:
    found = infer(logs(tmp_path / "logs"), Answers())
    settings = found.settings
    assert landed(found, tmp_path / "data") == 2 * 600
    assert {head.name: head.maximum for head in settings.heads} == {"click": 1.0, "read_time": 36_000.0}
    assert [(s.name, s.column) for s in settings.signals] == [("click", "clicked"), ("share", "shared")]
    assert {f.column: f.kind for f in settings.state.profile} == {
        "country": "categorical",
        "subscriptions": "saturating",
        "is_paying": "flag",
    }
    assert settings.state.profile[0].categories == ("AT", "DE")
    assert settings.calendar.timezone == "Europe/Berlin"
    assert settings.logs.folder == tmp_path / "logs"
    assert [column for _, column, _ in found.left_out] == ["name"]


def test_one_file_alone_is_enough_for_settings(tmp_path: Path) -> None:
    file = next(logs(tmp_path / "logs").rglob("a.parquet"))
    alone = file.rename(tmp_path / "sample.parquet")
    found = infer(alone, SAID)
    assert found.folder is None and found.settings.logs.source == "service"
    assert found.columns["impressions"]["p_click"] == "ctr"


@pytest.mark.parametrize(
    ("time", "said"),
    [
        (lambda t: t.map(lambda one: int(one.timestamp())), {"column": "served_at", "unit": "s"}),
        (lambda t: t.map(lambda one: int(one.timestamp() * 1e6)), {"column": "served_at", "unit": "us"}),
        (lambda t: t.dt.strftime("%Y-%m-%d %H:%M:%S"), {"column": "served_at", "zone": "calendar"}),
        (iso, "served_at"),
    ],
    ids=["seconds", "microseconds", "naive", "offset"],
)
def test_times_land_by_the_unit_and_zone_that_are_inferred(
    tmp_path: Path, time: Callable[[pd.Series], Any], said: object
) -> None:
    found = infer(logs(tmp_path / "logs", time=time), SAID)
    assert found.columns["impressions"]["event_ts"] == said
    assert landed(found, tmp_path / "data") == 2 * 600


def test_a_zone_that_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs", time=iso)
    with pytest.raises(Unknown, match=r"carry \+01:00 .*Europe/Berlin.*: give --timezone NAME"):
        infer(folder, Answers())
    assert infer(folder, Answers(machine="Europe/Paris")).settings.calendar.timezone == "Europe/Paris"


@pytest.mark.parametrize("time", [iso, lambda t: t.map(lambda one: int(one.timestamp() * 1000))])
def test_days_of_utc_are_known_by_their_rows(tmp_path: Path, time: Callable[[pd.Series], Any]) -> None:
    found = infer(logs(tmp_path / "logs", zone=ZoneInfo("UTC"), time=time), Answers(machine="Asia/Tokyo"))
    assert found.settings.calendar.timezone == "UTC"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda n: str(uuid.UUID(int=int(n))), "string"),
        (lambda n: f"{int(n):08d}", "string"),
        (lambda n: str((1 << 63) + int(n)), "uint64"),
        (lambda n: str(int(n)), "int64"),
    ],
)
def test_ids_are_what_all_of_them_are(tmp_path: Path, made: Callable[[Any], str], kind: str) -> None:
    found = infer(logs(tmp_path / "logs", time=iso, article_id=lambda r: r["article_id"].map(made)), SAID)
    assert found.settings.ids.items == kind and found.settings.ids.users == "int64"
    assert landed(found, tmp_path / "data") == 2 * 600


def test_a_row_without_an_id_says_nothing_of_what_ids_are() -> None:
    assert kinds.ids([[pd.Series(["1", "", None, "22"], dtype="string")]]) == "int64"


def test_traits_are_no_feedback_and_no_predictions(tmp_path: Path) -> None:
    folder = logs(
        tmp_path / "logs",
        is_premium=lambda r: r["article_id"] % 2,
        is_new_reader=lambda r: r["reader_id"] % 2,
        on_phone=lambda r: r["req_id"].map(hash) % 2,
        quality_score=lambda r: r["article_id"] % 10 / 10,
    )
    found = infer(folder, SAID)
    assert {head.name for head in found.settings.heads} == {"click", "read_time"}
    assert {signal.name for signal in found.settings.signals} == {"click", "share"}
    why = {column: reason for _, column, reason in found.left_out}
    assert "item" in why["is_premium"] and "request" in why["is_new_reader"] and "request" in why["on_phone"]
    assert "item" in why["quality_score"]


def test_of_two_columns_a_person_says_which(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs", visitor_id=lambda r: r["reader_id"] + 7)
    with pytest.raises(Unknown, match=r"id of the user\? \(reader_id, visitor_id\): give --column user_id="):
        infer(folder, SAID)
    found = infer(folder, Answers("Europe/Berlin", {"user_id": "visitor_id"}))
    assert found.columns["impressions"]["user_id"] == "visitor_id"
    with pytest.raises(SettingsError, match="no column 'visitor'"):
        infer(folder, Answers("Europe/Berlin", {"user_id": "visitor"}))


def test_what_columns_json_says_is_kept(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs")
    said = {"impressions": {"p_open": "ctr", "is_open": "clicked", "session_id": None}}
    (folder / "columns.json").write_text(json.dumps(said))
    found = infer(folder, SAID)
    assert [head.name for head in found.settings.heads] == ["open", "read_time"]
    assert [signal.column for signal in found.settings.signals] == ["is_open", "shared"]
    assert said["impressions"].items() <= found.columns["impressions"].items()
    assert landed(found, tmp_path / "data") == 2 * 600


def test_logs_without_predictions_are_refused_with_the_option(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs", ctr=lambda r: r["slot"], pred_read_time=lambda r: "x")
    with pytest.raises(DataError, match=r"no column of predictions .* --column p_click=COLUMN"):
        infer(folder, SAID)


@pytest.mark.parametrize(
    ("name", "maximum"),
    [("watch_time", 36_000.0), ("read_ms", 36_000_000.0), ("dwell_minutes", 600.0), ("share", 1.0)],
)
def test_a_time_has_a_maximum_in_its_unit(name: str, maximum: float) -> None:
    assert named_heads(name)[0].maximum == maximum


@pytest.mark.parametrize(
    ("heads", "said"), [("Click", "'Click' is no name"), ("click,click", "twice: click")]
)
def test_a_head_that_is_no_name_is_refused_in_a_line(heads: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        named_heads(heads)
    assert "\n" not in str(refused.value)


def given(**columns: str) -> Answers:
    return Answers(timezone="Europe/Berlin", columns=columns)


def test_entries_of_columns_json_that_are_not_sampled_are_kept(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs")
    said = {"decisions": {"request_id": "rid"}, "impressions": {"p_click": "ctr"}}
    (folder / "columns.json").write_text(json.dumps(said))
    found = infer(folder, SAID)
    assert found.columns["decisions"] == {"request_id": "rid"}
    assert found.columns["impressions"]["p_click"] == "ctr"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"impresions": {}}', "columns.json: unknown table 'impresions'; expected impressions"),
        (
            '{"impressions": {"p_click": "ctr", "p_click": "slot"}}',
            "columns.json: .*'p_click' is named twice",
        ),
        ('{"impressions": {"p_a": "ctr", "p_b": "ctr"}}', "p_a and p_b are both to be read from 'ctr'"),
        ("[" * 100_000, "columns.json: expected an object of tables, each an object of columns: .*recursion"),
        ('{"impressions": []}', "columns.json: impressions: expected an object of columns"),
    ],
)
def test_a_columns_json_that_cannot_hold_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = logs(tmp_path / "logs", days=1)
    (folder / "columns.json").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        infer(folder, SAID)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_given_goes_before_one_of_that_name(tmp_path: Path) -> None:
    folder = logs(tmp_path / "logs", is_click=lambda rows: 1 - rows["clicked"].astype(int))
    found = infer(folder, given(is_click="clicked"))
    assert [(s.name, s.column) for s in found.settings.signals] == [
        ("click", "is_click"),
        ("share", "shared"),
    ]
    assert found.columns["impressions"]["is_click"] == "clicked"
    assert ("impressions", "is_click") in {entry[:2] for entry in found.left_out}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"is_click": "slot"}, "slot, given as is_click, is feedback and not always 0 or 1"),
        ({"is_click": "ctr", "p_click": "ctr"}, "is_click and p_click are both to be read from 'ctr'"),
        ({"Is X": "shared"}, "Is X=shared: its signal would be called 'x'.*: name another column"),
        (
            {"users.user_id": "name", "users.Who": "reader_id"},
            "users.Who=reader_id: it would be called 'Who'",
        ),
    ],
)
def test_a_column_that_is_given_is_taken_or_refused(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises((DataError, SettingsError), match=message):
        infer(logs(tmp_path / "logs", days=1), given(**columns))


@pytest.mark.filterwarnings("error")
def test_scores_that_are_not_finite_are_told_and_left_out_of_the_maximum(tmp_path: Path) -> None:
    def scores(rows: pd.DataFrame) -> Any:
        return np.where(rows.index == 3, np.inf, np.where(rows.index == 4, 1e300, 0.25 + rows["ctr"] / 2))

    folder = logs(tmp_path / "logs", days=1, p_like=scores, nothing=lambda rows: [None] * len(rows))
    found = infer(folder, SAID)
    assert {head.name: head.maximum for head in found.settings.heads}["like"] == 1.0
    assert next(seen for _, column, _, seen in found.read if column == "p_like").endswith("2 not finite")
    assert ("impressions", "nothing", "without a value") in found.left_out


@pytest.mark.parametrize("day", ["2026-13-45", "2026-02-30"])
def test_a_folder_of_no_day_is_named(tmp_path: Path, day: str) -> None:
    place = logs(tmp_path / "logs", days=1) / "impressions"
    (place / f"dt={FIRST}").rename(place / f"dt={day}")
    with pytest.raises(DataError, match=f"a.parquet: dt={day} is no day: name the folder dt=YYYY-MM-DD"):
        infer(tmp_path / "logs", SAID)


@pytest.mark.parametrize("kind", [pa.float16(), pa.decimal256(50, 4)])
def test_numbers_that_duckdb_does_not_read_are_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    file = next(logs(tmp_path / "logs", days=1).rglob("a.parquet"))
    rows = pq.ParquetFile(file).read()
    scores = pa.array([0.25, 0.5] * (rows.num_rows // 2), pa.float32()).cast(kind)
    pq.write_table(rows.append_column("p_like", scores), file)
    found = infer(tmp_path / "logs", SAID)
    assert [seen for _, column, _, seen in found.read if column == "p_like"] == ["0.25 to 0.5"]


@pytest.mark.parametrize("first", [2.0**53, 4.5])
def test_ids_that_a_float_does_not_hold_are_refused_as_landing_does(tmp_path: Path, first: float) -> None:
    folder = logs(tmp_path / "logs", days=1, article_id=lambda rows: rows["article_id"] + first)
    with pytest.raises(
        DataError, match=r"a.parquet: column article_id holds the id .*\(double\).*: bring int64"
    ):
        infer(folder, SAID)


def test_files_of_a_header_alone_are_named(tmp_path: Path) -> None:
    file = next(logs(tmp_path / "logs", days=1).rglob("a.parquet"))
    pq.write_table(pq.ParquetFile(file).read().slice(0, 0), file)
    with pytest.raises(DataError, match=r"a.parquet: no rows: bring a file of impressions that has some"):
        infer(tmp_path / "logs", SAID)
