"""`mtf init` and `mtf check`, as a person at a shell meets them."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from dags import checking
from tests.dags.command import mtf
from tests.training.ingest.news import DAY, csv_text, news_settings, place, rows
from training.contract.settings import load_settings

MY = Path("my.yaml")


def week(folder: Path, days: int = 3) -> list[date]:
    """Sound deliveries of the news company."""
    found = [DAY + timedelta(days=number) for number in range(days)]
    for day in found:
        text = csv_text(rows(news_settings(folder), requests=40, day=day))
        place(folder, day=day).write_text(text)
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--heads", "Click"), "--heads: 'Click' is no name of a head"),
        (("--heads", "click,click"), "--heads: named twice: click"),
        (("--heads", "click", "--timezone", "Mars"), "calendar.timezone: Value error, 'Mars' is no IANA"),
        (("--column", "user_id=uid"), "--column is about the logs that --from names"),
        (("--from", "nowhere"), "there is no nowhere"),
    ],
)
def test_init_refuses_in_a_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = mtf("init", "my.yaml", *arguments, settings=MY, folder=tmp_path)
    assert result.returncode in (1, 2) and said in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "my.yaml").exists()


def test_init_from_logs_then_check_then_nothing_is_landed(tmp_path: Path) -> None:
    days = week(tmp_path / "logs")
    asked = mtf(
        "init",
        "my.yaml",
        "--from",
        "logs",
        "--timezone",
        "Europe/Berlin",
        folder=tmp_path,
        settings=MY,
    )
    assert asked.returncode == 0, asked.stderr
    assert "KuaiRand" not in (tmp_path / "my.yaml").read_text()
    assert load_settings(tmp_path / "my.yaml").head_names == ["click", "share", "read_time"]
    inferred = mtf(
        "init", "my.yaml", "--force", "--from", "logs", folder=tmp_path, settings=tmp_path / "my.yaml"
    )
    assert "days are cut in UTC, in which the days of your deliveries are cut" in inferred.stdout
    checked = mtf("check", settings=MY, folder=tmp_path)
    assert "impressions: 480 rows in 3 files" in checked.stdout and "3 by comma" in checked.stdout
    assert f"{days[0]} to {days[-1]}, cut in UTC" in checked.stdout
    assert "the logs hold no decisions" in checked.stdout and "have no reward that varies" in checked.stdout
    assert not (tmp_path / "data").exists()


def test_check_names_every_file_that_would_be_refused(tmp_path: Path) -> None:
    folder, settings = tmp_path / "logs", news_settings(tmp_path / "data")
    days = week(folder)
    text = csv_text(rows(settings, day=days[1]))
    place(folder, "b.csv", day=days[1]).write_text(text.replace(",60000\n", ",46.5\n"))
    place(folder, "c.csv", day=days[1]).write_text("request_id\n")
    found = checking.check(settings, folder)
    assert found.landed == [days[0], days[2]] and not found.sound
    told = "\n".join(found.refusals)
    assert "b.csv, row 1: column duration_ms is '46.5'" in told and "c.csv: missing column" in told
    assert not (tmp_path / "data").exists()


def test_check_says_what_validation_would(tmp_path: Path) -> None:
    folder, settings = tmp_path / "logs", news_settings(tmp_path / "data")
    [day] = week(folder, days=1)
    bad = [row | {"p_click": 1.5} for row in rows(settings, requests=40, day=day)]
    place(folder, day=day).write_text(csv_text(bad))
    found = checking.check(settings, folder)
    assert found.stopped == {day}
    assert any(remark.severity == "critical" and "p_click" in remark.text for remark in found.remarks)


def test_check_names_profiles_that_no_run_lands(tmp_path: Path) -> None:
    folder, settings = tmp_path / "logs", news_settings(tmp_path / "data")
    [day] = week(folder, days=1)
    alone = day + timedelta(days=1)
    profile = {"user_id": 1, "updated_ts": settings.day_start(alone), "country": "DE", "age_days": 1.0}
    place(folder, table="users", day=alone).write_text(csv_text([profile]))
    found = checking.check(settings, folder)
    assert found.landed == [day] and found.sound
    [remark] = [one for one in found.remarks if "no run lands it" in one.text]
    assert f"users/dt={alone}" in remark.text and remark.days == (alone,)
